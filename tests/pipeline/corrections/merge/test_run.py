"""Merging answers: what becomes of a dataset, beside builds and other corrections."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pycocotools import mask as coco

from segmint.catalogs.dataset.annotations.names import SubmissionName
from segmint.catalogs.dataset.annotations.submissions import Submission, put_submission
from segmint.catalogs.dataset.tombstones import TakedownRequest as TakedownAsked
from segmint.catalogs.dataset.versions.record import latest_version
from segmint.operators.describe import describe_table
from segmint.operators.rows import Row, to_table
from segmint.operators.schemas import ANNOTATION_STAGE, SEGMENTED
from segmint.pipeline.building.status.result import Prices
from segmint.pipeline.building.status.status import StatusReader
from segmint.pipeline.corrections.merge.run import (
    MergeSkipReason,
    list_merge,
    merge_submission,
    merge_submissions,
    seconds_of,
    submission_to_merge,
)
from segmint.pipeline.corrections.proof import prove
from segmint.pipeline.corrections.redact import redact
from segmint.pipeline.corrections.repair import repair
from segmint.pipeline.corrections.takedown import takedown
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.described_rows import accepted_row, rejected_row
from tests.support.everything import upload
from tests.support.imported import import_coco, write_coco
from tests.support.locations import location_of
from tests.support.protocol import DatasetPath, contents, retry, sweep_all, two_shards
from tests.support.s3_server import S3Server
from tests.support.submissions import answer_to, answer_value, committed_row, counts_of, new_mask

NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)
CUT, APART = (3, 4, 11, 21), (22, 5, 28, 30)

FIRST, SECOND, CUT, APART = (2, 3, 12, 20), (3, 4, 13, 21), (3, 4, 11, 21), (22, 5, 28, 30)
FORMER = {box: {"id": 10_000 + place, "counts": counts_of(box)} for place, box in enumerate((FIRST, SECOND))}


@pytest.fixture
def place() -> Iterator[DatasetPath]:
    """Two shards of three rows: images 1, 2, 4 and 5 with two masks each, rows 3 and 6 refused."""
    with two_shards() as place:
        yield place


def findings(place: DatasetPath) -> list[str]:
    return [finding.line() for finding in audit_integrity(place.location).findings]


def sources(place: DatasetPath, image: int) -> list[tuple[int, str]]:
    return [(mask["annotation_id"], mask["source"]) for mask in committed_row(place.location, image - 1)["masks"]]


def give(place: DatasetPath, image: int, *masks: dict[str, Any], **fields: Any) -> None:
    assert put_submission(place.location, answer_to(place.location, image, masks, **fields))


def test_answers_become_the_next_generation_and_are_merged_once(place: DatasetPath) -> None:
    give(place, 1, new_mask(CUT, 10_001), new_mask(APART, seconds=5.5), deleted=[10_000])
    give(place, 4, annotator="Bo")
    give(place, 4, new_mask(CUT), assignment=1, annotator="Cy")
    done = merge_submissions(place.location)
    assert (done.listed.images, done.listed.unchanged, done.changed_shards) == (2, 1, (0, 1))
    assert done.listed.masks == {"same": 0, "corrected": 1, "added": 1, "deleted": 1, "unfit": 0}
    assert sources(place, 1) == [(10_002, "corrected"), (10_003, "assisted")]
    assert sources(place, 4) == [(40_000, "automatic"), (40_001, "automatic")]  # assignment 1 is for agreement only
    looked = committed_row(place.location, 3)
    assert (looked["annotator"], looked["annotation_stage"], looked["complete"]) == ("Bo", "assisted", True)
    assert findings(place) == []
    version = latest_version(place.location)
    assert version is not None
    assert version.command == "merge"
    assert version.reason == "submissions for 2 images: 1 corrected, 1 added and 1 deleted"
    people = StatusReader(place.location, Prices()).read().people
    assert (people.timed, people.seconds_per_mask) == (2, 5.0)

    after = contents(place)
    again = merge_submissions(place.location)
    assert (again.listed.images, again.listed.merged, again.changed_shards, again.version) == (0, 2, (), done.version)
    assert contents(place) == after
    assert again.lines()[0] == f"nothing to merge into {place.uri}"


def test_a_prefilled_mask_that_nobody_touched_is_nobodys_time(place: DatasetPath) -> None:
    box = {"kind": "box", "x": 5.0, "y": 22.0, "w": 25.0, "h": 6.0}
    give(place, 1, new_mask(APART, prompts=[box], seconds=0), new_mask(CUT, seconds=8.0), stage="semi")
    assert merge_submissions(place.location).listed.masks["added"] == 2
    people = StatusReader(place.location, Prices()).read().people
    assert (people.timed, people.seconds_per_mask, people.by_source["assisted"]) == (1, 8.0, 2)


def test_a_later_answer_is_relative_to_what_was_merged(place: DatasetPath) -> None:
    give(place, 1, new_mask(CUT, 10_001), seconds=20.0)
    merge_submissions(place.location)
    give(place, 1, new_mask(APART), deleted=[10_002], n=2, seconds=30.0)
    done = merge_submissions(place.location)
    assert done.listed.masks == {"same": 0, "corrected": 0, "added": 1, "deleted": 1, "unfit": 0}
    assert sources(place, 1) == [(10_000, "automatic"), (10_003, "assisted")]
    row = committed_row(place.location, 0)
    assert (row["submission"]["n"], row["seconds"], row["next_mask"]) == (2, 50.0, 4)
    assert findings(place) == []


def test_a_merged_answer_does_not_come_back_after_an_import(place: DatasetPath) -> None:
    give(place, 1, new_mask(APART))
    merge_submissions(place.location)
    import_coco(place, write_coco(place, {1: [((2, 3, 12, 20), 10_000)]}))
    before = contents(place)
    assert merge_submissions(place.location).listed.merged == 1
    assert contents(place) == before
    assert sources(place, 1) == [(10_000, "automatic")]
    assert findings(place) == []


def test_a_redaction_keeps_answers_and_a_merge_says_what_does_not_fit(place: DatasetPath) -> None:
    give(place, 1, new_mask(CUT, 10_001), new_mask(APART))
    give(place, 2, new_mask(APART))
    regions = Path(f"{place.uri}.jsonl")
    regions.write_text('{"id": 1, "kind": "face", "x": 5, "y": 5, "w": 20, "h": 15}\n')
    redact(place.location, location_of(regions))
    import_coco(place, write_coco(place, {1: [((2, 3, 12, 20), 10_000), ((4, 4, 13, 21), 10_001)]}))
    done = merge_submissions(place.location)
    assert done.listed.masks == {"same": 0, "corrected": 0, "added": 2, "deleted": 0, "unfit": 1}
    assert "  sa_1: 1 mask of the submission skipped, because the image has changed there" in done.lines()
    masks = committed_row(place.location, 0)["masks"]
    assert masks[-1]["segmentation"]["counts"] == counts_of(APART)
    assert masks[-1]["redacted_share"] is not None
    assert findings(place) == []


def test_work_that_is_not_merged_is_named(place: DatasetPath) -> None:
    """Image 1: another assignment to the same state. 2: to none of the first's. 4: an earlier one, never merged."""
    give(place, 1, new_mask(CUT))
    give(place, 1, new_mask(APART), assignment=1, annotator="Bo")
    give(place, 2, new_mask(CUT))
    give(place, 4, new_mask(CUT), base="12" * 32)
    give(place, 4, new_mask(APART), n=2)
    assert list_merge(place.location).uncompared == 0
    assert merge_submissions(place.location).listed.superseded == 1
    give(place, 2, new_mask(APART), assignment=1, annotator="Bo")
    give(place, 5, new_mask(CUT), base="12" * 32)
    give(place, 5, new_mask(APART), n=2)
    give(place, 5, new_mask(APART), assignment=1, base="12" * 32)
    give(place, 5, new_mask(APART), assignment=1, base="34" * 32, n=2)
    listed = list_merge(place.location)
    assert (listed.images, listed.merged, listed.superseded, listed.uncompared) == (1, 3, 1, 2)
    lines = "\n".join(listed.lines())
    assert "  sa_2: the last submission of assignment 1 is neither merged nor compared" in lines
    assert "  sa_5: the last submission of assignment 1 is neither merged nor compared" in lines
    assert "  sa_5: 1 earlier submission, for another state, never merged and not fully in the later one" in lines
    assert "sa_1:" not in lines
    assert "two annotators submitted for different states: 2 images" in lines


