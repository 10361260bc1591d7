"""Concavity at the same sizes, of drawn masks whose sizes and hulls are known."""

import numpy as np
import pytest

from segmint.pipeline.quality.statistics.comparison import (
    LEAST_MASKS,
    SIZES,
    ConcavityAtSizes,
    SizeStratum,
    at_same_sizes,
    concavity_by_size,
)
from tests.support.drawn import draw, image_with, tables_of

SMALL = draw(100, 100, (5, 5, 10, 10))  # a tenth of the side, convex
LARGE = draw(100, 100, (50, 50, 40, 20), (50, 70, 20, 20))  # an L: 1,200 pixels, and 200 more in its hull
CONVEX = draw(100, 100, (20, 20, 35, 35))  # in the L's stratum
HUGE = draw(100, 100, (0, 0, 90, 90))
OF_AN_L = 200 / 1400


def strata_of(*masks: np.ndarray) -> dict[int, SizeStratum]:
    image, rows = image_with(0, masks)
    with tables_of({0: {"images": [image], "masks": rows}}) as tables:
        return concavity_by_size(tables.connection)


def test_masks_are_counted_by_size_and_concavity() -> None:
    found = strata_of(*[SMALL] * 3, LARGE, CONVEX)
    small, large = sorted(found)
    assert SIZES.edges[small] <= 0.1 < SIZES.edges[small + 1]
    assert SIZES.edges[large] <= np.sqrt(0.12) < SIZES.edges[large + 1]
    assert found[small] == SizeStratum(3, {0: 3}, 0.0)
    assert (found[large].masks, found[large].counts) == (2, {0: 1, 7: 1})
    assert found[large].mean == pytest.approx(OF_AN_L / 2)


def test_datasets_that_differ_in_size_alone_have_the_same_concavity() -> None:
    ours, theirs = strata_of(*[SMALL] * 30, *[LARGE] * 10, *[HUGE] * 5), strata_of(*[SMALL] * 10, *[LARGE] * 30)
    one, two = at_same_sizes(ours, theirs)
    assert one.mean == two.mean == pytest.approx(OF_AN_L / 2, abs=1e-8)
    assert one.shares == two.shares
    assert {bin: share for bin, share in enumerate(one.shares) if share} == {0: 0.5, 7: 0.5}
    assert (one.share_of_masks, two.share_of_masks) == (pytest.approx(40 / 45, abs=1e-8), 1.0)


def test_a_difference_at_one_size_is_seen_with_that_size_s_weight() -> None:
    ours, theirs = strata_of(*[SMALL] * 30, *[LARGE] * 10), strata_of(*[SMALL] * 10, *[CONVEX] * 30)
    one, two = at_same_sizes(ours, theirs)
    assert (one.mean, two.mean) == (pytest.approx(OF_AN_L / 2, abs=1e-8), 0)
    assert two.shares[0] == 1


def test_a_stratum_needs_enough_masks_in_both() -> None:
    few = strata_of(*[SMALL] * (LEAST_MASKS - 1), *[LARGE] * LEAST_MASKS)
    enough = strata_of(*[SMALL] * LEAST_MASKS, *[LARGE] * LEAST_MASKS)
    assert at_same_sizes(few, enough)[0].mean == pytest.approx(OF_AN_L, abs=1e-8)
    assert at_same_sizes(few, {}) == (ConcavityAtSizes(None, (), 0.0), ConcavityAtSizes(None, (), 0.0))
