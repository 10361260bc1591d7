"""Conversion of low-resolution logits to stable masks at the crop's resolution, each as a patch.

`BorderUpscaling` and `BoxedUpscaling` are for CPUs with and without the kernels. They avoid most of the work without
approximation. `tiled_upscaling.py` is for accelerators. For padded models, `Predictor.upscale` interpolates twice: to
the encoder's input and then, without its padding, to the crop. For stretched models, it interpolates once. All steps
are bilinear, so they combine into one matrix per axis, and logits in the crop are R L C^T:

1. *Bounded by a box.* The rows of R and C contain no negative numbers and add up to 1, so a pixel is a mean of the
   low-resolution logits that it uses. If all of these are at or below -offset, so is the pixel, and it is not in any of
   the masks at -offset, 0, and +offset. Therefore, only pixels that use logits in the box of the logits above -offset
   need to be computed, each from all of its logits. (Rounding may raise a mean by its last bit, which only matters if
   all of its logits are exactly -offset.)
2. *Banded.* A pixel uses about three logits along an axis, so a band of pixels only needs a few logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segmint.model.automatic.boxes import box_of
from segmint.model.automatic.candidates import MaskPatch
from segmint.model.automatic.filters import stable, stable_of_counts
from segmint.model.automatic.interpolation import interpolation
from segmint.model.kernels.cpu import border
from segmint.model.kernels.cpu.border import Axis, MeasuredMask
from segmint.model.kernels.cpu.library import Kernels
from segmint.model.sam.geometry import Geometry
from segmint.model.sam.predictor import Embedding

# Number of pixels to threshold at once: 512 KB of logits, which stay in a core's cache.
_BAND_PIXELS = 1 << 17
_BAND_COLUMNS = 128

Sketch = TypeVar("Sketch")
"""A measured mask in the form from which an upscaling draws it."""


@dataclass(frozen=True)
class StableMasks(Generic[Sketch]):
    """The K stable masks of N, measured in pixels of the crop. Only a few of them will be drawn.

    Attributes:
        positions: (K,) int64, their indices among the N.
        stability: (K,) float32.
        areas: (K,) int64, foreground pixels.
        boxes: (K, 4) int64, x0, y0, x1, y1, ends inclusive; all zeros for an empty mask.
        sketches: the input from which the masks are drawn.
    """

    positions: NDArray[np.int64]
    stability: NDArray[np.float32]
    areas: NDArray[np.int64]
    boxes: NDArray[np.int64]
    sketches: tuple[Sketch, ...]


class Upscaling(Protocol[Sketch]):
    """Conversion of one embedding's low-resolution logits to masks in its frame."""

    def stable_masks(self, logits: Tensor, offset: float, threshold: float) -> StableMasks[Sketch]:
        """Return the masks of logits (N, 256, 256) float32 with a stability of at least `threshold` at `offset` ≥ 0."""

    def draw(self, sketches: Sequence[Sketch]) -> list[MaskPatch]:
        """Return the masks of these sketches, from any call of `stable_masks`, in the embedding's frame."""


@dataclass(frozen=True)
class _Window:
    """A mask's pixels (h, w) bool, the `corner` (x, y) of the first one, and the counts above +offset and -offset."""

    corner: tuple[int, int]
    pixels: NDArray[np.bool_]
    inner: int
    outer: int

    def pack(self) -> MaskPatch:
        """Return the mask as a patch. An empty mask becomes the frame's first pixel."""
        box = box_of(self.pixels)
        return MaskPatch.pack(self.pixels, box, self.corner if self.pixels.any() else (0, 0))


