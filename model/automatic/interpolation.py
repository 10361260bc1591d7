"""Both bilinear steps from low-resolution logits to the crop's pixels, as one matrix for each axis."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Interpolation:
    """Both steps of bilinear interpolation along one axis, from S low-resolution logits to the crop's pixels.

    Attributes:
        weights: (pixels, S) float32.
        reached: (S, 2) int64, start and end (exclusive) of the pixels that touch a logit; (pixels, 0) for none.
        touches: (pixels, 2) int64, start and end (exclusive) of the logits that a pixel touches.
    """

    weights: Tensor
    reached: NDArray[np.int64]
    touches: NDArray[np.int64]

    def reach(self, first: int, last: int) -> slice:
        """The pixels that touch any of the logits `first` to `last` (inclusive); empty where all are padding."""
        spans = self.reached[first : last + 1]
        return slice(int(spans[:, 0].min()), int(spans[:, 1].max()))

    def touched(self, pixels: slice) -> slice:
        """The logits that these pixels, one or more, touch."""
        spans = self.touches[pixels]
        return slice(int(spans[:, 0].min()), int(spans[:, 1].max()))

    def bands(self, pixels: slice, logits: Tensor, step: int, first: int = 0) -> Iterator[Tensor]:
        """Interpolate logits (S, n) to (pixels, n), at most `step` pixels at a time; row 0 is logit `first`."""
        for start in range(pixels.start, pixels.stop, step):
            band = slice(start, min(start + step, pixels.stop))
            touched = self.touched(band)
            yield self.weights[band, touched] @ logits[touched.start - first : touched.stop - first]


def interpolation(side: int, padded: int, filled: int, pixels: int) -> Interpolation:
    """From `side` logits to `padded` pixels, of which the first `filled` become the crop's `pixels`.

    The weights are torch's: its interpolation of each unit vector.
    """
    units = torch.eye(side)[None, :, :, None]
    square = F.interpolate(units, (padded, 1), mode="bilinear", align_corners=False)
    crop = F.interpolate(square[:, :, :filled], (pixels, 1), mode="bilinear", align_corners=False)
    weights = crop[0, :, :, 0].T.contiguous()
    used = weights.numpy() > 0
    return Interpolation(weights, _spans(used.T), _spans(used))


def _spans(used: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Start and end (exclusive) of the True values in each row of (N, L) bool: (N, 2), (L, 0) for a row without any."""
    length, some = used.shape[1], used.any(axis=1)
    starts = np.where(some, used.argmax(axis=1), length)
    ends = np.where(some, length - used[:, ::-1].argmax(axis=1), 0)
    return np.stack([starts, ends], axis=1)
