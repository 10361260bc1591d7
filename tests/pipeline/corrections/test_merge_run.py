"""Merging answers: what becomes of a dataset, beside builds and other corrections."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from segmint.catalogs.dataset.submissions import Return, put_return, put_submission
from segmint.catalogs.dataset.tombstones import TakedownRequest as TakedownAsked
from segmint.catalogs.dataset.versions import latest_version
from segmint.pipeline.building.status import Prices, StatusReader
from segmint.pipeline.corrections import mask_revision, merge
from segmint.pipeline.corrections.merge import list_merge, merge_submissions
from segmint.pipeline.corrections.proof import prove
from segmint.pipeline.corrections.redact import redact
from segmint.pipeline.corrections.repair import repair
from segmint.pipeline.corrections.takedown import takedown
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.everything import upload
from tests.support.imported import import_coco, write_coco
from tests.support.locations import location_of
from tests.support.protocol import DatasetPath, contents, retry, sweep_all, two_shards
from tests.support.s3_server import S3Server
from tests.support.submissions import answer_to, committed_row, counts_of, new_mask

NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)
CUT, APART = (3, 4, 11, 21), (22, 5, 28, 30)


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
    assert done.listed.compared == ("sa_4",)
    assert done.lines()[0].endswith(" in 2 shards; the previous files were deleted, including older versions")
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


def returned(image: int, n: int) -> Return:
    value = {"image": image, "assignment": 0, "n": n, "by": "Ada", "comment": "x", "saved_at": "2026-11-22T10:00:00Z"}
    return Return.model_validate(value)


def test_an_answer_that_was_returned_waits_for_the_next_one(place: DatasetPath) -> None:
    give(place, 1, new_mask(CUT, 10_001))
    give(place, 2, new_mask(APART))
    assert put_return(place.location, returned(1, 1))
    done = merge_submissions(place.location)
    assert (done.listed.images, done.listed.merged, done.listed.not_checked) == (1, 0, [])
    assert done.listed.skipped_images == {"returned to the annotator": 1}
    assert [id for id, _ in sources(place, 1)] == [10_000, 10_001]
    give(place, 1, new_mask(APART), n=2)
    assert list_merge(place.location).skipped_images == {}
    merge_submissions(place.location)
    assert [id for id, _ in sources(place, 1)] == [10_000, 10_001, 10_002]
    assert put_return(place.location, returned(1, 2))  # too late
    again = merge_submissions(place.location)
    assert (again.listed.merged, again.listed.skipped_images, findings(place)) == (2, {}, [])
    (place.location / "annotations/1/0.1.return.json").put(b"{}")
    (place.location / "annotations/98/0.1.return.json").put(b"{}")
    one, other = findings(place)
    assert one.startswith("bad_submission: annotations/1/0.1.return.json, id 2: expected a return; ")
    assert other.startswith("bad_submission: annotations/98/0.1.return.json: expected an image of the dataset; ")


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
    line = "sa_1: mask 1 of annotations/0/0.1.json isn't merged: mask 10001, which it replaces, no longer exists"
    assert f"  {line}" in done.lines()
    version = latest_version(place.location)
    assert version is not None
    assert version.reason == f"submissions for 2 images: 2 added; {line}"
    masks = committed_row(place.location, 0)["masks"]
    assert masks[-1]["segmentation"]["counts"] == counts_of(APART)
    assert masks[-1]["redacted_share"] is not None
    assert findings(place) == []


def test_work_that_is_not_merged_is_named(place: DatasetPath, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert "  sa_5: annotations/4/0.1.json isn't merged: it was for another state of the image, and" in lines
    assert "sa_1:" not in lines
    assert "second submissions, used only to measure agreement and not merged: 1 image: sa_1" in listed.lines()
    assert listed.compared == ("sa_1",)
    assert "two annotators submitted for different states: 2 images" in lines
    monkeypatch.setattr(mask_revision, "SHOWN", 1)
    monkeypatch.setattr(merge, "NAMED", 0)
    listed = list_merge(place.location)
    assert listed.lines()[-2:] == [f"  {listed.examples[0]}", "  and 2 more"]
    assert listed.reason() == "submissions for 1 image: 1 added; 3 more"


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
    assert put_return(place.location, returned(1, 2))
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
@pytest.mark.long
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
