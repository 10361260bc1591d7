"""Conversion of low-resolution logits to masks by CPU kernels, which compute only the pixels at masks' borders.

Elsewhere, all logits that a pixel uses are on the same side of the thresholds, so nothing needs to be computed
(`model/kernels/cpu/border.h`). Masks are measured first. Only those left after suppression are drawn, by the same
decisions, so their boxes and areas are the measured ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from segmint.model.automatic.candidates import MaskPatch
from segmint.model.automatic.filters import stable_of_counts
from segmint.model.automatic.interpolation import interpolation
from segmint.model.automatic.upscaling import StableMasks
from segmint.model.kernels.cpu import border
from segmint.model.kernels.cpu.border import Axis, MeasuredMask
from segmint.model.kernels.cpu.library import Kernels
from segmint.model.sam.geometry import Geometry
from segmint.model.sam.predictor import Embedding


def suits(geometry: Geometry) -> bool:
    """Return whether the kernels can upscale the masks of a model with this geometry."""
    return geometry.placement == "padded" and border.suits(geometry.low_res_size, geometry.image_size)


@dataclass(frozen=True)
class BorderSketch:
    """A measured mask, and the offset of its measurement."""

    mask: MeasuredMask
    offset: float


class BorderUpscaling:
    """Upscaling for CPUs with the kernels of `border.h`."""

    def __init__(self, kernels: Kernels, embedding: Embedding, geometry: Geometry) -> None:
        """Raises ValueError for a geometry that doesn't suit the kernels."""
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