def test_a_lost_table_of_masks_is_restored_from_the_tar_and_the_answers(place: DatasetPath) -> None:
    point = {"kind": "point", "x": 7.5, "y": 4.0, "label": 1}
    give(place, 1, new_mask(CUT, 10_001, prompts=[point]), new_mask(APART, label="cup"), deleted=[10_000])
    merge_submissions(place.location)
    before = contents(place)
    commit = place.log.latest(0)
    assert commit is not None
    (place.location / commit.file("masks").path).delete()
    assert not repair(place.location).not_repaired
    assert contents(place) == before
    (place.location / commit.file("masks").path).delete()
    (place.location / "annotations/0/0.1.json").delete()
    assert "the annotations of the masks of 1 image" in str(repair(place.location).not_repaired)


def test_images_that_cannot_take_an_answer_are_named(place: DatasetPath) -> None:
    give(place, 1, new_mask(APART))
    fitting = answer_to(place.location, 1)
    for image, size in ((2, (40, 30)), (3, (30, 40)), (99, (30, 40))):
        assert put_submission(place.location, fitting.model_copy(update={"image": image, "size": size}))
    (place.location / "annotations/3/0.1.json").put(b"{}")
    listed = list_merge(place.location)
    assert (listed.images, listed.submitted) == (1, 5)
    assert listed.skipped_images == {
        "masks of another size than the image": 1,
        "refused by the build": 1,
        "not built yet": 1,
        "a submission that cannot be read": 1,
    }
    assert any("annotations/3/0.1.json is not a submission" in line for line in listed.lines())
    assert merge_submissions(place.location).changed_shards == (0,)


