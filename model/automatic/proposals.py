"""From one crop's embedding to masks in the frame: decode the grid's points, upscale, filter."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.automatic.boxes import mask_boxes
from model.automatic.candidates import Candidates, Patch, concatenate
from model.automatic.crops import Crop
from model.automatic.filters import inside_crop, over_iou, stability_scores, stable, under_max_area
from model.automatic.records import Funnel
from model.automatic.settings import MaskSettings
from model.sam.predictor import Embedding, Predictor

# Logits upscaled at once: 128 MB in float32, far from the 2^31 elements that kernels can index, however
# large the image and however many masks a chunk gives. Masks are independent, so this changes no bit.
_UPSCALE_ELEMENTS = 1 << 25
_ENCODER_ELEMENTS = 1 << 20


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


def propose(
    predictor: Predictor, embedding: Embedding, points: NDArray[np.float64], settings: MaskSettings
) -> Iterator[tuple[Proposals, int]]:
    """Decodes points chunk by chunk: the masks over the IoU threshold, and how many were predicted in all.

    `points` is (P, 2), x, y in pixels of the crop. Every chunk has `points_per_chunk` prompts, the last one
    padded by its last point, so that each prompt's arithmetic is the same wherever it stands. Only masks over
    the threshold are drawn at all.
    """
    size = settings.points_per_chunk
    plan = predictor.plan_points(embedding)
    for start in range(0, len(points), size):
        chunk = points[start : start + size]
        padded = np.concatenate([chunk, np.repeat(chunk[-1:], size - len(chunk), axis=0)])
        masks = predictor.decode_points(embedding, plan, padded)
        keep = over_iou(masks.predicted_iou, settings.pred_iou_thresh)
        keep[len(chunk) :] = False
        asked = keep.nonzero()[:, 0].cpu().numpy()
        logits = predictor.draw_masks(masks, keep)
        yield Proposals(logits, masks.predicted_iou[keep], padded[asked]), keep[: len(chunk)].numel()


def measure(
    predictor: Predictor,
    embedding: Embedding,
    proposals: Proposals,
    crop: Crop,
    frame_size: tuple[int, int],
    settings: MaskSettings,
) -> tuple[Candidates, Funnel]:
    """Upscales proposals to the crop's size and keeps those that pass stability, size and crop-edge filters.

    `frame_size` is (height, width). The funnel counts `stable`, `under_max_area` and `inside_crop`.
    """
    height, width = crop.size
    step = max(1, _UPSCALE_ELEMENTS // max(_ENCODER_ELEMENTS, height * width))
    parts: list[Candidates] = []
    funnel = Funnel()
    for start in range(0, len(proposals.points), step):
        part = slice(start, start + step)
        logits = predictor.upscale(proposals.low_res_logits[None, part], embedding)[0]
        scores = stability_scores(logits, settings.stability_score_offset)
        kept = torch.nonzero(stable(scores, settings.stability_score_thresh)).flatten()
        masks = logits[kept] > 0
        boxes = mask_boxes(masks).cpu().numpy()
        areas = torch.count_nonzero(masks, dim=(1, 2)).cpu().numpy()
        x, y = crop.box[:2]
        framed = boxes + np.array([x, y, x, y])
        under = under_max_area(areas, frame_size, settings.max_mask_area_ratio)
        passed = np.flatnonzero(under & inside_crop(framed, crop.box, frame_size))
        funnel += Funnel(stable=len(kept), under_max_area=int(under.sum()), inside_crop=len(passed))
        source = kept.cpu().numpy()[passed]
        pixels = masks[torch.as_tensor(passed, device=masks.device)].cpu().numpy()
        x0, y0, x1, y1 = boxes[passed].T.tolist() if len(passed) else ([], [], [], [])
        parts.append(
            Candidates(
                proposals.predicted_iou[part].cpu().numpy()[source],
                scores.cpu().numpy()[source],
                proposals.points[part][source] + np.array([x, y]),
                framed[passed],
                np.repeat(np.array([crop.box]), len(passed), axis=0),
                tuple(
                    Patch.pack(mask, box, (x, y))
                    for mask, box in zip(pixels, zip(x0, y0, x1, y1, strict=True), strict=True)
                ),
            )
        )
    return concatenate(parts), funnel
