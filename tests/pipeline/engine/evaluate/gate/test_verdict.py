"""Verdicts from scores by image: planted differences, null differences, too few images, guard sets."""

import numpy as np
import pytest

from segmint.pipeline.engine.evaluate.gate.verdict import (
    GUARD_LIMIT,
    LEAST_IMAGES,
    MEASURES,
    GateVerdict,
    GuardComparison,
    compare,
    decide,
)
from segmint.pipeline.engine.evaluate.points.scores import ImageScores


def scores_of(differences: np.ndarray, seed: int = 0, images: int | None = None) -> ImageScores:
    """Scores of two weights on images of 1 to 6 masks; the second's are higher by (I, M) a mask."""
    random = np.random.default_rng([seed, 1])
    count = len(differences) if images is None else images
    masks = random.integers(1, 7, count).astype(np.float64)
    first = random.uniform(0.3, 0.8, (count, len(MEASURES))) * masks[:, None]
    sums = np.stack([first, first + differences * masks[:, None]], axis=1)
    return ImageScores(MEASURES, np.zeros(count, np.int64), tuple(map(str, range(count))), (None,) * count, masks, sums)


def noise(images: int, seed: int, spread: float = 0.1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, (images, len(MEASURES)))


def verdict_of(truth: np.ndarray, *guards: np.ndarray) -> GateVerdict:
    return decide(compare(scores_of(truth), 0), [GuardComparison("g", compare(scores_of(each), 0)) for each in guards])[
        0
    ]


@pytest.mark.parametrize(
    ("gain", "verdict"), [(0.1, GateVerdict.BETTER), (-0.1, GateVerdict.WORSE), (0.002, GateVerdict.NO_DIFFERENCE)]
)
def test_a_planted_difference_is_found(gain: float, verdict: GateVerdict) -> None:
    assert verdict_of(gain + noise(30, 3)) is verdict


def test_one_click_alone_decides() -> None:
    differences = noise(30, 3, 0.01)
    differences[:, MEASURES.index("iou_3")] -= 0.3
    differences[:, MEASURES.index("oracle_1")] -= 0.3
    differences[:, MEASURES.index("iou_1")] += 0.1
    assert verdict_of(differences) is GateVerdict.BETTER


def test_equal_scores_have_an_interval_of_zero() -> None:
    compared = compare(scores_of(np.zeros((LEAST_IMAGES, len(MEASURES)))), 0)
    assert [each.interval for each in compared] == [(0.0, 0.0)] * len(MEASURES)
    assert decide(compared, [])[0] is GateVerdict.NO_DIFFERENCE


def test_weights_without_a_difference_seldom_get_one() -> None:
    """The signs of whole images' differences are flipped: no side is better."""
    images, found = LEAST_IMAGES, []
    for seed in range(200):
        differences = noise(images, seed) + np.random.default_rng([seed, 2]).choice([-0.4, 0, 0, 0, 0.4], (images, 1))
        signs = np.random.default_rng([seed, 3]).choice([-1, 1], (images, 1))
        found.append(decide(compare(scores_of(signs * differences, seed), 0, resamples=1000), [])[0])
    wrong = sum(verdict is not GateVerdict.NO_DIFFERENCE for verdict in found)
    assert 2 <= wrong <= 18  # 1 to 9 %


def test_too_few_images_show_nothing() -> None:
    compared = compare(scores_of(np.full((LEAST_IMAGES - 1, len(MEASURES)), 0.3)), 0)
    verdict, reasons = decide(compared, [])
    assert verdict is GateVerdict.NO_DIFFERENCE
    assert [each.interval for each in compared] == [None] * len(MEASURES)
    assert reasons == ("only 9 images with independent masks: an interval needs 10",)


def test_without_truth_there_is_no_verdict() -> None:
    verdict, reasons = decide(compare(scores_of(np.zeros((0, len(MEASURES)))), 0), [])
    assert verdict is GateVerdict.NO_TRUTH
    assert reasons == ("no independent mask of a held-out image could be measured",)


def test_a_guard_set_that_gets_worse_decides() -> None:
    gain, level = 0.1 + noise(30, 3), noise(30, 4, 0.001)
    for measure, verdict in (
        ("oracle_1", GateVerdict.WORSE),
        ("iou_3", GateVerdict.WORSE),
        ("iou_1", GateVerdict.BETTER),
    ):
        guard = level.copy()
        guard[:, MEASURES.index(measure)] += 2 * GUARD_LIMIT
        assert verdict_of(gain, level, guard) is verdict, measure
    assert verdict_of(gain, level + 0.5 * GUARD_LIMIT) is GateVerdict.BETTER
    assert verdict_of(gain, noise(30, 5, 0.3) + 2 * GUARD_LIMIT) is GateVerdict.BETTER  # its interval is wide


def test_a_guard_set_that_gets_better_does_not_decide() -> None:
    assert verdict_of(noise(30, 3), noise(30, 4, 0.01) + 0.2) is GateVerdict.NO_DIFFERENCE


def test_a_guard_set_with_too_few_images_says_so() -> None:
    few = GuardComparison("photographs", compare(scores_of(np.full((3, len(MEASURES)), -0.5)), 0))
    verdict, reasons = decide(compare(scores_of(0.1 + noise(30, 3)), 0), [few, GuardComparison("empty", ())])
    assert verdict is GateVerdict.BETTER
    assert reasons[1:] == (
        "the guard set photographs could not decide: it has 3 images, and 10 are needed",
        "the guard set empty could not decide: it has 0 images, and 10 are needed",
    )


def test_a_guard_set_decides_without_truth_too() -> None:
    guard = GuardComparison("photographs", compare(scores_of(np.full((20, len(MEASURES)), -0.02)), 0))
    verdict, reasons = decide((), [guard])
    assert verdict is GateVerdict.WORSE
    assert reasons[0] == (
        "on the guard set photographs the mean IoU (best of three) changes by -2.0 (-2.0 to -2.0): all of the interval "
        "is below -1.0"
    )


def test_masks_that_favor_the_first_weights_do_not_make_the_second_worse() -> None:
    with_them, alone = (compare(scores_of(change + noise(30, 3)), 0) for change in (-0.1, 0.0))
    verdict, reasons = decide(with_them, [], alone)
    assert verdict is GateVerdict.NO_DIFFERENCE
    assert reasons[0].endswith("but not over the masks alone that do not favor the first weights")
    assert decide(with_them, [], with_them)[0] is GateVerdict.WORSE
    assert decide(with_them, [], ())[0] is GateVerdict.NO_DIFFERENCE
    assert decide(compare(scores_of(0.1 + noise(30, 3)), 0), [], ())[0] is GateVerdict.BETTER
