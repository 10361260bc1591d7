"""Steps from one crop's embedding to masks in the frame: decode grid points, measure, filter, and draw.

Both bilinear steps from low-resolution logits to the crop's pixels, combined into one matrix per axis.

Conversion of low-resolution logits to stable masks at the crop's resolution, each as a patch.

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

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segmint.infra.arrays import Bools, Floats, Floats32, Ints, Size
from segmint.model.automatic.candidates import (
    CandidateMasks,
    MaskPatch,
    inside_crop,
    joined,
    nms,
    over_iou,
    stable,
    stable_of_counts,
    under_max_area,
)
from segmint.model.automatic.crops import Crop, box_of
from segmint.model.automatic.rle import Funnel
from segmint.model.automatic.settings import MaskSettings
from segmint.model.kernels.cpu import calls
from segmint.model.kernels.cpu.calls import Axis, MeasuredMask
from segmint.model.kernels.cpu.library import Kernels
from segmint.model.sam.geometry import Geometry
from segmint.model.sam.point_decoder import PointPlan
from segmint.model.sam.predictor import Embedding, Predictor
from segmint.model.sam.preprocess import check_prompts

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
    reached: Ints
    touches: Ints

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


def _nonzero_weights(side: int, padded: int, filled: int, pixels: int) -> tuple[Ints, Tensor]:
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


def _reached(logits: Ints, used: Bools, side: int) -> Ints:
    """Return the start and exclusive end of the pixels that use each logit, (side, 2).

    If no pixel uses a logit, they are (pixels, 0).
    """
    pixels = np.broadcast_to(np.arange(len(logits))[:, None], logits.shape)[used]
    starts, ends = np.full(side, len(logits)), np.zeros(side, dtype=np.int64)
    np.minimum.at(starts, logits[used], pixels)
    np.maximum.at(ends, logits[used], pixels + 1)
    return np.stack([starts, ends], axis=1)


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

    positions: Ints
    stability: Floats32
    areas: Ints
    boxes: Ints
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
    pixels: Bools
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
        rows, columns = geometry.mask_axes(embedding.input_size, embedding.frame_size)
        self._rows, self._columns = interpolation(*rows), interpolation(*columns)

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
    return calls.can_upscale(geometry.low_res_size, geometry.image_size)


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
        rows, columns = geometry.mask_axes(embedding.input_size, embedding.frame_size)
        self._kernels = kernels
        self._rows, self._columns = _axis(*rows), _axis(*columns)

    def stable_masks(self, logits: Tensor, offset: float, threshold: float) -> StableMasks[BorderSketch]:
        """See `Upscaling`. Raises ValueError if a logit isn't finite."""
        numbers = calls.measure(self._kernels, logits, self._rows, self._columns, offset)
        kept, stability = stable_of_counts(numbers[:, 0], numbers[:, 2], threshold)
        masks = (calls.keep(logits[mask], numbers[mask], self._rows, self._columns) for mask in kept.tolist())
        sketches = tuple(BorderSketch(mask, offset) for mask in masks)
        return StableMasks(kept, stability, numbers[kept, 1], numbers[kept, 3:], sketches)

    def draw(self, sketches: Sequence[BorderSketch]) -> list[MaskPatch]:
        return [self._draw(sketch) for sketch in sketches]

    def _draw(self, sketch: BorderSketch) -> MaskPatch:
        pixels = calls.draw(self._kernels, sketch.mask, self._rows, self._columns, sketch.offset)
        x0, y0, _, _ = sketch.mask.box.tolist()
        height, width = pixels.shape
        return MaskPatch.pack(pixels, (0, 0, width - 1, height - 1), (x0, y0))


@lru_cache(maxsize=256)
def _axis(side: int, padded: int, filled: int, pixels: int) -> Axis:
    """Return the kernels' axis for these arguments of `interpolation`, cached because many crops have equal sizes."""
    whole = interpolation(side, padded, filled, pixels)
    return Axis.of(whole.weights.numpy(), whole.touches)


LOGIT_LIMIT = 32.0
"""Largest absolute value of logits in a mask prompt (reference code of SAM 2)."""


@dataclass(frozen=True)
class Proposals:
    """Decoded masks before upscaling.

    Attributes:
        low_res_logits: (N, 256, 256), ordered by prompt and then by mask, on the model's device.
        predicted_iou: (N,) float32, on the model's device.
        points: (N, 2) float64, (x, y) in pixels of the crop.
        outputs: (N,) int64, index of each mask among the decoder's three outputs, 0 to 2.
    """

    low_res_logits: Tensor
    predicted_iou: Tensor
    points: Floats
    outputs: Ints


@dataclass(frozen=True)
class MeasuredMasks(Generic[Sketch]):
    """Masks of one crop that passed its filters but aren't drawn yet. Coordinates are in pixels of the frame.

    Attributes:
        predicted_iou: (N,) float32.
        stability: (N,) float32.
        points: (N, 2) float64, (x, y).
        outputs: (N,) int64, index of each mask among the decoder's three outputs, 0 to 2.
        boxes: (N, 4) int64 as x0, y0, x1, y1, ends inclusive.
        sketches: input from which the crop's upscaling draws the masks.
    """

    predicted_iou: Floats32
    stability: Floats32
    points: Floats
    outputs: Ints
    boxes: Ints
    sketches: tuple[Sketch, ...]


def chunks_of(points: Floats, size: int) -> list[Floats]:
    """Split points (P, 2) into chunks of `size`. If P isn't a multiple of `size`, the last chunk is shorter."""
    return [points[start : start + size] for start in range(0, len(points), size)]


