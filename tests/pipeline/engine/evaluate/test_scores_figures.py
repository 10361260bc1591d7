"""Means, differences and groups from recorded scores, by hand and by chance alone."""

import numpy as np
import pytest

from segmint.operators.annotations.image import encode_mask
from segmint.operators.evaluate.points import NoNumberError
from segmint.pipeline.engine.evaluate import scores as scores_module
from segmint.pipeline.engine.evaluate.result import PartlyMeasuredError, Predictions
from segmint.pipeline.engine.evaluate.scores import ImageScores, PointsMeasure, groups_of, means_of
from segmint.pipeline.engine.evaluate.truth import TruthImage, TruthMask


def scores(*units: tuple[int, str, str | None, list[float]], second: float = 0.0) -> ImageScores:
    """Units of (truth, image, group, IoUs) for two weights; the second ones are higher by `second`."""
    sums = [[[sum(values)], [sum(values) + second * len(values)]] for *_, values in units]
    return ImageScores(
        ("iou_1",),
        np.array([truth for truth, *_ in units]),
        tuple(image for _, image, *_ in units),
        tuple(group for _, _, group, _ in units),
        np.array([float(len(values)) for *_, values in units]),
        np.array(sums),
    )


def test_means_over_masks_images_and_datasets() -> None:
    found = means_of(
        scores((0, "a", None, [0.5, 0.7]), (0, "b", None, [0.9]), (1, "a", None, [0.2]), (1, "b", None, [0.4])),
        2,
        0,
    )
    values = {(each.truth, each.over): each.mean for each in found.scores if each.weights == 0}
    assert values == pytest.approx(
        {
            (None, "masks"): 2.7 / 5,
            (None, "images"): (0.6 + 0.9 + 0.2 + 0.4) / 4,
            (None, "datasets"): (0.7 + 0.3) / 2,
            (0, "masks"): 0.7,
            (0, "images"): 0.75,
            (1, "masks"): 0.3,
            (1, "images"): 0.3,
        }
    )
    sizes = {(each.truth, each.over): (each.images, each.masks) for each in found.scores}
    assert (sizes[None, "masks"], sizes[0, "images"], sizes[None, "datasets"]) == ((4, 5), (2, 3), (4, 5))
    assert {each.interval for each in found.scores} == {None}  # too few images


def test_every_mean_of_enough_images_has_an_interval() -> None:
    one, other = made_up(3, 0.0), made_up(4, 0.1)
    both = ImageScores(
        one.measures,
        np.repeat([0, 1], 40),
        (*one.image_id, *other.image_id),
        (None,) * 80,
        np.concatenate([one.counts, other.counts]),
        np.concatenate([one.sums, other.sums]),
    )
    found = means_of(both, 2, 0)
    for each in found.scores:
        assert each.interval is not None
        assert each.interval[0] <= each.mean <= each.interval[1]
    datasets, masks = found.mean("iou_1", over="datasets"), found.mean("iou_1", truth=0)
    assert datasets.interval is not None
    assert masks.interval is not None
    assert datasets.interval[1] - datasets.interval[0] < masks.interval[1] - masks.interval[0]


def test_a_unit_for_each_group_counts_as_one_image() -> None:
    found = means_of(scores((0, "a", "x", [0.5]), (0, "a", "y", [0.9])), 1, 0)
    assert found.mean("iou_1").mean == pytest.approx(0.7)
    assert found.mean("iou_1").interval is None
    with pytest.raises(KeyError):
        found.mean("iou_2")


def made_up(seed: int, gap: float, images: int = 40) -> ImageScores:
    """Images of groups x and y, and the same of the third group z."""
    generator = np.random.default_rng(seed)
    units = []
    for number in range(images):
        group = "xyz"[number % 3]
        mean = generator.beta(8, 3) - gap * (group == "y")
        units.append((0, str(number), group, list(generator.normal(mean, 0.05, int(generator.integers(1, 6))))))
    return scores(*units, second=0.02)


def test_the_difference_of_two_weights_is_paired() -> None:
    found = means_of(made_up(0, 0.0), 1, 0)
    for over in ("masks", "images"):
        (difference,) = (each for each in found.differences if (each.measure, each.over) == ("iou_1", over))
        assert difference.mean == pytest.approx(0.02)
        assert difference.interval is None  # the same in all images
    assert found.difference("iou_1").p is not None
    assert found.difference("iou_1").p < 0.01
    width = found.mean("iou_1").interval
    assert width is not None
    assert width[1] - width[0] > 0.03


def test_a_planted_gap_between_groups_is_found_and_the_others_are_not() -> None:
    means, pairs = groups_of(made_up(1, 0.25), ("iou_1",), 0)
    assert [(each.group, each.images) for each in means if each.weights == 0] == [("x", 14), ("y", 13), ("z", 13)]
    found = {(pair.first, pair.second): pair for pair in pairs if pair.weights == 0}
    assert found["x", "y"].difference > 0.1
    for pair in (found["x", "y"], found["y", "z"]):
        assert pair.holm is not None
        assert pair.p is not None
        assert pair.p <= pair.holm < 0.05
    assert found["x", "z"].holm is not None
    assert found["x", "z"].holm > 0.2


def test_of_200_permutations_of_recorded_scores_2_to_9_percent_are_under_5() -> None:
    recorded = made_up(2, 0.0, images=60)
    low = 0
    for seed in range(200):
        labels = np.random.default_rng([seed, 9]).permutation(["x"] * 25 + ["y"] * 35)
        shuffled = ImageScores(
            recorded.measures, recorded.truth, recorded.image_id, tuple(labels), recorded.counts, recorded.sums
        )
        (pair, _) = groups_of(shuffled, ("iou_1",), seed)[1]
        assert pair.p is not None
        low += pair.p < 0.05
    assert 4 <= low <= 18


def test_a_group_of_one_image_and_masks_without_a_group() -> None:
    means, pairs = groups_of(scores((0, "a", "x", [0.5]), (0, "b", "y", [0.9]), (0, "c", None, [0.1])), ("iou_1",), 0)
    assert [(each.group, each.mean, each.interval) for each in means if not each.weights] == [
        ("x", 0.5, None),
        ("y", 0.9, None),
    ]
    assert pairs[0].p == 1.0


def test_weights_that_fail_and_missing_predictions_are_both_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise NoNumberError("not a number")

    monkeypatch.setattr(scores_module, "click_masks", fail)
    monkeypatch.setattr(scores_module, "with_embeddings", lambda models, _: [(None, None), models[1]])
    mask = TruthMask(7, encode_mask(np.ones((4, 4), np.uint8)), 16)
    image = TruthImage(0, "1", "a.png", np.zeros((4, 4, 3), np.uint8), (mask,))
    with pytest.raises(PartlyMeasuredError) as caught:
        PointsMeasure().rows([None, Predictions("clicks.json", "")], image)
    assert len(caught.value.rows) == 2
    assert str(caught.value) == (
        "counted with scores of 0 for the first weights: not a number; counted with scores of 0: 1 mask without a "
        "prediction in clicks.json"
    )
