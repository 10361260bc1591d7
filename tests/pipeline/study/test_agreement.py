"""Two people's answers to one image are compared mask by mask; the report says how far they agree."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from segmint.catalogs.dataset.annotations.answers import Answer, put_answer
from segmint.pipeline.report.report import write_report
from segmint.pipeline.study.agreement import agreement, measure_agreement, sum_up
from tests.support.answered import answer_to, answer_value, new_mask
from tests.support.locations import location_of
from tests.support.protocol import Place, two_shards
from tests.support.reported import QUICK

WHOLE, LESS, APART, OTHER = (2, 3, 12, 20), (2, 3, 12, 18), (22, 5, 28, 30), (15, 25, 20, 38)
IOU = 15 / 17  # of WHOLE and LESS


@pytest.fixture
def place() -> Iterator[Place]:
    with two_shards() as place:
        yield place


def answer(*boxes: tuple[int, int, int, int], **fields: Any) -> Answer:
    return Answer.from_value(answer_value(masks=[new_mask(box) for box in boxes], **fields))


def test_masks_of_one_object_are_paired_once_and_others_stay_alone() -> None:
    assert agreement(answer(WHOLE, APART), answer(OTHER, LESS)) == (pytest.approx(IOU),)
    assert agreement(answer(LESS, WHOLE), answer(WHOLE)) == (1.0,)
    assert agreement(answer(WHOLE), answer()) == ()


def test_the_mean_is_over_pairs_and_other_states_are_left_out() -> None:
    pairs = [
        (answer(WHOLE, APART), answer(LESS, APART)),
        (answer(WHOLE), answer(APART)),
        (answer(WHOLE), answer(WHOLE, base="cd" * 32)),
    ]
    found = sum_up(pairs)
    assert found is not None
    assert (found.images, found.pairs, found.alone) == (2, 2, 2)
    assert found.mean_iou == pytest.approx((IOU + 1) / 2)
    assert found.interval is None
    more = sum_up([*pairs, (answer(WHOLE), answer(LESS)), (answer(APART), answer(APART))])
    assert more is not None
    assert more.interval is not None
    assert IOU < more.interval[0] + 1e-9 < more.interval[1] <= 1
    assert sum_up(pairs[2:]) is None


def test_the_report_says_how_far_two_people_agree(place: Place, tmp_path: Path) -> None:
    assert measure_agreement(place.location) is None
    for image, box in ((1, LESS), (4, APART)):
        assert put_answer(place.location, answer_to(place.location, image, [new_mask(APART), new_mask(WHOLE)]))
        assert put_answer(place.location, answer_to(place.location, image, [new_mask(box)], lane=1, annotator="Bo"))
    assert put_answer(place.location, answer_to(place.location, 2, [new_mask(APART)]))
    found = measure_agreement(place.location)
    assert found is not None
    assert (found.images, found.pairs, found.alone) == (2, 2, 2)
    write_report(place.location, location_of(tmp_path / "report"), options=QUICK)
    page = " ".join((tmp_path / "report" / "index.html").read_text().split())
    assert "2 images were annotated by two people apart. 2 pairs of masks are of one object: mean IoU 0.941" in page
    assert "2 masks have no partner" in page
    assert "0.85 to 0.91 IoU" in page
    assert "Bo" not in page.partition("Annotated by two people")[2].partition("</p>")[0]
