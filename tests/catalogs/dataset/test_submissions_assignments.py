"""Which of an image's answers count."""

from typing import Any

import pytest

from segmint.catalogs.dataset.submissions import (
    Submission,
    annotated_masks,
    assignment_to_merge,
    carried,
    independent_submissions,
    is_merged,
    last_of_states,
    merged_assignment,
)
from tests.support.submissions import answer_value, counts_of, new_mask

CUT, APART, WHOLE = (3, 4, 11, 21), (22, 5, 28, 30), (2, 3, 12, 20)
FORMER = [{"id": 10_000 + place, "counts": counts_of((2 + place, 3, 12, 20))} for place in range(4)]


def submission(n: int, base: str, assignment: int = 0, **fields: Any) -> Submission:
    return Submission.from_value(answer_value(n=n, base=base * 32, assignment=assignment, **fields))


def test_the_assignment_that_was_merged_stays_and_else_the_lowest_counts() -> None:
    assert [assignment_to_merge(None, assignments) for assignments in ([1, 0], [1], [])] == [0, 1, None]
    assert assignment_to_merge({"assignment": 1, "n": 2}, [0, 1]) == 1
    assert [merged_assignment(each) for each in (None, {"assignment": None, "n": None}, {"assignment": 0, "n": 1})] == [
        None,
        None,
        0,
    ]
    merged = {"assignment": 1, "n": 2}
    assert [is_merged(merged, assignment, n) for assignment, n in ((1, 1), (1, 2), (1, 3), (0, 1))] == [
        True,
        True,
        False,
        False,
    ]
    assert not is_merged(None, 0, 1)


def test_two_people_are_compared_by_their_first_common_state() -> None:
    """A merge between shows one of them the other's masks."""
    ours = [submission(1, "aa"), submission(2, "bb"), submission(3, "bb"), submission(4, "cc")]
    theirs = [submission(1, "bb", 1), submission(2, "cc", 1)]
    assert [each.n for each in last_of_states(ours)] == [1, 3, 4]
    pair = independent_submissions([*ours, *theirs])
    assert pair is not None
    assert [(each.assignment, each.n) for each in pair] == [(0, 3), (1, 1)]
    assert independent_submissions([*ours[:1], *theirs]) is None
    assert independent_submissions(ours) is None


def test_what_fits_of_an_answer_is_carried_to_another_state() -> None:
    given = submission(
        1,
        "aa",
        masks=[new_mask(CUT, 10_000), new_mask(WHOLE, 10_001), new_mask(APART)],
        replaced=FORMER[:2],
        deleted=FORMER[2:],
        seconds=40.0,
    )
    now = {10_000: FORMER[0]["counts"], 10_001: counts_of(CUT), 10_003: FORMER[3]["counts"]}
    kept = carried(given, "bb" * 32, (30, 40), now)
    assert kept is not None
    assert [mask.counts for mask in kept.masks] == [counts_of(CUT), counts_of(APART)]
    assert [mask.id for mask in kept.replaced] == [10_000]
    assert [mask.id for mask in kept.deleted] == [10_003]
    assert (kept.base, kept.seconds, kept.n, kept.masks[0].seconds) == ("bb" * 32, 0.0, 1, 4.5)
    assert Submission.from_json(kept.to_json()) == kept
    assert carried(given, "bb" * 32, (40, 30), now) is None


BOX = {"kind": "box", "x": 5.0, "y": 22.0, "w": 25.0, "h": 6.0}
POINT = {"kind": "point", "x": 7.5, "y": 4.0, "label": 1}


@pytest.mark.parametrize(
    ("fields", "untouched"),
    [
        ({}, True),
        ({"seconds": 0.1}, False),
        ({"prompts": [BOX, POINT]}, False),
        ({"prompts": [POINT]}, False),
        ({"prompts": []}, False),
        ({"source": "manual"}, False),
    ],
)
def test_a_prefilled_mask_is_nobodys_until_somebody_works_on_it(fields: dict[str, Any], untouched: bool) -> None:
    mask = {**new_mask(APART), "seconds": 0, "prompts": [BOX], **fields}
    assert len(annotated_masks(submission(1, "aa", masks=[mask, new_mask(CUT)]))) == 1 + (not untouched)


def test_a_box_that_corrects_a_mask_is_somebodys() -> None:
    mask = new_mask(CUT, 10_000, source="assisted", seconds=0, prompts=[BOX])
    assert len(annotated_masks(submission(1, "aa", masks=[mask], replaced=FORMER[:1]))) == 1
