"""From low-resolution logits to masks in the crop's pixels: those that are stable, each by a window around it.

`WholeUpscaling` is the plain formula, in batches as accelerators like them. `BoxedUpscaling` is for CPUs and spares
most of the work by exact means. `Predictor.upscale` interpolates twice, to the encoder's 1024x1024 input and then,
without its padding, to the crop. Both steps are bilinear, so that together they are one matrix a side, and logits in
the crop are R L C^T:

1. *Bounded by a box.* The rows of R and of C hold no negative numbers and add up to 1: a pixel is a mean of the
   low-resolution logits that it touches. Where all of these are at or below -offset, so is the pixel, and it is in
   none of the masks at -offset, 0 and +offset. So the pixels that touch the box of the logits over -offset are all
   that need be computed, each from all logits that it touches. (Rounding may lift a mean by its last bit, which
   shows only in a mean of logits that are all exactly -offset.)
2. *Banded.* A pixel touches about three logits along a side: a band of pixels takes those few and leaves the rest.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.automatic.boxes import box_of, mask_boxes
from model.automatic.filters import stability_scores, stable
from model.sam.predictor import Embedding, Predictor

# Pixels thresholded at once on a CPU: 512 KB of logits, which stay in a core's cache.
_BAND_PIXELS = 1 << 17
_BAND_COLUMNS = 128
# Logits upscaled at once elsewhere: 128 MB in float32, far from the 2^31 elements that kernels can index, however
# large the image and however many masks a chunk gives. Masks are independent, so this changes no bit.
_BATCH_ELEMENTS = 1 << 25
_ENCODER_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Window:
    """A mask by its pixels (h, w) bool inside a window of its crop, whose top left pixel is `corner` (x, y)."""

    corner: tuple[int, int]
    pixels: NDArray[np.bool_]


@dataclass(frozen=True)
class StableMasks:
    """Those K of N masks that are stable.

    Attributes:
        positions: (K,) int64, their places among the N.
        stability: (K,) float32.
        windows: the K masks; outside its window a mask has no pixel.
    """

    positions: NDArray[np.int64]
    stability: NDArray[np.float32]
    windows: tuple[Window, ...]


class Upscaling(Protocol):
    """The way from one embedding's low-resolution logits to masks in its frame."""

    def stable_masks(self, logits: Tensor, offset: float, threshold: float) -> StableMasks:
        """Masks of logits (N, 256, 256) float32 whose stability at `offset` (0 or more) reaches `threshold`."""


def upscaling_of(predictor: Predictor, embedding: Embedding) -> Upscaling:
    """The faster way on the embedding's device; both find the same masks."""
    if embedding.features.device.type == "cpu":
        return BoxedUpscaling(embedding, predictor.sam.image_size)
    return WholeUpscaling(predictor, embedding)


