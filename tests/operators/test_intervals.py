"""Intervals, against published and independent values, and their coverage in a part of the benchmark's simulation."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from benchmarks.evaluation.interval_coverage import FAILURES, mean_coverage, share_coverage
from segmint.operators.intervals import (
    LEAST_IMAGES,
    at_most,
    basis,
    figure_intervals,
    mean_intervals,
    share_interval,
    studentized,
    wilson,
)


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
    assert wilson(successes / trials, trials) == pytest.approx(expected, abs=5e-5)
    low, high = expected
    assert wilson(1 - successes / trials, trials) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_a_mean_of_many_normal_images_has_students_interval() -> None:
    values = np.random.default_rng(1).normal(0.7, 0.1, 400)
    ((low, high),) = mean_intervals(values[:, None], np.ones(400))
    expected = stats.t.interval(0.95, 399, values.mean(), stats.sem(values))
    assert (low, high) == pytest.approx(expected, abs=1e-3)
    assert mean_intervals(values[:, None], np.ones(400)) == [(low, high)]  # the same data, the same interval


def test_it_is_the_bootstrap_t_done_by_its_definition() -> None:
    random = np.random.default_rng(2)
    values = random.beta(6, 1, 15)
    error = stats.sem(values)
    drawn = random.choice(values, (20_000, 15))
    quotients = (drawn.mean(axis=1) - values.mean()) / (drawn.std(axis=1, ddof=1) / math.sqrt(15))
    low, high = np.quantile(quotients, [0.025, 0.975]) * (stats.t.ppf(0.975, 14) / stats.norm.ppf(0.975)) ** 2
    ((first, last),) = mean_intervals(values[:, None], np.ones(15))
    assert (first, last) == pytest.approx((values.mean() - high * error, values.mean() - low * error), abs=0.01)
    assert values.mean() - first > last - values.mean()  # IoUs have a left tail


def test_masks_of_an_image_that_are_alike_count_once() -> None:
    values, masks = np.random.default_rng(3).beta(6, 1, 30), np.full(30, 7.0)
    alone = mean_intervals(values[:, None], np.ones(30))
    assert mean_intervals((values * masks)[:, None], masks)[0] == pytest.approx(alone[0])
    over, all_masks = (values > 0.8).astype(int), np.full(30, 7)
    assert share_interval(over * 7, all_masks) == pytest.approx(share_interval(over, all_masks // 7), abs=1e-9)


def test_a_share_of_images_of_one_mask_is_wilsons_with_students_t() -> None:
    found = share_interval([1] * 8 + [0] * 2, [1] * 10)
    assert found == pytest.approx(wilson(0.8, 10, stats.t.ppf(0.975, 9)))
    assert found is not None
    assert found[1] - found[0] > 0.9433 - 0.4902


def test_independent_masks_count_each_and_images_without_masks_do_not() -> None:
    random = np.random.default_rng(4)
    trials = random.integers(5, 40, 200)
    successes = random.binomial(trials, 0.7)
    share, masks = successes.sum() / trials.sum(), trials.sum()
    found = share_interval(successes, trials)
    assert found == pytest.approx(wilson(share, masks, stats.t.ppf(0.975, 199)), abs=0.003)
    assert share_interval([*successes, 0, 0], [*trials, 0, 0]) == found
    assert share_interval([3] * 9 + [0], [4] * 9 + [0]) is None


@pytest.mark.parametrize("share", [0, 1])
def test_a_share_never_has_a_width_of_zero(share: int) -> None:
    few = share_interval([50 * share] * 10, [50] * 10)
    many = share_interval([50 * share] * 1000, [50] * 1000)
    for each, least in ((few, 0.25), (many, 0.003)):
        assert each is not None
        assert each[1] - each[0] > least


def test_too_few_images_have_no_interval() -> None:
    few = LEAST_IMAGES - 1
    values = np.random.default_rng(5).random((few, 1))
    assert mean_intervals(values, np.ones(few)) == [None]
    assert share_interval([1] * few, [2] * few) is None
    assert figure_intervals(values, lambda sums: sums, 0, 1)[1] == [None]
    more = np.random.default_rng(5).random((few + 1, 1))
    assert studentized([(more, np.ones(few + 1)), (values, np.ones(few))]) == [None]
    assert basis(few) == "too few images for an interval (9, expected 10 or more)"
    assert basis(few + 1) == "with 95% intervals by image"


def test_an_image_that_has_most_masks_leaves_no_interval() -> None:
    """The mean is that image's. With 95% of the masks, intervals would contain the true value in 2% of runs."""
    random = np.random.default_rng(8)
    ious = random.beta(4.8, 1.2, 30)
    for masks, known in ((60, True), (80, True), (120, False), (4000, False)):
        counts = np.full(30, 4.0)
        counts[0] = masks
        assert (mean_intervals((ious * counts)[:, None], counts)[0] is not None) is known, masks
        assert (share_interval(random.binomial(counts.astype(int), ious), counts) is not None) is known, masks
        equal = (random.random((30, 1)), np.ones(30))
        assert (studentized([equal, ((ious * counts)[:, None], counts)])[0] is not None) is known, masks
    over_images = mean_intervals(ious[:, None], np.ones(30))[0]
    assert over_images is not None
    assert over_images[1] - over_images[0] > 0.05


