"""Steps from one crop's embedding to masks in the frame: decode grid points, measure, filter, and draw."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segmint.model.automatic.candidates import CandidateMasks, MaskPatch, joined
from segmint.model.automatic.crops import Crop
from segmint.model.automatic.filters import inside_crop, over_iou, under_max_area
from segmint.model.automatic.nms import nms
from segmint.model.automatic.records import Funnel
from segmint.model.automatic.settings import MaskSettings
from segmint.model.automatic.upscaling import Sketch, StableMasks, Upscaling
from segmint.model.sam.point_decoder import PointPlan
from segmint.model.sam.predictor import Embedding, Predictor
from segmint.model.sam.prompts import check_prompts

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
    points: NDArray[np.float64]
    outputs: NDArray[np.int64]


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

    predicted_iou: NDArray[np.float32]
    stability: NDArray[np.float32]
    points: NDArray[np.float64]
    outputs: NDArray[np.int64]
    boxes: NDArray[np.int64]
    sketches: tuple[Sketch, ...]


def chunks_of(points: NDArray[np.float64], size: int) -> list[NDArray[np.float64]]:
    """Split points (P, 2) into chunks of `size`. If P isn't a multiple of `size`, the last chunk is shorter."""
    return [points[start : start + size] for start in range(0, len(points), size)]


def propose(
    predictor: Predictor, embedding: Embedding, plan: PointPlan, chunk: NDArray[np.float64], settings: MaskSettings
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
    frame_size: tuple[int, int],
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
    predicted_iou: NDArray[np.float32],
    points: NDArray[np.float64],
    outputs: NDArray[np.int64],
    crop: Crop,
    frame_size: tuple[int, int],
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
