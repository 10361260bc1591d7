"""Answers become rows: what fits is merged, what does not is counted, and nothing is merged twice."""

from typing import Any

import pytest
from pycocotools import mask as coco

from segmint.catalogs.dataset.submissions import Submission, SubmissionName
from segmint.operators.describe import describe_table
from segmint.operators.rows import ANNOTATION_STAGE, SEGMENTED, Row, to_table
from segmint.pipeline.corrections.import_merge import SkipReason
from segmint.pipeline.corrections.merge import merge_submission, seconds_of, submission_to_merge
from tests.support.described_rows import accepted_row, rejected_row
from tests.support.submissions import answer_value, counts_of, new_mask

FIRST, SECOND, CUT, APART = (2, 3, 12, 20), (3, 4, 13, 21), (3, 4, 11, 21), (22, 5, 28, 30)
FORMER = {box: {"id": 10_000 + place, "counts": counts_of(box)} for place, box in enumerate((FIRST, SECOND))}


@pytest.fixture
def row() -> Row:
    """Image 1 as a build makes it, with the masks FIRST and SECOND."""
    (row,) = describe_table(to_table([accepted_row(0, 2)], SEGMENTED)).to_pylist()
    return dict(row)


def submission(n: int = 1, **fields: Any) -> Submission:
    return Submission.from_value(answer_value(n=n, **{"masks": [], **fields}))


def boxes(row: Row) -> list[tuple[int, str, str]]:
    """The number, source and run lengths of the masks."""
    return [
        (place if mask["index"] is None else mask["index"], mask["source"], mask["segmentation"]["counts"])
        for place, mask in enumerate(row["masks"])
    ]


def test_an_answer_corrects_adds_and_deletes(row: Row) -> None:
    box = {"kind": "box", "x": 4.0, "y": 3.0, "w": 17.0, "h": 8.0}
    given = submission(
        masks=[new_mask(CUT, 10_001, prompts=[box]), new_mask(APART, source="manual", label="cup", seconds=9.5)],
        replaced=[FORMER[SECOND]],
        deleted=[FORMER[FIRST]],
        model="cd" * 32,
    )
    merged = merge_submission(row, [given])
    assert (merged.corrected, merged.added, merged.deleted, merged.same, merged.unfit) == (1, 1, 1, 0, 0)
    assert boxes(merged.row) == [(2, "corrected", counts_of(CUT)), (3, "manual", counts_of(APART))]
    corrected, drawn = merged.row["masks"]
    assert (corrected["parent"], corrected["seconds"], corrected["model"]) == (10_001, 4.5, "cd" * 32)
    assert corrected["prompts"] == [{**box, "label": None, "text": None, "clip_sha256": None}]
    assert (drawn["parent"], drawn["seconds"], drawn["model"], drawn["label"]) == (None, 9.5, None, "cup")
    assert (corrected["label_source"], drawn["label_source"], drawn["label_score"]) == (None, "person", None)
    assert {mask["annotator"] for mask in merged.row["masks"]} == {"Ada"}
    assert (merged.row["next_mask"], merged.row["annotator"], merged.row[ANNOTATION_STAGE]) == (4, "Ada", "assisted")
    assert (merged.row["seconds"], merged.row["complete"]) == (61.25, True)
    assert merged.row["submission"] == {"assignment": 0, "n": 1, "sha256": given.sha256}
    codes = [{"size": [30, 40], "counts": code.encode()} for _, _, code in boxes(merged.row)]
    assert merged.row["statistics"]["coverage"] == coco.area(coco.merge(codes)) / 1200
    assert submission_to_merge(merged.row, [SubmissionName(0, 0, 1)]) is None


def test_containers_follow_the_masks(row: Row) -> None:
    inside = (4, 5, 8, 9)  # in both
    added = merge_submission(row, [submission(masks=[new_mask(inside)])]).row
    assert [mask["container"] for mask in added["masks"]] == [None, None, 10_001]
    without = merge_submission(added, [submission(n=2, deleted=[FORMER[SECOND]], masks=[new_mask(inside)])]).row
    assert [mask["container"] for mask in without["masks"]] == [None, 10_000]


def test_an_image_that_was_left_unchanged_is_known_by_its_answer(row: Row) -> None:
    before = [mask["segmentation"]["counts"] for mask in row["masks"]]
    merged = merge_submission(row, [submission()])
    assert not merged.changes_masks
    assert [mask["segmentation"]["counts"] for mask in merged.row["masks"]] == before
    assert merged.row["statistics"] == row["statistics"]
    assert (merged.row["submission"]["n"], merged.row["complete"], merged.row["next_mask"]) == (1, True, 2)