def test_images_that_are_alike_have_no_interval() -> None:
    values = np.full((40, 3), 0.1)
    values[:3, 1] = 0.9  # most resamples of 40 contain one of these, but too many don't
    values[:30, 2] = 0.9
    alike, few, many = mean_intervals(values, np.ones(40))
    assert alike is None
    assert few is None
    assert many is not None


def test_limits_cut_intervals() -> None:
    values = np.array([0.0] * 5 + [1.0] * 5)[:, None]
    (free,), (cut,) = (mean_intervals(values, np.ones(10), limits=each) for each in ((-9, 9), (0.3, 0.6)))
    assert free is not None
    assert free[0] < 0.3
    assert free[1] > 0.6
    assert cut == (0.3, 0.6)


def test_strata_are_resampled_within() -> None:
    random = np.random.default_rng(6)
    strata = [(random.normal(mean, 0.1, (50, 1)), np.ones(50)) for mean in (0.2, 0.8)]
    (interval,) = studentized(strata)
    error = np.sqrt(sum(values.var(ddof=1) / 50 for values, _ in strata)) / 2
    mean = np.mean([values.mean() for values, _ in strata])
    assert interval == pytest.approx((mean - 1.985 * error, mean + 1.985 * error), abs=0.004)


def ratio(sums: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.stack([sums[:, 0] / sums[:, 1], sums[:, 2] / sums[:, 3], -sums[:, 0] / sums[:, 1]], axis=1)


def test_a_figure_of_sums_has_the_interval_of_its_jackknife() -> None:
    random = np.random.default_rng(7)
    counts = random.integers(1, 9, 60)
    values = np.stack([random.random(60) * counts, counts, np.zeros(60), np.zeros(60)], axis=1)
    values[:5, 2:] = 1
    means, (first, rare, negative) = figure_intervals(values, ratio, 0, 2)
    assert means == pytest.approx([values[:, 0].sum() / counts.sum(), 1, -values[:, 0].sum() / counts.sum()])
    assert first == pytest.approx(mean_intervals(values[:, :1], counts.astype(float))[0], abs=0.005)
    assert rare is None  # five images are too few, whatever the number of others
    assert negative is not None
    assert negative == pytest.approx((-first[1], -first[0]), abs=0.01)
    assert figure_intervals(values * [1, 1, 0, 0], ratio, 0, 2)[0][1] is None


@pytest.mark.parametrize(
    ("coverage", "images"),
    [
        (lambda: mean_coverage(10, 1, FAILURES, 0.0, 500), 10),
        (lambda: mean_coverage(20, 10, 0.9, 0.3, 500), 20),
        (lambda: share_coverage(10, 100, 0.97, 0.3, 1500), 10),
        (lambda: share_coverage(12, 10, 0.9, 0.0, 1500), 12),
        (lambda: share_coverage(20, 100, 0.9, 0.3, 1500), 20),
    ],
)
def test_nineteen_of_twenty_intervals_contain_the_true_value(
    coverage: Callable[[], dict[str, float]], images: int
) -> None:
    found = coverage()
    assert (0.9 if images < 20 else 0.93) <= found["coverage"] <= 0.995
    assert found["without"] == 0


@pytest.mark.parametrize(("successes", "trials"), [(0, 3000), (1, 29), (15, 148), (148, 148)])
def test_the_upper_bound_leaves_five_percent(successes: int, trials: int) -> None:
    """By its definition: at that share, so few successes or fewer have a probability of 5%."""
    share = at_most(successes, trials)
    fewer = sum(math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(successes + 1))
    assert fewer == pytest.approx(1.0 if successes == trials else 0.05)


def test_nothing_in_3000_is_at_most_a_thousandth() -> None:
    assert at_most(0, 3000) == pytest.approx(0.000998, abs=5e-7)
