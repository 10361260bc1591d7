"""Tests that take images as units, against values by hand and under no difference."""

from itertools import product

import numpy as np
import pytest

from segmint.operators.intervals import holm, relabel_p, sign_flip_p, swap_p


def test_few_images_signs_are_tried_out() -> None:
    differences = np.array([0.3, -0.1, 0.2, 0.4])
    all_sums = [
        abs(sum(sign * each for sign, each in zip(signs, differences, strict=True)))
        for signs in product((1, -1), repeat=4)
    ]
    expected = sum(each >= 0.8 - 1e-9 for each in all_sums) / 16
    assert sign_flip_p(differences[:, None], 0) == [expected]
    assert sign_flip_p(np.zeros((3, 1)), 0) == [1.0]


def test_random_signs_agree_with_all_of_them() -> None:
    differences = np.random.default_rng(3).normal(0.05, 0.1, (13, 1))
    everything = np.array(list(product((1, -1), repeat=13))) @ differences[:, 0]
    expected = (np.abs(everything) >= abs(differences.sum()) - 1e-9).mean()
    assert sign_flip_p(differences, 0) == [pytest.approx(expected, abs=0.02)]


def clustered(images: int, seed: int) -> np.ndarray:
    """Made-up IoUs of 1 to 9 masks an image that resemble one another: (I, 2), their sum and their number."""
    generator = np.random.default_rng(seed)
    counts = generator.integers(1, 10, images)
    means = generator.beta(6, 2, images)
    return np.array(
        [[np.clip(generator.normal(mean, 0.08, n), 0, 1).sum(), n] for mean, n in zip(means, counts, strict=True)]
    )


def split(scores: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.where(first[:, None], scores, 0), np.where(first[:, None], 0, scores)


def test_of_200_permutations_without_a_gap_2_to_9_percent_are_under_5() -> None:
    scores = clustered(80, 7)
    low = 0
    for seed in range(200):
        first = np.random.default_rng([seed, 1]).permutation(80) < 30
        found = relabel_p(*split(scores, first), seed, resamples=400)
        assert found is not None
        low += found[0] < 0.05
    assert 4 <= low <= 18


def test_a_planted_gap_is_found() -> None:
    scores = clustered(80, 7)
    first = np.arange(80) < 30
    scores[first, 0] -= 0.12 * scores[first, 1]
    found = relabel_p(*split(scores, first), 0)
    assert found is not None
    assert found[0] < 0.01


def test_images_with_masks_of_both_groups_are_swapped() -> None:
    generator = np.random.default_rng(5)
    first = np.stack([generator.normal(0.7, 0.02, 60), np.ones(60)], axis=1)
    second = np.stack([first[:, 0] + generator.normal(0, 0.01, 60), np.ones(60)], axis=1)
    nothing = relabel_p(first, second, 0, 2_000)
    second[:, 0] += 0.01
    gap = relabel_p(first, second, 0, 2_000)
    assert nothing is not None
    assert gap is not None
    assert nothing[0] > 0.05 > 0.001 > gap[0]
    assert relabel_p(first, np.zeros_like(second), 0) is None


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_exchanged_images_show_a_difference_and_chance_none() -> None:
    random = np.random.default_rng(8)
    shared = random.random((40, 1))
    low = 0
    for seed in range(100):
        noise = random.normal(0, 0.1, (40, 2))
        values = np.concatenate([np.ones((40, 1)), shared + noise], axis=1)
        (p,) = swap_p(values, values[:, [0, 2, 1]], gap_of_means, seed, 199)
        assert p is not None
        low += p <= 0.05
    assert 1 <= low <= 12
    values[:, 2] += 0.2
    assert swap_p(values, values[:, [0, 2, 1]], gap_of_means, 0, 199) == [1 / 200]
    assert swap_p(values * 0, values * 0, gap_of_means, 0, 199) == [None]


def test_an_exchange_without_a_defined_difference_is_no_evidence() -> None:
    """Recall at half precision is undefined if the exchanged model's precision is never that high."""
    values = np.concatenate([np.ones((20, 1)), np.random.default_rng(9).random((20, 2))], axis=1)
    values[:, 2] += 0.1 + values[:, 1].mean() - values[:, 2].mean()

    def positive(sums: np.ndarray) -> np.ndarray:
        gap = gap_of_means(sums)
        return np.where(gap < 0, np.nan, gap)

    (known,), (partly,) = (swap_p(values, values[:, [0, 2, 1]], each, 0) for each in (gap_of_means, positive))
    assert known is not None
    assert partly is not None
    assert partly >= known > 0.05


def gap_of_means(sums: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return (sums[:, 2:] - sums[:, 1:2]) / sums[:, :1]