def propose(
    predictor: Predictor, embedding: Embedding, plan: PointPlan, chunk: Floats, settings: MaskSettings
) -> tuple[Proposals, int]:
    """Decode a chunk of points, and return the masks above the IoU threshold and the number of all predicted masks.

    `chunk` (1 to `points_per_chunk`, 2) contains points as (x, y) in pixels of the crop. `plan` belongs to the
    embedding. A shorter chunk is padded with copies of its last point, so that the arithmetic of a prompt is the same
    in every chunk. Only masks above the threshold are drawn. With `use_m2m`, all masks are drawn and decoded again, and
    the threshold applies afterwards.
    """
    padded = np.concatenate([chunk, np.repeat(chunk[-1:], settings.chunk_on("cpu") - len(chunk), axis=0)])
    masks = predictor.decode_points(embedding, plan, padded)
    keep = over_iou(masks.predicted_iou, 0.0 if settings.use_m2m else settings.pred_iou_thresh)
    keep[len(chunk) :] = False
    asked, outputs = keep.nonzero().cpu().numpy().T
    logits = predictor.draw_masks(plan, masks, keep)
    found = Proposals(logits, masks.predicted_iou[keep], padded[asked], outputs)
    if settings.use_m2m:
        found = _decode_again(predictor, embedding, found, settings.pred_iou_thresh)
    return found, keep[: len(chunk)].numel()


def _decode_again(predictor: Predictor, embedding: Embedding, found: Proposals, threshold: float) -> Proposals:
    """Decode each mask again from its point and its logits, and apply the threshold to the new predicted IoU."""
    points, labels = found.points[:, None], np.ones((len(found.points), 1))
    logits = found.low_res_logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT)[:, None]
    prompts = check_prompts(points, labels, None, logits, predictor.sam.geometry.low_res_size)
    again = predictor.predict_single(embedding, prompts)
    keep = over_iou(again.predicted_iou[:, 0], threshold)
    kept = keep.cpu().numpy()
    return Proposals(
        again.low_res_logits[keep, 0], again.predicted_iou[keep, 0], found.points[kept], found.outputs[kept]
    )


def measure(
    upscaling: Upscaling[Sketch],
    proposals: Proposals,
    crop: Crop,
    frame_size: Size,
    settings: MaskSettings,
) -> tuple[MeasuredMasks[Sketch], Funnel]:
    """Measure proposals at the crop's size, and keep those that pass the stability, size, and crop-edge filters.

    `frame_size` is (height, width). The funnel contains the counts `stable`, `under_max_area`, and `inside_crop`.
    """
    found = upscaling.stable_masks(
        proposals.low_res_logits, settings.stability_score_offset, settings.stability_score_thresh
    )
    prompts = proposals.points, proposals.outputs
    return filtered(found, proposals.predicted_iou.cpu().numpy(), *prompts, crop, frame_size, settings)


def filtered(
    found: StableMasks[Sketch],
    predicted_iou: Floats32,
    points: Floats,
    outputs: Ints,
    crop: Crop,
    frame_size: Size,
    settings: MaskSettings,
) -> tuple[MeasuredMasks[Sketch], Funnel]:
    """Keep the stable masks that pass the size and crop-edge filters, and count them as in `measure`.

    `found.positions` indexes the other arrays: `predicted_iou` (N,), `points` (N, 2) as (x, y) in pixels of the crop,
    and `outputs` (N,), the masks' indices among the decoder's outputs.
    """
    boxes = found.boxes + np.array(crop.box[:2] * 2)
    under = under_max_area(found.areas, frame_size, settings.max_mask_area_ratio)
    passed = np.flatnonzero(under & inside_crop(boxes, crop.box, frame_size))
    source = found.positions[passed]
    measured = MeasuredMasks(
        predicted_iou[source],
        found.stability[passed],
        points[source] + np.array(crop.box[:2]),
        outputs[source],
        boxes[passed],
        tuple(found.sketches[index] for index in passed),
    )
    counts = Funnel(stable=len(found.sketches), under_max_area=int(under.sum()), inside_crop=len(passed))
    return measured, counts


def suppress_and_draw(
    upscaling: Upscaling[Sketch],
    parts: Sequence[MeasuredMasks[Sketch]],
    crop: Crop,
    threshold: float,
    device: torch.device,
) -> CandidateMasks:
    """Apply `suppress`, and draw the masks that remain. Suppressed masks are never drawn."""
    kept = suppress(parts, threshold, device)
    return to_candidates(kept, upscaling.draw(kept.sketches), crop)


def suppress(
    parts: Sequence[MeasuredMasks[Sketch]], threshold: float, device: torch.device | None
) -> MeasuredMasks[Sketch]:
    """Apply NMS within a crop, which needs only boxes and scores, and sort by descending predicted IoU.

    `parts` are the crop's chunks, in order. `threshold` applies to the IoU of boxes. `device` is the same as in `nms`.
    """
    boxes, predicted_iou = joined(parts, "boxes"), joined(parts, "predicted_iou")
    sketches = [sketch for part in parts for sketch in part.sketches]
    keep = nms(boxes, predicted_iou, threshold, device)
    return MeasuredMasks(
        predicted_iou[keep],
        joined(parts, "stability")[keep],
        joined(parts, "points")[keep],
        joined(parts, "outputs")[keep],
        boxes[keep],
        tuple(sketches[index] for index in keep),
    )


def to_candidates(masks: MeasuredMasks[Sketch], patches: Sequence[MaskPatch], crop: Crop) -> CandidateMasks:
    """Combine the masks of a crop with their patches, which are drawn in pixels of the crop."""
    return CandidateMasks(
        masks.predicted_iou,
        masks.stability,
        masks.points,
        masks.outputs,
        masks.boxes,
        np.repeat(np.array([crop.box]), len(patches), axis=0),
        tuple(patch.moved(crop.box[:2]) for patch in patches),
    )