def test_masks_that_the_image_has_pixel_for_pixel_stay(row: Row) -> None:
    """As a replacement of itself, as a new one, and twice in an answer."""
    masks = [new_mask(SECOND, 10_001), new_mask(FIRST), new_mask(APART), new_mask(APART)]
    merged = merge_submission(row, [submission(masks=masks, replaced=[FORMER[SECOND]])])
    assert (merged.same, merged.added, merged.corrected, merged.deleted) == (2, 1, 0, 0)
    assert boxes(merged.row)[:2] == [(0, "automatic", counts_of(FIRST)), (1, "automatic", counts_of(SECOND))]
    assert merged.not_merged == ("mask 4 of annotations/0/0.1.json isn't merged: it repeats an earlier one",)
    assert merged.row["complete"] is True


def test_of_an_answer_to_an_earlier_state_what_still_fits_is_merged(row: Row) -> None:
    """Mask 10,001 is another one now, and 10,007 was never there."""
    masks = [new_mask(CUT, 10_001), new_mask(APART)]
    given = submission(
        masks=masks,
        replaced=[{"id": 10_001, "counts": counts_of((3, 4, 13, 22))}],
        deleted=[FORMER[FIRST], {"id": 10_007, "counts": counts_of(CUT)}],
    )
    merged = merge_submission(row, [given])
    assert (merged.unfit, merged.added, merged.deleted, merged.corrected) == (2, 1, 1, 0)
    assert boxes(merged.row) == [(1, "automatic", counts_of(SECOND)), (2, "assisted", counts_of(APART))]
    assert merged.row["complete"] is False
    assert merged.not_merged == (
        "mask 10007 isn't deleted: it no longer exists",
        "mask 1 of annotations/0/0.1.json isn't merged: mask 10001, which it replaces, has changed since",
    )


def test_an_answer_to_the_state_of_the_one_that_was_merged_takes_its_place(row: Row) -> None:
    """It was saved while that one was being merged."""
    one = submission(masks=[new_mask(CUT, 10_001), new_mask(APART)], replaced=[FORMER[SECOND]], seconds=20.0)
    smaller = (3, 4, 10, 21)
    two = submission(2, masks=[new_mask(smaller, 10_001)], replaced=[FORMER[SECOND]], seconds=30.0)
    uncompared = merge_submission(row, [one, two]).row
    after = merge_submission(merge_submission(row, [one]).row, [one, two])
    assert [code for _, _, code in boxes(after.row)] == [code for _, _, code in boxes(uncompared)]
    assert boxes(after.row) == [(0, "automatic", counts_of(FIRST)), (4, "corrected", counts_of(smaller))]
    assert (after.unfit, after.row["masks"][1]["parent"], after.row["seconds"]) == (0, 10_001, 30.0)
    undone = merge_submission(merge_submission(row, [one]).row, [one, submission(2)])
    assert boxes(undone.row) == [(0, "automatic", counts_of(FIRST))]
    assert (undone.unfit, undone.row["complete"]) == (1, False)  # what was replaced is nowhere any more
    assert undone.not_merged == ("mask 10001 isn't restored: a submission that was merged removed it",)
    named = submission(masks=[new_mask(SECOND, 10_001, label="cup")], replaced=[FORMER[SECOND]])
    undone = merge_submission(merge_submission(row, [named]).row, [named, submission(2)])
    assert undone.not_merged == ("mask 10001 isn't restored: a submission that was merged relabeled it",)
    assert undone.row["masks"][1]["label"] == "cup"


def test_who_made_a_mask_stays_with_it(row: Row) -> None:
    """A later answer says all again, as another one's or with another model: what is new or changed is its own."""
    point = {"kind": "point", "x": 7.5, "y": 4.0, "label": 1}
    drawn, asked = new_mask(CUT, source="manual", seconds=2.0), new_mask(APART, prompts=[point], seconds=3.0)
    again = {**asked, "seconds": 9.0}
    one = submission(masks=[drawn, asked], model="aa" * 32)
    two = submission(2, masks=[drawn, again, new_mask(FIRST, prompts=[point])], model="cd" * 32, base="cd" * 32)
    three = submission(3, masks=[drawn, {**asked, "prompts": [point, point]}], annotator="Bo", model="ef" * 32)

    def said(*submissions: Submission) -> list[tuple[str, str | None, float]]:
        masks = merge_submission(row, submissions).row["masks"][2:]
        return [(mask["annotator"], mask["model"], mask["seconds"]) for mask in masks]

    assert said(one, two) == [("Ada", None, 2.0), ("Ada", "aa" * 32, 9.0)]
    assert said(one, two, three) == [("Ada", None, 2.0), ("Bo", "ef" * 32, 3.0)]
    assert said(one, submission(2), two.model_copy(update={"n": 3}))[1] == ("Ada", "cd" * 32, 9.0)
    # An answer to the same state takes the place of one that was merged, with what that one only said again.
    two = two.model_copy(update={"base": one.base})
    merged = merge_submission(row, [one, two]).row
    assert len(merged["masks"]) == 4
    assert boxes(merge_submission(merged, [one, two, submission(3)]).row) == boxes(row)


