"""A study is scored from answers given in the browser, whatever was merged in between."""

from pathlib import Path

import pytest

from segmint.catalogs.dataset.submissions import Return, Submission, put_return, put_submission
from segmint.operators.describe import describe_table
from segmint.operators.rows import SEGMENTED, to_table
from segmint.pipeline.corrections.merge import merge_submission, merge_submissions
from segmint.pipeline.engine.study.sample import sample_study
from segmint.pipeline.engine.study.score import follow, score_study
from tests.support.described_rows import accepted_row
from tests.support.imported import import_coco, write_coco
from tests.support.locations import location_of
from tests.support.protocol import two_shards
from tests.support.submissions import answer_to, answer_value, counts_of, new_mask

FIRST, SECOND, APART, OTHER = (2, 3, 12, 20), (3, 4, 13, 21), (22, 5, 28, 30), (15, 25, 20, 38)
CUT, LOW, LESS = (3, 4, 11, 21), (3, 4, 10, 21), (3, 4, 9, 21)  # of SECOND


def test_answers_are_the_corrections_before_and_after_they_are_merged(tmp_path: Path) -> None:
    """One mask changed twice with a merge in between, one deleted, one added, two left, an image without an answer."""
    with two_shards() as place:
        dataset, study = place.location, location_of(tmp_path / "study")
        sample_study(dataset, 4, 0, study)
        assert put_submission(dataset, answer_to(dataset, 1, [new_mask(CUT, 10_001), new_mask(APART)]))
        assert put_submission(dataset, answer_to(dataset, 2, deleted=[20_000]))
        assert put_submission(dataset, answer_to(dataset, 4))
        assert put_submission(
            dataset, answer_to(dataset, 4, deleted=[40_000], assignment=1)
        )  # the other assignment does not count
        before = score_study(study, dataset)
        assert (before.images, before.answered, before.by_id, before.by_iou) == (4, 3, 5, 0)
        assert (before.deleted, before.added, before.unanswered_masks, before.unread) == (1, 1, 2, 0)
        assert before.mean_iou == pytest.approx((4 + 8 / 10) / 5)
        value = {"image": 1, "assignment": 0, "n": 1, "by": "Ada", "comment": "x", "saved_at": "2026-11-22T10:00:00Z"}
        assert put_return(dataset, Return.model_validate(value))
        returned = score_study(study, dataset)
        assert (returned.answered, returned.deleted, returned.unanswered_masks) == (2, 1, 4)
        (dataset / "annotations/0/0.1.return.json").delete()
        merge_submissions(dataset)
        assert score_study(study, dataset) == before
        assert put_submission(dataset, answer_to(dataset, 1, [new_mask(LESS, 10_002)], n=2))
        after = score_study(study, dataset)
        assert (after.by_id, after.added) == (5, 1)
        assert after.mean_iou == pytest.approx((4 + 6 / 10) / 5)


def test_the_score_follows_what_a_merge_takes(tmp_path: Path) -> None:
    """An answer is not merged before a file changes its image, and the next one does not say it again."""
    with two_shards() as place:
        dataset, study = place.location, location_of(tmp_path / "study")
        sample_study(dataset, 4, 0, study)
        assert put_submission(dataset, answer_to(dataset, 1, [new_mask(CUT, 10_001), new_mask(APART)]))
        import_coco(place, write_coco(place, {1: [(FIRST, 10_000), (SECOND, 10_001), (OTHER, None)]}))
        assert put_submission(dataset, answer_to(dataset, 1, [new_mask(LOW, 10_001)], deleted=[10_000], n=2))
        before = score_study(study, dataset)
        assert (before.answered, before.by_id, before.deleted, before.added) == (1, 1, 1, 1)
        assert before.mean_iou == pytest.approx(7 / 10)
        merge_submissions(dataset)
        assert score_study(study, dataset) == before
        # A file takes the mask further. What that one was made from is in no table and no answer: paired by IoU.
        import_coco(place, write_coco(place, {1: [(OTHER, 10_002), (CUT, 10_003)]}))
        after = score_study(study, dataset)
        assert (after.by_id, after.by_iou, after.deleted, after.added) == (0, 1, 1, 1)
        assert after.mean_iou == pytest.approx(8 / 10)


def test_the_assignment_that_was_merged_is_scored(tmp_path: Path) -> None:
    """Assignment 1 was merged before 0 had a submission; one that cannot be read leaves its image out."""
    with two_shards() as place:
        dataset, study = place.location, location_of(tmp_path / "study")
        sample_study(dataset, 4, 0, study)
        given = answer_to(dataset, 1, [new_mask(CUT, 10_001)], assignment=1)
        assert put_submission(dataset, given)
        merge_submissions(dataset)
        assert put_submission(dataset, given.model_copy(update={"assignment": 0, "masks": (), "replaced": ()}))
        (dataset / "annotations/1/0.1.json").put(b"{}")
        assert put_submission(dataset, answer_to(dataset, 4).model_copy(update={"size": (40, 30)}))
        found = score_study(study, dataset)
        assert (found.by_id, found.deleted, found.answered) == (2, 4, 3)
        assert found.mean_iou == pytest.approx((1 + 8 / 10) / 2)
        assert any("annotations/1/0.1.json is not a submission" in line for line in found.unreadable)
        assert any("the submission is for 30 x 40 pixels" in line for line in found.unreadable)


def test_of_several_masks_made_from_one_the_first_is_its_correction() -> None:
    former = {"id": 10_001, "counts": counts_of(SECOND)}
    masks = [new_mask(CUT, 10_001), new_mask(APART, 10_001)]
    submission = Submission.from_value(answer_value(masks=masks, replaced=[former]))
    (row,) = describe_table(to_table([accepted_row(0, 2)], SEGMENTED)).to_pylist()
    expected = [(10_000, counts_of(FIRST)), (10_001, counts_of(CUT)), (None, counts_of(APART))]
    assert follow({10_000, 10_001}, row, [submission]) == expected
    merged = merge_submission(row, [submission]).row
    assert follow({10_000, 10_001}, merged, [submission]) == expected
    assert follow({10_000, 10_001}, merged, []) == expected