def test_nothing_is_kept_of_an_image_that_was_taken_down(place: DatasetPath) -> None:
    give(place, 1, new_mask(APART))
    merge_submissions(place.location)
    give(place, 1, new_mask(CUT), n=2)
    give(place, 1, assignment=1)
    give(place, 2, new_mask(APART))
    takedown(place.location, TakedownAsked(ids=("sa_1",)), "asked")
    left = [path for path in contents(place) if path.startswith("annotations/")]
    assert left == ["annotations/1/0.1.json"]
    assert prove(place.location, "sa_1").found == ()
    (place.location / "annotations/0/1.1.json").put(b"{}")
    assert prove(place.location, "sa_1").found == ("annotations/0/1.1.json is a submission for it",)
    (place.location / "annotations/0/1.1.json").delete()
    assert merge_submissions(place.location).changed_shards == (0,)
    assert findings(place) == []


def test_a_refused_row_that_is_retried_leaves_answers_as_they_are(place: DatasetPath) -> None:
    """In a shard with an answer that was merged, one that was not, and afterwards one for the new image."""
    give(place, 1, new_mask(CUT, 10_001))
    merge_submissions(place.location)
    give(place, 2, new_mask(APART))
    merged = committed_row(place.location, 0)
    assert retry(place, 0) != "unchanged"
    sweep_all(place)
    assert committed_row(place.location, 0) == merged
    give(place, 3, new_mask(APART), deleted=[30_000])
    assert findings(place) == []
    done = merge_submissions(place.location)
    assert (done.listed.images, done.listed.merged) == (2, 1)
    assert [source for _, source in sources(place, 2)] == ["automatic", "automatic", "assisted"]
    assert (30_000, "automatic") not in sources(place, 3)
    assert findings(place) == []


@pytest.mark.s3
def test_a_bucket_that_keeps_versions(
    place: DatasetPath, s3_server: S3Server, s3_bucket: str, s3_options: dict[str, dict[str, str]]
) -> None:
    """Merging there, again, and after a takedown, gives what a folder has; nothing older is left of what changed."""
    versioning = {"Status": "Enabled"}
    s3_server.client().put_bucket_versioning(Bucket=s3_bucket, VersioningConfiguration=versioning)
    bucket = DatasetPath(f"s3://{s3_bucket}/some/dataset", s3_options)
    upload(Path(place.uri), bucket.location)
    for each in (place, bucket):
        give(each, 1, new_mask(CUT, 10_001), deleted=[10_000])
        give(each, 2, new_mask(CUT))
        give(each, 2, new_mask(APART), n=2)
        assert not put_submission(each.location, answer_to(each.location, 2, [new_mask(CUT, 20_001)], n=2))
        assert merge_submissions(each.location, now=NOW).changed_shards == (0,)
        assert merge_submissions(each.location).listed.merged == 2
        takedown(each.location, TakedownAsked(ids=("sa_2",)), "asked", now=NOW)
        give(each, 1, new_mask(APART), n=2)
        assert merge_submissions(each.location, now=NOW).changed_shards == (0,)
    assert findings(bucket) == []
    assert sources(bucket, 1) == [(10_002, "corrected"), (10_003, "assisted")]
    assert contents(bucket) == contents(place)
    kept = s3_server.client().list_object_versions(Bucket=s3_bucket)["Versions"]
    of_images = ("shards/", "images/", "masks/", "annotations/")
    paths = sorted(version["Key"].removeprefix("some/dataset/") for version in kept)
    there = sorted(path for path in contents(bucket) if path.startswith(of_images))
    assert [path for path in paths if path.startswith(of_images)] == there


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
    assert corrected["prompts"] == [{**box, "label": None, "text": None}]
    assert (drawn["parent"], drawn["seconds"], drawn["model"], drawn["label"]) == (None, 9.5, None, "cup")
    assert (corrected["label_source"], drawn["label_source"], drawn["label_score"]) == (None, "person", None)
    assert {mask["annotator"] for mask in merged.row["masks"]} == {"Ada"}
    assert (merged.row["next_mask"], merged.row["annotator"], merged.row[ANNOTATION_STAGE]) == (4, "Ada", "assisted")
    assert (merged.row["seconds"], merged.row["complete"]) == (61.25, True)
    assert merged.row["submission"] == {"assignment": 0, "n": 1, "sha256": given.sha256}
    codes = [{"size": [30, 40], "counts": code.encode()} for _, _, code in boxes(merged.row)]
    assert merged.row["statistics"]["coverage"] == coco.area(coco.merge(codes)) / 1200
    assert submission_to_merge(merged.row, [SubmissionName(0, 0, 1)]) is None


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
        MergeSkipReason.REFUSED,
        MergeSkipReason.TAKEN_DOWN,
        MergeSkipReason.OTHER_SIZE,
        MergeSkipReason.TOO_MANY,
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


def test_seconds_are_those_of_the_last_answer_to_each_state() -> None:
    bases = ["aa", "aa", "bb"]
    given = [submission(n, base=base * 32, seconds=10.0 * n) for n, base in enumerate(bases, 1)]
    assert seconds_of(given) == 20.0 + 30.0
