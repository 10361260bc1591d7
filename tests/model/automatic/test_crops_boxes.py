"""Boxes are inclusive pixel extremes, as the reference code's."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays
from segment_anything.utils.amg import batched_mask_to_box, box_xyxy_to_xywh

from segmint.model.automatic.crops import box_of, mask_boxes, xyxy_to_xywh

STACKS = arrays.arrays(np.bool_, arrays.array_shapes(min_dims=3, max_dims=3, max_side=12))


@given(STACKS)
@settings(max_examples=200)
def test_boxes_are_the_reference_codes(masks: np.ndarray) -> None:
    expected = batched_mask_to_box(torch.from_numpy(masks))

    boxes = mask_boxes(torch.from_numpy(masks))

    assert torch.equal(boxes, expected)
    assert [box_of(mask) for mask in masks] == [tuple(box) for box in expected.tolist()]
    for box, row in zip(boxes.tolist(), expected, strict=True):
        assert list(xyxy_to_xywh(tuple(box))) == box_xyxy_to_xywh(row).tolist()


def test_an_empty_mask_has_a_box_of_zeros_and_a_pixel_a_box_without_size() -> None:
    masks = torch.zeros(2, 5, 6, dtype=torch.bool)
    masks[1, 3, 2] = True

    assert mask_boxes(masks).tolist() == [[0, 0, 0, 0], [2, 3, 2, 3]]
    assert xyxy_to_xywh((2, 3, 2, 3)) == (2, 3, 0, 0)


def test_no_masks_have_no_boxes() -> None:
    assert mask_boxes(torch.zeros(0, 5, 6, dtype=torch.bool)).shape == (0, 4)
