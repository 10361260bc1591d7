"""Each filter against the reference code, and at its very threshold."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from segment_anything.utils.amg import calculate_stability_score, is_box_near_crop_edge

from segmint.model.automatic.candidates import inside_crop, over_iou, stability_scores, stable, under_max_area
from segmint.model.automatic.crops import generate_crops

LOGITS = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=3, max_dims=3, max_side=9),
    elements=st.sampled_from([-2, -1, np.nextafter(np.float32(-1), 0), 0, 0.5, 1, 1.5]).map(np.float32),
)


@given(LOGITS, st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=200)
def test_stability_is_the_reference_codes(logits: np.ndarray, offset: float) -> None:
    expected = calculate_stability_score(torch.from_numpy(logits), 0.0, offset)

    scores = stability_scores(torch.from_numpy(logits), offset)

    assert scores.dtype == torch.float32
    assert torch.equal(scores.isnan(), expected.isnan())
    assert torch.equal(scores.nan_to_num(-1), expected.nan_to_num(-1))


def test_nothing_over_the_lower_threshold_is_nan_and_never_stable() -> None:
    scores = stability_scores(torch.full((1, 4, 4), -5.0), 1.0)

    assert scores.isnan().all()
    assert not stable(scores, 0.95).any()
    assert stable(scores, 0).all()


def test_iou_must_be_over_its_threshold_and_stability_may_equal_it() -> None:
    at = torch.tensor([0.88, 0.95, 0.5], dtype=torch.float32)

    assert over_iou(at, 0.88).tolist() == [False, True, False]
    assert stable(at, 0.95).tolist() == [False, True, False]
    assert over_iou(at, 0).all()
    assert over_iou(-at, -1).all()


def test_a_mask_of_the_largest_share_is_too_large() -> None:
    areas = np.array([9499, 9500, 10000])

    assert under_max_area(areas, (100, 100), 0.95).tolist() == [True, False, False]
    assert under_max_area(areas, (100, 100), 0).all()


@given(st.integers(30, 1500), st.integers(30, 1500), st.integers(0, 20), st.data())
@settings(max_examples=200)
def test_crop_edges_are_the_reference_codes(height: int, width: int, index: int, data: st.DataObject) -> None:
    crop_box = generate_crops((height, width), 2, 512 / 1500)[index].box
    x0, y0, x1, y1 = crop_box
    crop_width, crop_height = x1 - x0, y1 - y0
    near = st.integers(0, 45)
    sides = data.draw(st.lists(st.tuples(near, near, near, near), min_size=1, max_size=8))
    local = np.array([(left, top, crop_width - right, crop_height - bottom) for left, top, right, bottom in sides])
    expected = ~is_box_near_crop_edge(torch.from_numpy(local), list(crop_box), [0, 0, width, height])

    inside = inside_crop(local + np.array([x0, y0, x0, y0]), crop_box, (height, width))

    assert inside.tolist() == expected.tolist()


def test_a_side_twenty_pixels_from_the_crops_is_at_its_edge_unless_the_image_ends_there() -> None:
    boxes = np.array([[120, 150, 170, 170], [121, 150, 170, 170], [150, 0, 170, 170]])

    assert inside_crop(boxes, (100, 0, 200, 200), (400, 400)).tolist() == [False, True, True]
