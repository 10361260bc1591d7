"""Two people's answers to one image are compared mask by mask; the report says how far they agree."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from segmint.catalogs.dataset.submissions import Submission, put_submission
from segmint.pipeline.corrections.merge import merge_submissions
from segmint.pipeline.engine.annotate.queue import ProgressBoard
from segmint.pipeline.quality.report.report import write_report
from segmint.pipeline.quality.statistics.ratings import agreement, measure_agreement, sum_up
from tests.support.locations import location_of
from tests.support.protocol import DatasetPath, two_shards
from tests.support.reported import QUICK
from tests.support.submissions import answer_to, answer_value, new_mask

WHOLE, LESS, APART, OTHER = (2, 3, 12, 20), (2, 3, 12, 18), (22, 5, 28, 30), (15, 25, 20, 38)
IOU = 15 / 17  # of WHOLE and LESS


@pytest.fixture
def place() -> Iterator[DatasetPath]:
    with two_shards() as place:
        yield place


def answer(*boxes: tuple[int, int, int, int], **fields: Any) -> Submission:
    return Submission.from_value(answer_value(masks=[new_mask(box) for box in boxes], **fields))


def test_masks_of_one_object_are_paired_once_and_others_stay_alone() -> None:
    assert agreement(answer(WHOLE, APART), answer(OTHER, LESS)) == (pytest.approx(IOU),)
    assert agreement(answer(LESS, WHOLE), answer(WHOLE)) == (1.0,)
    assert agreement(answer(WHOLE), answer()) == ()


def test_masks_that_nobody_touched_are_nobodys() -> None:
    box = {"kind": "box", "x": 3.0, "y": 2.0, "w": 17.0, "h": 10.0}
    filled = new_mask(WHOLE, seconds=0, prompts=[box])
    both = [
        Submission.from_value(answer_value(stage="semi", masks=[filled, new_mask(each)])) for each in (APART, OTHER)
    ]
    assert agreement(*both) == ()
    found = sum_up([(both[0], both[1])])
    assert found is not None
    assert (found.images, found.pairs, found.unpaired) == (1, 0, 2)


def test_the_mean_is_over_pairs() -> None:
    pairs = [(answer(WHOLE, APART), answer(LESS, APART)), (answer(WHOLE), answer(APART))]
    found = sum_up(pairs)
    assert found is not None
    assert (found.images, found.pairs, found.unpaired) == (2, 2, 2)
    assert found.mean_iou == pytest.approx((IOU + 1) / 2)
    assert found.interval is None
    more = sum_up([*pairs, *[(answer(WHOLE), answer(LESS)), (answer(APART), answer(APART))] * 6])
    assert more is not None
    assert more.mean_iou is not None
    assert more.interval is not None
    assert IOU < more.interval[0] < more.mean_iou < more.interval[1] <= 1
    assert sum_up([]) is None


def test_what_was_said_apart_is_compared_whatever_came_later(place: DatasetPath) -> None:
    """Ada's answer is merged, and she goes on; Bo's to the same state stays the one to compare with her first."""
    for image, assignment, box, annotator in (
        (1, 0, OTHER, "Ada"),
        (1, 1, (15, 25, 20, 37), "Bo"),
        (2, 0, OTHER, "Ada"),
    ):
        given = answer_to(place.location, image, [new_mask(box)], assignment=assignment, annotator=annotator)
        assert put_submission(place.location, given)
    before = measure_agreement(place.location)
    assert before is not None
    assert (before.images, before.pairs, before.mean_iou) == (1, 1, pytest.approx(12 / 13))
    merge_submissions(place.location)
    assert put_submission(place.location, answer_to(place.location, 1, [new_mask(APART)], n=2))
    late = answer_to(place.location, 2, [new_mask(APART)], assignment=1, annotator="Bo")  # who has seen Ada's masks
    assert put_submission(place.location, late)
    assert measure_agreement(place.location) == before
    board = ProgressBoard(place.location)
    assert board.progress([])["agreement"] == {"images": 1, "pairs": 1, "mean_iou": pytest.approx(12 / 13)}


def test_the_report_says_how_far_two_people_agree(place: DatasetPath, tmp_path: Path) -> None:
    assert measure_agreement(place.location) is None
    for image, box in ((1, LESS), (4, APART)):
        assert put_submission(place.location, answer_to(place.location, image, [new_mask(APART), new_mask(WHOLE)]))
        assert put_submission(
            place.location, answer_to(place.location, image, [new_mask(box)], assignment=1, annotator="Bo")
        )
    assert put_submission(place.location, answer_to(place.location, 2, [new_mask(APART)]))
    found = measure_agreement(place.location)
    assert found is not None
    assert (found.images, found.pairs, found.unpaired) == (2, 2, 2)
    write_report(place.location, location_of(tmp_path / "report"), options=QUICK)
    page = " ".join((tmp_path / "report" / "index.html").read_text().split())
    assert (
        "2 images were annotated independently by two people. 2 pairs of masks show the same object: mean IoU 0.941"
        in page
    )
    assert "2 of 6 masks have no partner" in page
    assert "0.85 to 0.91 IoU" in page
    assert "Bo" not in page.partition("Annotated by two people")[2].partition("</p>")[0]
