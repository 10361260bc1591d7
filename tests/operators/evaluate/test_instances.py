"""Masks of boxes, against the segment-anything package with the same weights, and their IoU with the truth."""

import numpy as np
import pytest
from pycocotools import mask as coco
from segment_anything import SamPredictor

from segmint.model.automatic.rle import CocoRle
from segmint.model.sam.predictor import Embedding, Predictor
from segmint.operators.annotations.image import encode_mask
from segmint.operators.evaluate.instances import boxes_of, iou_assigned, iou_in_order, segment_boxes

BOXES = np.array([[20.0, 5.0, 150.0, 110.0], [60.5, 30.0, 120.0, 70.25], [0.0, 0.0, 199.0, 149.0]])


def rectangle(x0: int, y0: int, x1: int, y1: int) -> CocoRle:
    mask = np.zeros((40, 50), bool)
    mask[y0 : y1 + 1, x0 : x1 + 1] = True
    return encode_mask(mask)


@pytest.mark.parametrize("refine", [True, pytest.param(False, marks=pytest.mark.long)])
def test_masks_of_boxes_are_the_packages(
    predictor: Predictor, embedding: Embedding, reference: SamPredictor, refine: bool
) -> None:
    boxes = np.concatenate([BOXES] * 3)  # more than are drawn at once
    found = segment_boxes(predictor, embedding, boxes, refine)
    for mask, box in ((found[0], boxes[0]), (found[1], boxes[1]), (found[8], boxes[8])):
        masks, scores, logits = reference.predict(box=box)
        best = scores.argmax()
        if refine:
            masks, scores, _ = reference.predict(box=box, mask_input=logits[best][None], multimask_output=False)
            best = 0
        assert mask.predicted_iou == pytest.approx(scores[best], abs=1e-4)
        differing = coco.decode(mask.rle).astype(bool) != masks[best]
        assert differing.sum() <= 2  # pixels whose logit is 0 but for rounding
        assert masks[best].any()
    assert segment_boxes(predictor, embedding, np.zeros((0, 4))) == []


def test_the_box_of_a_mask_is_between_its_outermost_pixels() -> None:
    assert boxes_of([rectangle(3, 5, 10, 7), rectangle(0, 0, 0, 0)]).tolist() == [[3, 5, 10, 7], [0, 0, 0, 0]]
    assert boxes_of([]).shape == (0, 4)
    with pytest.raises(ValueError, match="mask 1 is empty"):
        boxes_of([rectangle(3, 5, 10, 7), encode_mask(np.zeros((4, 4), bool))])


def test_iou_with_the_truth() -> None:
    truth = [rectangle(0, 0, 9, 9), rectangle(20, 20, 29, 29), rectangle(40, 0, 49, 9)]
    found = [rectangle(0, 0, 9, 4), rectangle(20, 20, 29, 29), rectangle(0, 30, 5, 35)]
    assert iou_in_order(truth, found).tolist() == [0.5, 1.0, 0.0]
    # Without order, each is paired with the one it fits best in all, and one is left alone.
    assert iou_assigned(truth, found[1::-1]).tolist() == [0.5, 1.0, 0.0]
    both = [rectangle(0, 0, 9, 9), rectangle(0, 0, 9, 4)]
    assert iou_assigned(both, [rectangle(0, 0, 9, 4), rectangle(0, 0, 9, 9)]).tolist() == [1.0, 1.0]
    assert iou_assigned([], found).tolist() == []
    assert iou_assigned(truth, []).tolist() == [0.0] * 3
