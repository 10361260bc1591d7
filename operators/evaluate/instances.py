"""Masks for boxes of one image, and their IoU with the ground truth (SAM paper, Sections 7.4 and D.4)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from scipy.optimize import linear_sum_assignment

from segmint.model.sam.predictor import Embedding, Predictor
from segmint.operators.annotations.image import CocoRle, encode_mask

_AT_ONCE = 8  # number of boxes; the full-size logits of each take 4 bytes per pixel


@dataclass(frozen=True)
class BoxMask:
    """Mask for a box, and the model's own estimate of the mask's IoU."""

    rle: CocoRle
    predicted_iou: float


@torch.inference_mode()
def segment_boxes(
    predictor: Predictor, embedding: Embedding, boxes: NDArray[np.float64], refine: bool = True
) -> list[BoxMask]:
    """Draw a mask for each box, (N, 4) as x0, y0, x1, y1 in pixels of the embedding's frame.

    The model draws three masks for each box, and the mask with the highest predicted IoU wins. With `refine`, the model
    then receives the logits of that mask along with the box, as in the paper, and draws a single mask. Drawing a single
    mask for several prompts matches training.
    """
    found: list[BoxMask] = []
    for start in range(0, len(boxes), _AT_ONCE):
        chunk = boxes[start : start + _AT_ONCE]
        masks = predictor.predict(embedding, boxes=chunk)
        best = masks.predicted_iou.argmax(dim=1)
        rows = torch.arange(len(best), device=best.device)
        logits, predicted_iou = masks.low_res_logits[rows, best][:, None], masks.predicted_iou[rows, best]
        if refine:
            masks = predictor.predict(embedding, boxes=chunk, masks=logits, multimask=False)
            logits, predicted_iou = masks.low_res_logits, masks.predicted_iou[:, 0]
        drawn = predictor.upscale(logits, embedding)[:, 0].gt(0).cpu().numpy()
        found.extend(
            BoxMask(encode_mask(mask), iou) for mask, iou in zip(drawn, predicted_iou.cpu().tolist(), strict=True)
        )
    return found


def boxes_of(masks: Sequence[CocoRle]) -> NDArray[np.float64]:
    """Return the boxes of masks, (N, 4): x0, y0, x1, y1 of the outermost pixels. Raise ValueError for an empty mask."""
    x, y, width, height = np.array([coco.toBbox(rle) for rle in masks], dtype=np.float64).reshape(-1, 4).T
    if not width.all():
        raise ValueError(f"mask {int(np.argmin(width))} is empty: expected masks of one pixel or more")
    return np.stack([x, y, x + width - 1, y + height - 1], axis=1)


def iou_in_order(truth: Sequence[CocoRle], found: Sequence[CocoRle]) -> NDArray[np.float64]:
    """Return the IoU of each true mask with the predicted mask at the same position, (N,)."""
    pairs = zip(truth, found, strict=True)
    return np.array([coco.iou([second], [first], [0])[0, 0] for first, second in pairs], dtype=np.float64)


def iou_assigned(truth: Sequence[CocoRle], found: Sequence[CocoRle]) -> NDArray[np.float64]:
    """Assign predicted masks to true masks one to one, and return the IoU of each true mask, (N,), or 0 if unassigned.

    The assignment maximizes the sum of IoUs.
    """
    result = np.zeros(len(truth))
    if truth and found:
        overlaps = np.asarray(coco.iou(list(found), list(truth), [0] * len(truth)), dtype=np.float64)
        chosen, paired = linear_sum_assignment(overlaps, maximize=True)
        result[paired] = overlaps[chosen, paired]
    return result
