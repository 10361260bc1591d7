"""Thinning and one-to-one matching, against scikit-image and naive searches."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.morphology import thin as skimage_thin

from segmint.operators.evaluate.edges import count_matches, label_boundaries, match_edges, near_numbers, thin

TOLERANCE = 2.3


def naive_matching(found: np.ndarray, truth: np.ndarray, tolerance: float) -> tuple[int, float]:
    """The most pairs and their least total distance, by trying all assignments."""
    first, second = np.argwhere(found).tolist(), np.argwhere(truth).tolist()
    if len(first) > len(second):
        first, second = second, first
    best = (0, 0.0)
    for chosen in permutations(range(len(second)), len(first)):
        distances = [np.hypot(a[0] - second[j][0], a[1] - second[j][1]) for a, j in zip(first, chosen, strict=True)]
        within = [distance for distance in distances if distance <= tolerance]
        best = min(best, (-len(within), sum(within)))
    return -best[0], best[1]


@given(arrays(np.bool_, st.tuples(st.integers(1, 14), st.integers(1, 14))))
def test_thin_is_scikit_images(edges: np.ndarray) -> None:
    assert np.array_equal(thin(edges), skimage_thin(edges))


def test_thin_draws_a_line_of_a_band_and_leaves_its_input() -> None:
    band = np.zeros((20, 40), bool)
    band[8:13, 3:37] = True
    before = band.copy()
    line = thin(band)
    assert np.array_equal(band, before)
    assert set(np.flatnonzero(line.any(axis=1))) == {10}
    assert line.sum() > 28


def test_boundaries_of_a_label_map_are_where_numbers_change() -> None:
    labels = np.zeros((12, 16), np.int64)
    labels[:, 8:] = 7
    labels[6:, 8:] = -3
    edges = label_boundaries(labels)
    naive = np.zeros(labels.shape, bool)
    for y in range(12):
        for x in range(16):
            right, below = min(x + 1, 15), min(y + 1, 11)
            near = labels[y, right], labels[below, x], labels[below, right]
            naive[y, x] = any(number != labels[y, x] for number in near)
    assert np.array_equal(edges, skimage_thin(naive))
    assert set(np.flatnonzero(edges[:5].any(axis=0))) == {7}
    assert edges[5, 9:].all()
    assert not label_boundaries(np.full((5, 5), 4)).any()


@pytest.mark.parametrize("distance", [0.0, 1.4, 3.0])
def test_pixels_near_numbers_are_those_within_a_distance(distance: float) -> None:
    labels = np.zeros((12, 16), np.int64)
    labels[3, 4], labels[7:9, 10], labels[0, 15] = 255, -1, 9
    found = near_numbers(labels, (255, -1), distance)
    places = np.argwhere(np.isin(labels, (255, -1)))
    naive = [[np.hypot(*(places - (y, x)).T).min() <= distance for x in range(16)] for y in range(12)]
    assert np.array_equal(found, naive)
    assert not near_numbers(labels, (7,), distance).any()


@settings(max_examples=40)
@given(st.data())
def test_matching_is_the_best_that_a_naive_search_finds(data: st.DataObject) -> None:
    places = st.tuples(st.integers(0, 4), st.integers(0, 5))
    found, truth = np.zeros((5, 6), bool), np.zeros((5, 6), bool)
    for edges, most in ((found, 5), (truth, 4)):
        for y, x in data.draw(st.lists(places, max_size=most)):
            edges[y, x] = True
    if data.draw(st.booleans()):
        found, truth = truth, found
    pairs, distance = naive_matching(found, truth, TOLERANCE)
    of_found, of_truth = match_edges(found, truth, TOLERANCE)
    assert of_found.sum() == of_truth.sum() == pairs == count_matches(found, truth, TOLERANCE)
    assert not (of_found & ~found).any()
    assert not (of_truth & ~truth).any()
    # The pixels that it chose can be paired at the least distance of all matchings.
    assert naive_matching(of_found, of_truth, TOLERANCE) == (pairs, pytest.approx(distance))


def test_a_line_beside_a_line_matches_within_the_tolerance_alone() -> None:
    found, truth = np.zeros((40, 60), bool), np.zeros((40, 60), bool)
    found[10, 5:55] = True
    truth[13, 5:55] = True
    assert count_matches(found, truth, 2.9) == 0
    assert count_matches(found, truth, 3.0) == 50
    doubled = found.copy()
    doubled[11, 5:55] = True  # two found lines, one true: half of the found pixels stay alone
    of_found, of_truth = match_edges(doubled, truth, 3.0)
    assert (of_found.sum(), of_truth.sum()) == (50, 50)
    assert of_found[11].sum() == 50  # the nearer line
