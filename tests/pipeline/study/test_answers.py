"""A study is scored from answers given in the browser, whatever was merged in between."""

from pathlib import Path

import pytest

from segmint.catalogs.dataset.annotations.answers import Answer, put_answer
from segmint.pipeline.annotate.merge.run import merge_answers
from segmint.pipeline.study.answers import follow
from segmint.pipeline.study.sample import sample_study
from segmint.pipeline.study.score import score_study
from tests.support.answered import answer_to, answer_value, counts_of, new_mask
from tests.support.locations import location_of
from tests.support.protocol import two_shards

FIRST, SECOND, CUT, LESS, APART = (2, 3, 12, 20), (3, 4, 13, 21), (3, 4, 11, 21), (3, 4, 9, 21), (22, 5, 28, 30)


def test_answers_are_the_corrections_before_and_after_they_are_merged(tmp_path: Path) -> None:
    """One mask changed twice with a merge in between, one deleted, one added, two left, an image without an answer."""
    with two_shards() as place:
        dataset, study = place.location, location_of(tmp_path / "study")
        sample_study(dataset, 4, 0, study)
        assert put_answer(dataset, answer_to(dataset, 1, [new_mask(CUT, 10_001), new_mask(APART)]))
        assert put_answer(dataset, answer_to(dataset, 2, deleted=[20_000]))
        assert put_answer(dataset, answer_to(dataset, 4))
        assert put_answer(dataset, answer_to(dataset, 4, deleted=[40_000], lane=1))  # the other lane does not count
        before = score_study(study, dataset)
        assert (before.images, before.answered, before.by_id, before.by_iou) == (4, 3, 5, 0)
        assert (before.deleted, before.added, before.unanswered_masks, before.unread) == (1, 1, 2, 0)
        assert before.mean_iou == pytest.approx((4 + 8 / 10) / 5)
        merge_answers(dataset)
        assert score_study(study, dataset) == before
        assert put_answer(dataset, answer_to(dataset, 1, [new_mask(LESS, 10_002)], n=2))
        after = score_study(study, dataset)
        assert (after.by_id, after.added) == (5, 1)
        assert after.mean_iou == pytest.approx((4 + 6 / 10) / 5)


def test_of_several_masks_made_from_one_the_first_is_its_correction() -> None:
    former = {"id": 10_001, "counts": counts_of(SECOND)}
    masks = [new_mask(CUT, 10_001), new_mask(APART, 10_001)]
    answer = Answer.from_value(answer_value(masks=masks, replaced=[former]))
    drawn = [(10_000, counts_of(FIRST)), (10_001, counts_of(SECOND))]
    assert follow(drawn, [answer]) == [drawn[0], (10_001, counts_of(CUT)), (None, counts_of(APART))]