@pytest.mark.parametrize("first", ["aa", "cd"])
def test_a_mask_that_was_there_before_is_not_deleted_as_the_answers_own(row: Row, first: str) -> None:
    """Answer 2 has mask 10,002 again, pixel for pixel; 3, to the same state, neither has nor deletes it.

    In the second case the one who made it was another one, of whom there is no answer here.
    """
    drawn = submission(1, base=first * 32, masks=[new_mask(APART)], annotator="Ada" if first == "aa" else "Bo")
    before = merge_submission(row, [drawn]).row
    if first == "cd":
        before, drawn = {**before, "submission": None}, submission(1, base="aa" * 32)
    two = submission(2, base="bb" * 32, masks=[new_mask(APART), new_mask(CUT)])
    merged = merge_submission(before, [drawn, two])
    assert (merged.same, merged.added) == (1, 1)
    three = merge_submission(merged.row, [drawn, two, submission(3, base="bb" * 32)])
    assert (three.deleted, three.unfit) == (1, 0)
    assert boxes(three.row)[2:] == [(2, "assisted", counts_of(APART))]
    # And a mask that it made itself goes, also where there was such a mask long ago.
    gone = submission(2, base="bb" * 32, deleted=[{"id": 10_002, "counts": counts_of(APART)}])
    again = submission(3, base="ee" * 32, masks=[new_mask(APART)])
    row = merge_submission(merge_submission(before, [drawn, gone]).row, [drawn, gone, again]).row
    assert boxes(row)[2:] == [(3, "assisted", counts_of(APART))]
    assert len(merge_submission(row, [drawn, gone, again, submission(4, base="ee" * 32)]).row["masks"]) == 2


def test_a_mask_made_from_one_of_people_keeps_its_kind_and_license(row: Row) -> None:
    said = {"source": "imported", "origin": {"sha256": "e" * 64, "license": "CC-BY-4.0"}}
    masks = [row["masks"][0], {**row["masks"][1], **said, "label": "tile", "label_source": "import"}]
    given = submission(masks=[new_mask(CUT, 10_001)], replaced=[FORMER[SECOND]])
    mask = merge_submission({**row, "masks": masks}, [given]).row["masks"][1]
    assert (mask["source"], mask["origin"], mask["label"]) == ("imported", said["origin"], "tile")
    assert mask["label_source"] == "import"
    clicked = [new_mask(CUT, 10_001, prompts=[{"kind": "point", "x": 5.5, "y": 5.5, "label": 1}])]
    drawn = {**row, "masks": [row["masks"][0], {**row["masks"][1], "source": "manual"}]}
    mask = merge_submission(drawn, [submission(masks=clicked, replaced=[FORMER[SECOND]])]).row["masks"][1]
    assert mask["source"] == "assisted"  # the model has drawn a part of it


def test_what_cannot_be_merged_leaves_the_row(row: Row) -> None:
    taken = {**rejected_row(0), "reason": "taken_down"}
    wide = {**row, "height": 40, "width": 30}
    full = {**row, "next_mask": 10_000}
    given = submission(masks=[new_mask(APART)])
    found = [merge_submission(each, [given]) for each in (rejected_row(0), taken, wide, full)]
    assert [each.left for each in found] == [
        SkipReason.REFUSED,
        SkipReason.TAKEN_DOWN,
        SkipReason.OTHER_SIZE,
        SkipReason.TOO_MANY,
    ]
    assert [each.row for each in found] == [rejected_row(0), taken, wide, full]


def test_the_assignment_that_was_merged_first_stays_the_images(row: Row) -> None:
    names = [SubmissionName(0, 0, 1), SubmissionName(0, 0, 3), SubmissionName(0, 1, 5)]
    assert submission_to_merge(row, names) == (0, 0, 3)
    assert submission_to_merge(row, names[2:]) == (0, 1, 5)
    for assignment, n, expected in ((1, 4, (0, 1, 5)), (1, 5, None), (0, 1, (0, 0, 3)), (0, 3, None)):
        assert (
            submission_to_merge({**row, "submission": {"assignment": assignment, "n": n, "sha256": "f"}}, names)
            == expected
        )
    assert submission_to_merge({**row, "submission": {"assignment": None, "n": None, "sha256": "f"}}, names) == (
        0,
        0,
        3,
    )
    assert submission_to_merge({**row, "submission": {"assignment": 1, "n": 1, "sha256": "f"}}, names[:2]) is None


