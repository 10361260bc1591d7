"""Conversion of low-resolution logits to stable masks at the crop's resolution, each as a patch.

On CPUs, `BorderUpscaling` uses the kernels, and `BoxedUpscaling` works without them. Both skip most of the work without
approximation. Accelerators use `tiled_upscaling.py`.

For padded models, `Predictor.upscale` interpolates twice: first to the encoder's input, and then, without the padding,
to the crop. For stretched models, it interpolates once. Each interpolation is bilinear, so they combine into one matrix
per axis, and the logits in the crop are R L C^T. This form has two useful properties:

1. *Bounded by a box.* The values of each row of R or C are nonnegative and sum to 1, so a pixel is a weighted mean of
   the low-resolution logits that it uses. If all of these are at or below -offset, the pixel is too, so it's outside
   all three masks at -offset, 0, and +offset. Therefore, take the box around the logits above -offset: only pixels that
   use a logit in this box need to be computed, each from all of its logits. (Rounding can raise a mean by its last bit.
   This matters only if all logits of a pixel are exactly -offset.)
2. *Banded.* Along an axis, a pixel uses about three logits, so a band of pixels needs only a few logits.
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

# Number of pixels to threshold at once. Their logits take 512 KB, which fits into a core's cache.
BAND_PIXELS = 1 << 17
_BAND_COLUMNS = 128

Sketch = TypeVar("Sketch")
"""Measured mask in the form that an `Upscaling` needs to draw it."""


@dataclass(frozen=True)
class StableMasks(Generic[Sketch]):
    """Measurements of the K stable masks among N masks, in pixels of the crop. Only a few of them will be drawn.

    Attributes:
        positions: (K,) int64, indices of the stable masks among the N masks.
        stability: (K,) float32, stability scores.
        areas: (K,) int64, numbers of foreground pixels.
        boxes: (K, 4) int64 as x0, y0, x1, y1, ends inclusive. All zeros for an empty mask.
        sketches: input for drawing the masks.
    """

    positions: NDArray[np.int64]
    stability: NDArray[np.float32]
    areas: NDArray[np.int64]
    boxes: NDArray[np.int64]
    sketches: tuple[Sketch, ...]


class Upscaling(Protocol[Sketch]):
    """Conversion of an embedding's low-resolution logits to masks in the embedding's frame."""

    def stable_masks(self, logits: Tensor, offset: float, threshold: float) -> StableMasks[Sketch]:
        """Find the masks of logits (N, 256, 256) float32 whose stability at `offset` ≥ 0 is at least `threshold`."""

    def draw(self, sketches: Sequence[Sketch]) -> list[MaskPatch]:
        """Draw the masks of these sketches in the embedding's frame. They may come from any call of `stable_masks`."""


@dataclass(frozen=True)
class _Window:
    """Pixels of a mask in a window, (h, w) bool, with the counts of logits above +offset and -offset.

    `corner` is the (x, y) of the window's first pixel.
    """

    corner: tuple[int, int]
    pixels: NDArray[np.bool_]
    inner: int
    outer: int

    def pack(self) -> MaskPatch:
        """Pack the mask into a patch. The patch of an empty mask is the frame's first pixel."""
        box = box_of(self.pixels)
        return MaskPatch.pack(self.pixels, box, self.corner if self.pixels.any() else (0, 0))


class BoxedUpscaling:
    """Upscaling for CPUs without kernels.

    It computes each mask band by band, only inside the mask's box, and draws the mask to measure it.
    """

    def __init__(self, embedding: Embedding, geometry: Geometry) -> None:
        """Compute the interpolation weights for the embedding's frame. `geometry` is the model's geometry."""
        (height, width), (frame_height, frame_width) = embedding.input_size, embedding.frame_size
        self._rows = interpolation(*geometry.mask_axis(height, frame_height))
        self._columns = interpolation(*geometry.mask_axis(width, frame_width))

    def stable_masks(self, logits: Tensor, offset: float, threshold: float) -> StableMasks[MaskPatch]:
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
        return list(sketches)

    def _threshold(self, logits: Tensor, offset: float) -> _Window:
        """Threshold the logits (256, 256) of one mask."""
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
        for band in self._rows.bands(rows, across, step=max(1, BAND_PIXELS // width), first=down.start):
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
    """Measured mask, with the offset that was used to measure it."""

    mask: MeasuredMask
    offset: float


class BorderUpscaling:
    """Upscaling for CPUs with the kernels of `model/kernels/cpu/border.h`, which compute only pixels near borders.

    For all other pixels, the logits that a pixel uses are on the same side of the thresholds. This class measures all
    masks first. Later, it draws only the masks that remain after suppression, and their boxes and areas match the
    measurements exactly.
    """

    def __init__(self, kernels: Kernels, embedding: Embedding, geometry: Geometry) -> None:
        """Compute the axes for the embedding's frame. Raises ValueError if the kernels don't support the geometry."""
        if not suits(geometry):
            raise ValueError(f"the CPU kernels can't upscale masks of {geometry}")
        (height, width), (frame_height, frame_width) = embedding.input_size, embedding.frame_size
        self._kernels = kernels
        self._rows = _axis(*geometry.mask_axis(height, frame_height))
        self._columns = _axis(*geometry.mask_axis(width, frame_width))

    def stable_masks(self, logits: Tensor, offset: float, threshold: float) -> StableMasks[BorderSketch]:
        """See `Upscaling`. Raises ValueError if a logit isn't finite."""
        numbers = border.measure(self._kernels, logits, self._rows, self._columns, offset)
        kept, stability = stable_of_counts(numbers[:, 0], numbers[:, 2], threshold)
        masks = (border.keep(logits[mask], numbers[mask], self._rows, self._columns) for mask in kept.tolist())
        sketches = tuple(BorderSketch(mask, offset) for mask in masks)
        return StableMasks(kept, stability, numbers[kept, 1], numbers[kept, 3:], sketches)

    def draw(self, sketches: Sequence[BorderSketch]) -> list[MaskPatch]:
        return [self._draw(sketch) for sketch in sketches]

    def _draw(self, sketch: BorderSketch) -> MaskPatch:
        pixels = border.draw(self._kernels, sketch.mask, self._rows, self._columns, sketch.offset)
        x0, y0, _, _ = sketch.mask.box.tolist()
        height, width = pixels.shape
        return MaskPatch.pack(pixels, (0, 0, width - 1, height - 1), (x0, y0))


@lru_cache(maxsize=256)
def _axis(side: int, padded: int, filled: int, pixels: int) -> Axis:
    """Return the kernels' axis for these arguments of `interpolation`, cached because many crops have equal sizes."""
    whole = interpolation(side, padded, filled, pixels)
    return Axis.of(whole.weights.numpy(), whole.touches)
