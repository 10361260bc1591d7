"""One closed path a mask, which painted is the mask again, with its holes."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segmint.pipeline.export.per_image import paint, pixel_path

SHAPE = (48, 64)


def blob(seed: int, sigma: float, share: float) -> np.ndarray:
    """The largest part of a random mask, with whatever holes it has."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32), (0, 0), sigma)
    _, labels, stats, _ = cv2.connectedComponentsWithStats((noise > np.quantile(noise, share)).astype(np.uint8))
    return labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()


def holes_of(mask: np.ndarray) -> int:
    contours, tree = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return len(contours) - int((tree[0, :, 3] == -1).sum())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.5, 4), st.floats(0.1, 0.9))
def test_a_mask_of_one_part_is_painted_equal_with_all_its_holes(seed: int, sigma: float, share: float) -> None:
    mask = blob(seed, sigma, share)
    np.testing.assert_array_equal(paint(pixel_path(mask), SHAPE), mask)


def test_there_are_holes_in_what_is_tested() -> None:
    assert holes_of(blob(1, 0.5, 0.2)) > 20
    assert holes_of(blob(1, 2.0, 0.3)) > 2


@pytest.mark.parametrize("step", [2, 3])
def test_a_sieve_and_a_checkerboard(step: int) -> None:
    y, x = np.mgrid[:40, :40]
    for mask in ((x % step != 0) | (y % step != 0), (x + y) % 2 == 0):
        np.testing.assert_array_equal(paint(pixel_path(mask), mask.shape), mask)


def test_parts_are_joined_by_the_shortest_bridges_from_part_to_part() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[4:20, 4:20] = mask[4:20, 23:40] = mask[24:40, 23:40] = True
    painted = paint(pixel_path(mask), SHAPE)
    assert (painted & mask).sum() == mask.sum()
    assert (painted & ~mask).sum() == 3 + 4


def test_two_parts_on_one_pixel_have_a_bridge_each() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[20:40, 5:30] = mask[30, 30:41] = True  # the nearest pixel to both others is the tip
    mask[18:27, 47:60] = mask[34:43, 47:60] = True
    painted = paint(pixel_path(mask), SHAPE)
    assert (painted & mask).sum() == mask.sum()
    assert (painted & ~mask).sum() == 6 + 6


def test_a_part_that_is_smaller_than_its_bridge_is_left_out() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[4:40, 4:30] = True
    whole = mask.copy()
    whole[20:22, 34:36] = True  # 4 pixels, at the end of a bridge of 4
    np.testing.assert_array_equal(paint(pixel_path(whole), SHAPE).sum(), whole.sum() + 4)
    whole[20:22, 35] = False
    whole[21, 34] = False  # 1 pixel
    np.testing.assert_array_equal(paint(pixel_path(whole), SHAPE), mask)


def test_straight_lines_have_no_points_between() -> None:
    mask = np.zeros(SHAPE, bool)
    assert pixel_path(mask).shape == (0, 2)
    assert not paint(pixel_path(mask), SHAPE).any()
    mask[10:20, 30:50] = True
    assert sorted(map(tuple, pixel_path(mask).tolist())) == [(30, 10), (30, 19), (49, 10), (49, 19)]
    mask[12:15, 40] = False
    assert len(pixel_path(mask)) < 16
