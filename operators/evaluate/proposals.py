"""Object proposals of one image, ranked as in the SAM paper's evaluation (Sections 7.3 and D.3)."""

import numpy as np
from numpy.typing import NDArray

from segmint.model.automatic.candidates import CandidateMasks
from segmint.model.automatic.generator import MaskGenerator, RawMasks
from segmint.model.automatic.settings import MaskSettings
from segmint.operators.evaluate.coco_matching import PredictedMask

LIMITS = (10, 100, 1000)
"""Numbers of proposals per image for which average recall is reported."""


def proposal_settings(points_per_side: int = 64) -> MaskSettings:
    """Return the paper's settings: no crops, no filter by predicted IoU or stability, and NMS at 0.9.

    The grid contains `points_per_side` points per side, 64 in the paper.
    """
    return MaskSettings.official(
        points_per_side=points_per_side, pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=0.9
    )


def propose_objects(generator: MaskGenerator, image: NDArray[np.uint8]) -> list[PredictedMask]:
    """Return the 1,000 best proposals for an image, (H, W, 3) uint8 RGB. `generator` must use `proposal_settings`."""
    return rank(generator.find(image))


def rank(found: RawMasks) -> list[PredictedMask]:
    """Return the 1,000 best masks, ranked by the mean of predicted IoU and stability score, best first.

    Empty masks are excluded, because they have no stability score and can't match the ground truth.
    """
    masks = found.candidates
    scores = (masks.predicted_iou.astype(np.float64) + masks.stability) / 2
    order = [index for index in np.argsort(-scores, kind="stable") if masks.patches[index].area]
    return [_found_mask(masks, index, float(scores[index]), found.frame_size) for index in order[: LIMITS[-1]]]


def _found_mask(masks: CandidateMasks, index: int, score: float, frame_size: tuple[int, int]) -> PredictedMask:
    rle = masks.patches[index].encode(frame_size)
    return PredictedMask({"size": list(rle.size), "counts": rle.counts.encode("ascii")}, score)