class WholeUpscaling:
    """Upscales whole masks in batches."""

    def __init__(self, predictor: Predictor, embedding: Embedding) -> None:
        self._predictor = predictor
        self._embedding = embedding

    def stable_masks(self, logits: Tensor, offset: float, threshold: float) -> StableMasks:
        """See `Upscaling`."""
        height, width = self._embedding.frame_size
        step = max(1, _BATCH_ELEMENTS // max(_ENCODER_ELEMENTS, height * width))
        positions: list[int] = []
        stability = [np.zeros(0, np.float32)]
        windows: list[Window] = []
        for start in range(0, len(logits), step):
            upscaled = self._predictor.upscale(logits[None, start : start + step], self._embedding)[0]
            scores = stability_scores(upscaled, offset)
            kept = torch.nonzero(stable(scores, threshold)).flatten()
            masks = upscaled[kept] > 0
            boxes = mask_boxes(masks).tolist()
            for (x0, y0, x1, y1), pixels in zip(boxes, masks.cpu().numpy(), strict=True):
                windows.append(Window((x0, y0), pixels[y0 : y1 + 1, x0 : x1 + 1]))
            positions += (start + kept).tolist()
            stability.append(scores[kept].cpu().numpy())
        return StableMasks(np.array(positions, dtype=np.int64), np.concatenate(stability), tuple(windows))


class BoxedUpscaling:
    """Upscales each mask inside its box alone, band by band, on a CPU."""

    def __init__(self, embedding: Embedding, image_size: int, low_side: int = 256) -> None:
        """Takes the side of the encoder's input (1024), and that of low-resolution masks."""
        (height, width), (frame_height, frame_width) = embedding.input_size, embedding.frame_size
        self._rows = interpolation(low_side, image_size, height, frame_height)
        self._columns = interpolation(low_side, image_size, width, frame_width)

    def stable_masks(self, logits: Tensor, offset: float, threshold: float) -> StableMasks:
        """See `Upscaling`."""
        found = [self._threshold(one, offset) for one in logits]
        inner, outer = (torch.tensor([each[n] for each in found], dtype=torch.float32) for n in (1, 2))
        scores = inner / outer
        kept = torch.nonzero(stable(scores, threshold)).flatten().numpy()
        return StableMasks(kept, scores.numpy()[kept], tuple(found[n][0] for n in kept))

    def _threshold(self, logits: Tensor, offset: float) -> tuple[Window, int, int]:
        """The mask of logits (256, 256), and how many pixels are over +offset and over -offset."""
        over = logits.numpy() > -offset
        x0, y0, x1, y1 = box_of(over)
        rows, columns = self._rows.reach(y0, y1), self._columns.reach(x0, x1)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if not over.any() or height < 1 or width < 1:
            return Window((0, 0), np.zeros((1, 1), dtype=np.bool_)), 0, 0
        down = self._rows.touched(rows)
        across = torch.cat(list(self._columns.bands(columns, logits[down].T, step=_BAND_COLUMNS))).T
        pixels = np.empty((height, width), dtype=np.bool_)
        inner = outer = done = 0
        for band in self._rows.bands(rows, across, step=max(1, _BAND_PIXELS // width), first=down.start):
            values = band.numpy()
            np.greater(values, 0, out=pixels[done : done + len(values)])
            inner += np.count_nonzero(values > offset)
            outer += np.count_nonzero(values > -offset)
            done += len(values)
        return Window((columns.start, rows.start), pixels), inner, outer


@dataclass(frozen=True)
class Interpolation:
    """Both steps of bilinear interpolation along one side, from S low-resolution logits to the crop's pixels.

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
        """Interpolates logits (S, n) to (pixels, n), at most `step` pixels at a time; row 0 is logit `first`."""
        for start in range(pixels.start, pixels.stop, step):
            band = slice(start, min(start + step, pixels.stop))
            touched = self.touched(band)
            yield self.weights[band, touched] @ logits[touched.start - first : touched.stop - first]


def interpolation(side: int, padded: int, filled: int, pixels: int) -> Interpolation:
    """From `side` logits to `padded` pixels, of which the first `filled` become the crop's `pixels`.

    The weights are torch's own: what it makes of each unit vector.
    """
    units = torch.eye(side)[None, :, :, None]
    square = F.interpolate(units, (padded, 1), mode="bilinear", align_corners=False)
    crop = F.interpolate(square[:, :, :filled], (pixels, 1), mode="bilinear", align_corners=False)
    weights = crop[0, :, :, 0].T.contiguous()
    used = weights.numpy() > 0
    return Interpolation(weights, _spans(used.T), _spans(used))


def _spans(used: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Start and end (exclusive) of what is true in each row of (N, L) bool: (N, 2), with (L, 0) for nothing."""
    length, some = used.shape[1], used.any(axis=1)
    starts = np.where(some, used.argmax(axis=1), length)
    ends = np.where(some, length - used[:, ::-1].argmax(axis=1), 0)
    return np.stack([starts, ends], axis=1)
