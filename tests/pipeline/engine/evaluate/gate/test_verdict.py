"""Verdicts from scores by image and role: planted differences, null differences, too few images, guard sets."""

import numpy as np
import pyarrow as pa
import pytest

from segmint.catalogs.lineage import TrainingRound
from segmint.operators.intervals import LEAST_IMAGES
from segmint.operators.schemas import SOURCES
from segmint.pipeline.engine.evaluate.gate.lineage import Lineage
from segmint.pipeline.engine.evaluate.gate.verdict import (
    GUARD_LIMIT,
    MEASURES,
    GateVerdict,
    GuardComparison,
    Role,
    ScoreSums,
    compare,
    decide,
    role_of,
    role_of_corrected,
)
from segmint.pipeline.engine.evaluate.measure import EvaluatedWeights
from segmint.pipeline.engine.evaluate.points.scores import ImageScores


def row(truth: int, image: str, source: str | None, weights: int, iou: float) -> dict[str, object]:
    return {
        "truth": truth,
        "image_id": image,
        "image": f"{image}.jpg",
        "mask": 1,
        "source": source,
        "weights": weights,
        "iou_1": iou,
    }


class SourceRoles:
    """Masks have the roles of their sources, and each image is alone."""

    def role(self, truth: int, mask: int, source: str | None) -> Role:
        return role_of(source)

    def group(self, truth: int, image: str) -> int | None:
        return None


class TwinRoles(SourceRoles):
    """The images of two truths show the same where their names agree."""

    def group(self, truth: int, image: str) -> int | None:
        return ord(image[0])


def test_masks_are_summed_by_image_and_role() -> None:
    tally = ScoreSums(("iou_1",), SourceRoles())
    masks = [
        (0, "a", "manual", 0.5, 0.7),
        (0, "a", "assisted", 0.1, 0.9),
        (0, "a", "corrected", 0.5, 0.6),
        (0, "b", None, 0.2, 0.3),
        (1, "a", "imported", 0.4, 0.4),
        (1, "c", "automatic", 0.0, 1.0),
    ]
    for part in (masks[:2], masks[2:]):
        tally.add(
            pa.Table.from_pylist(
                [row(*mask[:3], weights, iou) for mask in part for weights, iou in enumerate(mask[3:])]
            )
        )
    independent = tally.scores([Role.INDEPENDENT])
    assert list(zip(independent.truth.tolist(), independent.image_id, strict=True)) == [(0, "a"), (0, "b"), (1, "a")]
    assert independent.counts.tolist() == [2, 1, 1]
    assert independent.differences()[:, 0] == pytest.approx([0.3, 0.1, 0.0])
    assisted = tally.scores([Role.ASSISTED])
    assert (assisted.image_id, assisted.counts.tolist()) == (("a",), [1])
    of_second = tally.scores(tuple(Role), truth=1)
    assert (of_second.image_id, of_second.masks) == (("a", "c"), 2)
    assert tally.scores([Role.AUTOMATIC], truth=0).masks == 0


def test_the_role_of_each_source() -> None:
    roles = {source: role_of(source) for source in SOURCES}
    assert {source for source, role in roles.items() if role is not Role.INDEPENDENT} == {"automatic", "assisted"}
    assert role_of(None) is Role.INDEPENDENT


def lineage(*hashes: str) -> Lineage:
    links = tuple(TrainingRound(weights=each * 64, name=each) for each in hashes)
    return Lineage(EvaluatedWeights(hashes[-1], hashes[-1] * 64), True, links)


@pytest.mark.parametrize(
    ("model", "first", "second", "role"),
    [
        ("1", ("0", "1"), ("0", "1", "2"), Role.FAVORS_FIRST),  # the usual turn: the first weights built the dataset
        ("0", ("0", "1"), ("0", "1", "2"), Role.FAVORS_FIRST),  # the first are nearer to what both descend from
        ("2", ("0", "1"), ("0", "1", "2"), Role.ASSISTED),
        ("0", ("0", "1"), ("0", "2"), Role.ASSISTED),  # which of two sisters is nearer is not known
        ("0", ("0", "1"), ("0",), Role.ASSISTED),  # back to older weights
        ("1", ("0", "1"), ("0",), Role.FAVORS_FIRST),
        ("9", ("0", "1"), ("0", "1", "2"), Role.INDEPENDENT),
    ],
)
def test_a_corrected_mask_favors_the_weights_that_made_it(
    model: str, first: tuple[str, ...], second: tuple[str, ...], role: Role
) -> None:
    assert role_of_corrected(model * 64, lineage(*first), lineage(*second)) is role


