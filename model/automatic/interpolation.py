"""Both bilinear steps from low-resolution logits to the crop's pixels, combined into one matrix per axis."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

# Number of vectors to interpolate at once. For fewer than 8 vectors, torch uses a kernel that rounds differently than
# its kernel for 256.
_VECTORS = 32


@dataclass(frozen=True)
class Interpolation:
    """Both steps of the bilinear interpolation along one axis, from S low-resolution logits to the crop's pixels.

    Attributes:
        weights: (pixels, S) float32.
        reached: (S, 2) int64, start and exclusive end of the pixels that use each logit. (pixels, 0) if no pixel does.
        touches: (pixels, 2) int64, start and exclusive end of the logits that each pixel uses.
    """

    weights: Tensor
    reached: NDArray[np.int64]
    touches: NDArray[np.int64]

    def reach(self, first: int, last: int) -> slice:
        """Return the pixels that use any of the logits from `first` to `last` (inclusive).

        If all of these logits are padding, the slice is empty.
        """
        spans = self.reached[first : last + 1]
        return slice(int(spans[:, 0].min()), int(spans[:, 1].max()))

    def touched(self, pixels: slice) -> slice:
        """Return the logits that these pixels use. There must be at least one pixel."""
        spans = self.touches[pixels]
        return slice(int(spans[:, 0].min()), int(spans[:, 1].max()))

    def bands(self, pixels: slice, logits: Tensor, step: int, first: int = 0) -> Iterator[Tensor]:
        """Interpolate logits (S, n) to (pixels, n), up to `step` pixels at a time. Row 0 is logit `first`."""
        for start in range(pixels.start, pixels.stop, step):
            band = slice(start, min(start + step, pixels.stop))
            touched = self.touched(band)
            yield self.weights[band, touched] @ logits[touched.start - first : touched.stop - first]


def interpolation(side: int, padded: int, filled: int, pixels: int) -> Interpolation:
    """Combine both interpolations along one axis.

    The first one maps `side` logits to `padded` pixels. The second one maps the first `filled` of these to the crop's
    `pixels`. To get exactly torch's weights, this function interpolates unit vectors.
    """
    logits, weights = _nonzero_weights(side, padded, filled, pixels)
    used = weights.numpy() > 0
    whole = torch.zeros(pixels, side).scatter_(1, torch.from_numpy(logits), weights)
    start = np.where(used, logits, side).min(axis=1)
    end = np.where(used, logits + 1, 0).max(axis=1)
    return Interpolation(whole, _reached(logits, used, side), np.stack([start, end], axis=1))


def _nonzero_weights(side: int, padded: int, filled: int, pixels: int) -> tuple[NDArray[np.int64], Tensor]:
    """Return adjacent logits that include all logits that a pixel uses, and their weights float32, both (pixels, N).

    If no pixel uses two logits together, their unit vectors are interpolated as one vector. This only adds zeros to the
    sums, so the bits are the same as with `side` separate vectors, with an eighth of the work.
    """
    # A pixel lies between two padded pixels, and each of these lies between two logits. The pixel therefore uses no
    # logit that is more than `far` away.
    far = 1 + math.ceil(side / padded)
    near = min(side, 2 * far + 4)
    count = min(side, max(_VECTORS, near))
    units = (torch.arange(side) % count == torch.arange(count)[:, None]).float()[None, :, :, None]
    square = F.interpolate(units, (padded, 1), mode="bilinear", align_corners=False)
    crop = F.interpolate(square[:, :, :filled], (pixels, 1), mode="bilinear", align_corners=False)
    middles = np.clip((np.arange(pixels) + 0.5) * (filled / pixels) - 0.5, 0, filled - 1)
    first = np.floor((middles + 0.5) * (side / padded) - 0.5).astype(np.int64) - far - 1
    logits = first.clip(0, side - near)[:, None] + np.arange(near)
    return logits, crop[0, :, :, 0].T.gather(1, torch.from_numpy(logits % count))


def _reached(logits: NDArray[np.int64], used: NDArray[np.bool_], side: int) -> NDArray[np.int64]:
    """Return the start and exclusive end of the pixels that use each logit, (side, 2).

    If no pixel uses a logit, they are (pixels, 0).
    """
    pixels = np.broadcast_to(np.arange(len(logits))[:, None], logits.shape)[used]
    starts, ends = np.full(side, len(logits)), np.zeros(side, dtype=np.int64)
    np.minimum.at(starts, logits[used], pixels)
    np.maximum.at(ends, logits[used], pixels + 1)
    return np.stack([starts, ends], axis=1)