def test_an_earlier_answer_to_another_state_that_was_never_merged_is_counted(row: Row) -> None:
    masks = [[CUT], [APART], [FIRST], [APART, FIRST]]
    bases = ["aa", "aa", "bb", "bb"]
    given = [
        submission(n, base=base * 32, masks=[new_mask(box) for box in boxes])
        for n, (base, boxes) in enumerate(zip(bases, masks, strict=True), 1)
    ]
    # The fourth says again what the second said; the first does not count beside the second.
    assert [merge_submission(row, given[:n]).superseded for n in (1, 2, 3, 4)] == [0, 0, 1, 0]
    merged = {**row, "submission": {"assignment": 0, "n": 2, "sha256": "f"}}
    assert merge_submission(merged, given[:3]).superseded == 0
    cut = submission(1, base="aa" * 32, deleted=[FORMER[FIRST]])
    assert merge_submission(row, [cut, submission(2, base="bb" * 32)]).superseded == 1
    assert merge_submission(row, [cut, submission(2, base="bb" * 32, deleted=[FORMER[FIRST]])]).superseded == 0
    cut = submission(1, masks=[new_mask(CUT, 10_001)], replaced=[FORMER[SECOND]], deleted=[FORMER[FIRST]])
    (line,) = merge_submission(row, [cut, submission(2, base="bb" * 32)]).not_merged
    assert line.endswith("the later submission lacks 2 of its masks and deletions")


def test_seconds_are_those_of_the_last_answer_to_each_state() -> None:
    bases = ["aa", "aa", "bb"]
    given = [submission(n, base=base * 32, seconds=10.0 * n) for n, base in enumerate(bases, 1)]
    assert seconds_of(given) == 20.0 + 30.0


def test_a_label_is_set_on_a_mask_whose_pixels_stay(row: Row) -> None:
    """On a mask of the build, and on one with another label; an empty label removes it."""
    row["masks"][1] |= {"label": "tile", "label_score": 0.5, "label_source": f"model:{'ab' * 32}"}
    labeled = submission(masks=[new_mask(FIRST, 10_000, label="cup, blue")], replaced=[FORMER[FIRST]])
    merged = merge_submission(row, [labeled])
    assert (merged.same, merged.corrected, merged.added, merged.deleted, merged.unfit) == (1, 0, 0, 0, 0)
    assert boxes(merged.row) == [(0, "automatic", counts_of(FIRST)), (1, "automatic", counts_of(SECOND))]
    assert [mask["label"] for mask in merged.row["masks"]] == ["cup, blue", "tile"]
    assert (merged.row["masks"][0]["label_score"], merged.row["masks"][0]["label_source"]) == (None, "person")
    assert merged.row["masks"][1] == {**row["masks"][1], "index": 1}
    again = submission(2, masks=[new_mask(SECOND, 10_001, label="")], replaced=[FORMER[SECOND]])
    (first, second) = merge_submission(merged.row, [labeled, again]).row["masks"]
    assert (first["label"], second["label"], second["label_score"], second["label_source"]) == (
        *("cup, blue", None),
        *(None, "person"),
    )


def test_a_label_of_a_drawn_mask_is_taken_back_after_it_was_merged(row: Row) -> None:
    labeled, without = submission(masks=[new_mask(APART, label="cup")]), submission(2, masks=[new_mask(APART)])
    merged = merge_submission(row, [labeled]).row
    for source, last, expected in (
        ("person", without, (None, None)),
        ("person", submission(2, base="bb" * 32, masks=[new_mask(APART)]), ("cup", "person")),
        ("import", without, ("cup", "import")),
    ):
        merged["masks"][-1]["label_source"] = source
        again = merge_submission(merged, [labeled, last])
        assert (again.same, again.row["masks"][-1]["label"], again.row["masks"][-1]["label_source"]) == (1, *expected)


def test_an_empty_label_is_not_inherited(row: Row) -> None:
    row["masks"][1] |= {"label": "tile", "label_source": "import"}
    for label, expected in ((None, ("tile", "import")), ("", (None, "person")), ("cup", ("cup", "person"))):
        given = submission(masks=[new_mask(CUT, 10_001, label=label)], replaced=[FORMER[SECOND]])
        mask = merge_submission(row, [given]).row["masks"][1]
        assert (mask["label"], mask["label_source"], mask["label_score"]) == (*expected, None)