def test_images_that_show_the_same_are_one_unit() -> None:
    tally = ScoreSums(("iou_1",), TwinRoles())
    masks = [(truth, image, weights) for truth in (0, 1) for image in "ab" for weights in (0, 1)]
    tally.add(pa.Table.from_pylist([row(truth, image, "manual", weights, 0.5) for truth, image, weights in masks]))
    scores = tally.scores([Role.INDEPENDENT])
    assert (scores.image_id, scores.counts.tolist()) == (("a", "b"), [2, 2])


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
    assert 2 <= wrong <= 18  # 1 to 9%


def test_too_few_images_show_nothing() -> None:
    compared = compare(scores_of(np.full((LEAST_IMAGES - 1, len(MEASURES)), 0.3)), 0)
    verdict, reasons = decide(compared, [])
    assert verdict is GateVerdict.NO_DIFFERENCE
    assert [each.interval for each in compared] == [None] * len(MEASURES)
    assert reasons == ("only 9 images with independent masks, but an interval needs 10",)


def test_few_images_that_change_show_nothing() -> None:
    """The mean of many equal differences and a few others has no interval whose coverage is known."""
    changes = np.zeros((30, len(MEASURES)))
    changes[0] = 0.3
    verdict, reasons = decide(compare(scores_of(changes), 0), [GuardComparison("g", compare(scores_of(changes), 0))])
    assert verdict is GateVerdict.NO_DIFFERENCE
    assert reasons == (
        "too few of the 30 images with independent masks change, or one has most of these masks",
        "the guard set g can't decide: too few of its 30 images change, or one has most masks",
    )


@pytest.mark.parametrize("measure", ["oracle_1", "iou_3"])
def test_a_guard_set_is_judged_by_each_measure_that_decides(measure: str) -> None:
    """Three images collapse in one of them, and all change in the others."""
    changes = noise(30, 4, 0.001)
    changes[:, MEASURES.index(measure)] = 0
    changes[:3, MEASURES.index(measure)] = -0.9
    guard = GuardComparison("g", compare(scores_of(changes), 0))
    assert [each.interval is None for each in guard.compared] == [name == measure for name in MEASURES]
    assert not guard.judged
    verdict, reasons = decide(compare(scores_of(0.1 + noise(30, 3)), 0), [guard])
    assert verdict is GateVerdict.BETTER
    assert reasons[1:] == ("the guard set g can't decide: too few of its 30 images change, or one has most masks",)


def test_without_truth_there_is_no_verdict() -> None:
    verdict, reasons = decide(compare(scores_of(np.zeros((0, len(MEASURES)))), 0), [])
    assert verdict is GateVerdict.NO_TRUTH
    assert reasons == ("no independent masks of held-out images could be measured",)


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
        "the guard set photographs can't decide: it has 3 images, but needs 10",
        "the guard set empty can't decide: it has 0 images, but needs 10",
    )


def test_a_guard_set_decides_without_truth_too() -> None:
    guard = GuardComparison("photographs", compare(scores_of(np.full((20, len(MEASURES)), -0.02)), 0))
    verdict, reasons = decide((), [guard])
    assert verdict is GateVerdict.WORSE
    assert reasons[0] == (
        "on the guard set photographs, the mean IoU (best of three) changes by -2.0 (-2.0 to -2.0): the whole interval "
        "is below -1.0"
    )


def test_masks_that_favor_the_first_weights_do_not_make_the_second_worse() -> None:
    with_them, alone = (compare(scores_of(change + noise(30, 3)), 0) for change in (-0.1, 0.0))
    verdict, reasons = decide(with_them, [], alone)
    assert verdict is GateVerdict.NO_DIFFERENCE
    assert reasons[0].endswith("but not without the masks that favor the first weights")
    assert decide(with_them, [], with_them)[0] is GateVerdict.WORSE
    assert decide(with_them, [], ())[0] is GateVerdict.NO_DIFFERENCE
    assert decide(compare(scores_of(0.1 + noise(30, 3)), 0), [], ())[0] is GateVerdict.BETTER