class BoxedUpscaling:
    """Upscaling for CPUs that computes each mask only inside its box, band by band, and measures masks by drawing."""

    def __init__(self, embedding: Embedding, geometry: Geometry) -> None:
        """Compute the weights for the embedding's frame; `geometry` is the model's."""
        (height, width), (frame_height, frame_width) = embedding.input_size, embedding.frame_size
        self._rows = interpolation(*geometry.mask_axis(height, frame_height))
        self._columns = interpolation(*geometry.mask_axis(width, frame_width))

    def stable_masks(self, logits: Tensor, offset: float, threshold: float) -> StableMasks[MaskPatch]:
        """See `Upscaling`."""
        found = [self._threshold(one, offset) for one in logits]
        inner = torch.tensor([window.inner for window in found], dtype=torch.float32)
        outer = torch.tensor([window.outer for window in found], dtype=torch.float32)
        scores = inner / outer
        kept = torch.nonzero(stable(scores, threshold)).flatten().numpy()
        patches = tuple(found[n].pack() for n in kept)
        areas = np.array([patch.area for patch in patches], dtype=np.int64)
        boxes = np.array([patch.box for patch in patches], dtype=np.int64).reshape(-1, 4)
        return StableMasks(kept, scores.numpy()[kept], areas, boxes, patches)

    def draw(self, sketches: Sequence[MaskPatch]) -> list[MaskPatch]:
        """See `Upscaling`."""
        return list(sketches)

    def _threshold(self, logits: Tensor, offset: float) -> _Window:
        """Return the mask of logits (256, 256)."""
        over = logits.numpy() > -offset
        x0, y0, x1, y1 = box_of(over)
        rows, columns = self._rows.reach(y0, y1), self._columns.reach(x0, x1)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if not over.any() or height < 1 or width < 1:
            return _Window((0, 0), np.zeros((1, 1), dtype=np.bool_), 0, 0)
        down = self._rows.touched(rows)
        across = torch.cat(list(self._columns.bands(columns, logits[down].T, step=_BAND_COLUMNS))).T
        pixels = np.empty((height, width), dtype=np.bool_)
        inner = outer = done = 0
        for band in self._rows.bands(rows, across, step=max(1, _BAND_PIXELS // width), first=down.start):
            values = band.numpy()
            np.greater(values, 0, out=pixels[done : done + len(values)])
            inner += int(np.count_nonzero(values > offset))
            outer += int(np.count_nonzero(values > -offset))
            done += len(values)
        return _Window((columns.start, rows.start), pixels, inner, outer)


def suits(geometry: Geometry) -> bool:
    """Return whether the kernels can upscale the masks of a model with this geometry."""
    return border.suits(geometry.low_res_size, geometry.image_size)


@dataclass(frozen=True)
class BorderSketch:
    """A measured mask, and the offset of its measurement."""

    mask: MeasuredMask
    offset: float


class BorderUpscaling:
    """Upscaling for CPUs with the kernels of `model/kernels/cpu/border.h`, which only compute the pixels at borders.

    Elsewhere, all logits that a pixel uses are on the same side of the thresholds. Masks are measured first, and only
    those that remain after suppression are drawn, with exactly the measured boxes and areas.
    """

    def __init__(self, kernels: Kernels, embedding: Embedding, geometry: Geometry) -> None:
        """Raise ValueError for a geometry that doesn't suit the kernels."""
        if not suits(geometry):
            raise ValueError(f"the CPU kernels can't upscale masks of {geometry}")
        (height, width), (frame_height, frame_width) = embedding.input_size, embedding.frame_size
        self._kernels = kernels
        self._rows = _axis(*geometry.mask_axis(height, frame_height))
        self._columns = _axis(*geometry.mask_axis(width, frame_width))

    def stable_masks(self, logits: Tensor, offset: float, threshold: float) -> StableMasks[BorderSketch]:
        """See `Upscaling`. Raises ValueError if a logit is not finite."""
        numbers = border.measure(self._kernels, logits, self._rows, self._columns, offset)
        kept, stability = stable_of_counts(numbers[:, 0], numbers[:, 2], threshold)
        masks = (border.keep(logits[mask], numbers[mask], self._rows, self._columns) for mask in kept.tolist())
        sketches = tuple(BorderSketch(mask, offset) for mask in masks)
        return StableMasks(kept, stability, numbers[kept, 1], numbers[kept, 3:], sketches)

    def draw(self, sketches: Sequence[BorderSketch]) -> list[MaskPatch]:
        """See `Upscaling`."""
        return [self._draw(sketch) for sketch in sketches]

    def _draw(self, sketch: BorderSketch) -> MaskPatch:
        pixels = border.draw(self._kernels, sketch.mask, self._rows, self._columns, sketch.offset)
        x0, y0, _, _ = sketch.mask.box.tolist()
        height, width = pixels.shape
        return MaskPatch.pack(pixels, (0, 0, width - 1, height - 1), (x0, y0))


@lru_cache(maxsize=256)
def _axis(side: int, padded: int, filled: int, pixels: int) -> Axis:
    """Return the axis of `interpolation`, memoized because crops of many images share sizes."""
    whole = interpolation(side, padded, filled, pixels)
    return Axis.of(whole.weights.numpy(), whole.touches)
