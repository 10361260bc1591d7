"""Clicks lie where distances by brute force say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segmint.operators.evaluate.points import Click, center_click, deepest_pixel, next_click, random_click

regions = arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def distances(region: np.ndarray) -> np.ndarray:
    """To the nearest pixel outside the region or the image, pixel by pixel."""
    padded = np.pad(region, 1)
    outside = np.argwhere(~padded)
    found = np.zeros(region.shape)
    for y, x in np.argwhere(region):
        found[y, x] = np.sqrt(((outside - (y + 1, x + 1)) ** 2).sum(axis=1)).min()
    return found


@given(regions)
def test_the_deepest_pixel_is_farthest_from_the_boundary(region: np.ndarray) -> None:
    found = deepest_pixel(region)
    expected = distances(region)
    if found is None:
        assert not region.any()
        return
    assert found.distance == pytest.approx(expected.max(), abs=1e-4)
    assert (found.y, found.x) == min(map(tuple, np.argwhere(expected > expected.max() - 1e-4)))


@given(arrays(bool, (7, 8)), arrays(bool, (7, 8)), st.integers(0, 5))
def test_the_next_click_is_deepest_in_the_error(predicted: np.ndarray, truth: np.ndarray, clicked: int) -> None:
    before = [Click(x % 8, x // 8, 1) for x in range(clicked)]
    click = next_click(predicted, truth, before)
    missing, too_much = distances(truth & ~predicted), distances(predicted & ~truth)
    for each in before:
        missing[each.y, each.x] = too_much[each.y, each.x] = 0
    if click is None:
        assert max(missing.max(), too_much.max()) == 0
        return
    assert click[:2] not in [each[:2] for each in before]
    assert truth[click.y, click.x] == click.label != predicted[click.y, click.x]
    depth = (missing if click.label else too_much)[click.y, click.x]
    assert depth == pytest.approx(max(missing.max(), too_much.max()), abs=1e-4)
    assert click.label == (missing.max() > too_much.max() + 1e-5)


def test_the_images_border_is_a_border_of_the_mask() -> None:
    mask = np.zeros((40, 60), bool)
    mask[20:, :] = True
    assert center_click(mask) == Click(9, 29, 1)


def test_random_clicks_are_uniform_and_keyed() -> None:
    mask = np.zeros((6, 7), bool)
    mask[2:4, 1:6] = True
    clicks = [random_click(mask, 5, number) for number in range(600)]
    counts = np.zeros(mask.shape)
    for click in clicks:
        counts[click.y, click.x] += 1
    assert not counts[~mask].any()
    assert (counts[mask] > 35).all()  # 60 are expected: 3.4 standard deviations below
    assert clicks[:5] == [random_click(mask, 5, number) for number in range(5)]
    assert clicks[:9] != [random_click(mask, 6, number) for number in range(9)]


def test_an_empty_mask_is_refused() -> None:
    for click in (center_click, lambda mask: random_click(mask, 0, 0)):
        with pytest.raises(ValueError, match="no pixels"):
            click(np.zeros((3, 3), bool))
