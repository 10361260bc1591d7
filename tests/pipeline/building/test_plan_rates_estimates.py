import math

import numpy as np
import pytest

from segmint.pipeline.building.plan_rates import Estimate, Extrapolation


def test_the_spread_narrows_with_the_sample_and_holds_its_value() -> None:
    random = np.random.default_rng(1)
    few, many = random.lognormal(size=10), random.lognormal(size=500)
    wide, narrow = Extrapolation(10**6, 10).total(few), Extrapolation(10**6, 500).total(many)
    for estimate in (wide, narrow):
        assert estimate.low < estimate.value < estimate.high
    assert (narrow.high - narrow.low) / narrow.value < (wide.high - wide.low) / wide.value / 2
    # The normal interval of a mean, which the bootstrap's must be close to for many rows.
    half = 1.96 * many.std() / math.sqrt(500) * 10**6
    assert narrow.high - narrow.low == pytest.approx(2 * half, rel=0.1)
    two = Extrapolation(100, 2).total(np.array([1.0, 3.0]))
    assert (two.low, two.value, two.high) == (100, 200, 300)
    assert Extrapolation(2, 2).total(np.array([1.0, 3.0])) == Estimate(4, 4, 4)


def test_a_share_of_rows_is_never_certain_from_a_few() -> None:
    """Wilson's interval of 8 in 10, as in Brown, Cai and DasGupta (2001): 0.490 to 0.943."""
    found = Extrapolation(1000, 10).count(np.array([1.0] * 8 + [0.0] * 2))
    assert (found.low, found.value, found.high) == pytest.approx((490.2, 800, 943.3), abs=0.2)
    assert Extrapolation(1000, 3).count(np.ones(3)).low == pytest.approx(438.5, abs=0.1)
    assert Extrapolation(3, 3).count(np.ones(3)) == Estimate(3, 3, 3)
