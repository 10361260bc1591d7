"""Scores of a gate by image and role, from rows of results."""

import pyarrow as pa
import pytest

from segmint.operators.schemas import SOURCES
from segmint.pipeline.evaluate.gate.tally import Role, Tally, role_of


def row(truth: int, image: str, source: str | None, weights: int, iou: float) -> dict[str, object]:
    return {"truth": truth, "image_id": image, "source": source, "weights": weights, "iou_1": iou}


def test_masks_are_summed_by_image_and_role() -> None:
    tally = Tally(("iou_1",))
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
