"""Scores of a gate by image and role, from rows of results."""

import pyarrow as pa
import pytest

from segmint.catalogs.lineage import TrainingRound
from segmint.operators.schemas import SOURCES
from segmint.pipeline.engine.evaluate.gate.lineage import Lineage
from segmint.pipeline.engine.evaluate.gate.verdict import Role, ScoreSums, role_of, role_of_corrected
from segmint.pipeline.engine.evaluate.measure import EvaluatedWeights


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
