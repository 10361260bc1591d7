"""Intervals, against published and independent values."""

import math

import numpy as np
import pytest

from segmint.operators.intervals import at_most, bootstrap_mean, clustered, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    [
        # Newcombe (1998), Statistics in Medicine 17: 857-872, table I, method 3
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0000, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilsons_interval_is_the_published_one(successes: int, trials: int, expected: tuple[float, float]) -> None:
    assert wilson(successes, trials) == pytest.approx(expected, abs=5e-5)
    low, high = expected
    assert wilson(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_clusters_of_one_agree_with_the_normal_approximation() -> None:
    successes = [1] * 900 + [0] * 100
    interval = clustered(successes, [1] * 1000)
    assert interval is not None
    spread = 1.96 * math.sqrt(0.9 * 0.1 / 1000)
    assert interval == pytest.approx((0.9 - spread, 0.9 + spread), abs=0.003)


def test_masks_that_stand_and_fall_together_widen_it() -> None:
    alone = clustered([1] * 900 + [0] * 100, [1] * 1000)
    together = clustered([10] * 90 + [0] * 10, [10] * 100)
    assert alone is not None
    assert together is not None
    assert together[1] - together[0] > 2.5 * (alone[1] - alone[0])


def test_it_is_a_resampling_of_whole_images() -> None:
    successes, trials = np.array([9, 5, 20, 3, 7]), np.array([10, 10, 20, 4, 9])
    generator = np.random.default_rng(7)
    picks = generator.integers(0, 5, size=(40_000, 5))
    low, high = np.percentile(successes[picks].sum(axis=1) / trials[picks].sum(axis=1), [2.5, 97.5])
    assert clustered(successes.tolist(), trials.tolist()) == pytest.approx((low, high), abs=0.01)


def test_it_is_always_the_same_and_needs_two_images() -> None:
    assert clustered([1, 5, 2], [3, 5, 9]) == clustered([1, 5, 2], [3, 5, 9])
    assert clustered([3], [4]) is None
    assert clustered([3, 0], [4, 0]) is None
    assert clustered([], []) is None


def test_the_mean_of_many_values_agrees_with_the_normal_approximation() -> None:
    values = np.random.default_rng(3).normal(5, 2, 2000)
    spread = 1.96 * values.std() / math.sqrt(len(values))
    assert bootstrap_mean(values) == pytest.approx((values.mean() - spread, values.mean() + spread), abs=0.01)
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean(np.array([3.0, 3.0])) == (3.0, 3.0)


@pytest.mark.parametrize(("successes", "trials"), [(0, 3000), (1, 29), (15, 148), (148, 148)])
def test_the_upper_bound_leaves_five_percent(successes: int, trials: int) -> None:
    """By its definition: at that share, so few successes or fewer have a probability of 5 %."""
    share = at_most(successes, trials)
    fewer = sum(math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(successes + 1))
    assert fewer == pytest.approx(1.0 if successes == trials else 0.05)


def test_nothing_in_3000_is_at_most_a_thousandth() -> None:
    assert at_most(0, 3000) == pytest.approx(0.000998, abs=5e-7)
