"""From one crop's embedding to masks in the frame: decode the grid's points, upscale, filter."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.automatic.boxes import box_of
from model.automatic.candidates import Candidates, Patch
from model.automatic.crops import Crop
from model.automatic.filters import inside_crop, over_iou, under_max_area
from model.automatic.records import Funnel
from model.automatic.settings import MaskSettings
from model.automatic.upscaling import Upscaling, Window
from model.sam.point_decoder import PointPlan
from model.sam.predictor import Embedding, Predictor


@dataclass(frozen=True)
class Proposals:
    """Masks as the decoder gives them, before they are upscaled.

    Attributes:
        low_res_logits: (N, 256, 256), prompt-major and mask-minor, on the model's device.
        predicted_iou: (N,) float32, on the model's device.
        points: (N, 2) float64, x, y in pixels of the crop.
    """

    low_res_logits: Tensor
    predicted_iou: Tensor
    points: NDArray[np.float64]


def chunks_of(points: NDArray[np.float64], size: int) -> list[NDArray[np.float64]]:
    """Points (P, 2) in chunks of `size`, the last of them shorter where that does not divide P."""
    return [points[start : start + size] for start in range(0, len(points), size)]


def propose(
    predictor: Predictor, embedding: Embedding, plan: PointPlan, chunk: NDArray[np.float64], settings: MaskSettings
) -> tuple[Proposals, int]:
    """Decodes a chunk of points: the masks over the IoU threshold, and how many were predicted in all.

    `chunk` is (1 to `points_per_chunk`, 2), x, y in pixels of the crop; `plan` the embedding's own. A shorter chunk
    is padded by its last point, so that each prompt's arithmetic is the same wherever it stands. Only masks over the
    threshold are drawn at all.
    """
    padded = np.concatenate([chunk, np.repeat(chunk[-1:], settings.points_per_chunk - len(chunk), axis=0)])
    masks = predictor.decode_points(embedding, plan, padded)
    keep = over_iou(masks.predicted_iou, settings.pred_iou_thresh)
    keep[len(chunk) :] = False
    asked = keep.nonzero()[:, 0].cpu().numpy()
    logits = predictor.draw_masks(plan, masks, keep)
    return Proposals(logits, masks.predicted_iou[keep], padded[asked]), keep[: len(chunk)].numel()


def measure(
    upscaling: Upscaling, proposals: Proposals, crop: Crop, frame_size: tuple[int, int], settings: MaskSettings
) -> tuple[Candidates, Funnel]:
    """Upscales proposals to the crop's size and keeps those that pass stability, size and crop-edge filters.

    `frame_size` is (height, width). The funnel counts `stable`, `under_max_area` and `inside_crop`.
    """
    found = upscaling.stable_masks(
        proposals.low_res_logits, settings.stability_score_offset, settings.stability_score_thresh
    )
    patches = [patch_of(window, crop) for window in found.windows]
    areas = np.array([np.count_nonzero(window.pixels) for window in found.windows], dtype=np.int64)
    boxes = np.array([patch.box for patch in patches], dtype=np.int64).reshape(-1, 4)
    under = under_max_area(areas, frame_size, settings.max_mask_area_ratio)
    passed = np.flatnonzero(under & inside_crop(boxes, crop.box, frame_size))
    source = found.positions[passed]
    candidates = Candidates(
        proposals.predicted_iou.cpu().numpy()[source],
        found.stability[passed],
        proposals.points[source] + np.array(crop.box[:2]),
        boxes[passed],
        np.repeat(np.array([crop.box]), len(passed), axis=0),
        tuple(patches[index] for index in passed),
    )
    counts = Funnel(stable=len(found.windows), under_max_area=int(under.sum()), inside_crop=len(passed))
    return candidates, counts


def patch_of(window: Window, crop: Crop) -> Patch:
    """A window's mask in the frame, packed; an empty mask is the first pixel of its crop."""
    box = box_of(window.pixels)
    corner = window.corner if window.pixels.any() else (0, 0)
    return Patch.pack(window.pixels, box, (corner[0] + crop.box[0], corner[1] + crop.box[1]))
