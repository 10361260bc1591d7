"""What a merged answer says is in the rows of its image and masks; what is not is found, and nothing else."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from segmint.catalogs.dataset.submissions import put_submission
from segmint.catalogs.findings import Code, Finding
from segmint.catalogs.findings import FindingLocation as FilePlace
from segmint.operators.audit.submissions import audit_merged_submission
from segmint.operators.rows import ANNOTATION_STAGE, Row
from segmint.pipeline.corrections.merge import merge_submissions
from segmint.pipeline.corrections.repair import repair
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.planting import edit_row
from tests.support.protocol import DatasetPath, two_shards
from tests.support.submissions import answer_to, committed_row, counts_of, new_mask

CUT, APART, OTHER = (3, 4, 11, 21), (22, 5, 28, 30), (15, 25, 20, 38)
POINT = {"kind": "point", "x": 7.5, "y": 4.0, "label": 1}


@pytest.fixture(scope="module")
def place() -> Iterator[DatasetPath]:
    """Image 1, merged twice: mask 10,001 corrected, 10,000 deleted, one added, and then another one, with a label."""
    with two_shards() as place:
        one = answer_to(place.location, 1, [new_mask(CUT, 10_001), new_mask(APART, prompts=[POINT])], deleted=[10_000])
        assert put_submission(place.location, one)
        merge_submissions(place.location)
        two = answer_to(place.location, 1, [new_mask(OTHER, label="cup", prompts=[POINT])], n=2, model="ab" * 32)
        assert put_submission(place.location, two)
        merge_submissions(place.location)
        yield place


def as_in_tables(row: Row) -> tuple[Row, list[Row]]:
    """A described row as its row of images, and the rows of its masks."""
    return {**row, "stage": row[ANNOTATION_STAGE]}, [dict(mask) for mask in row["masks"]]


def found(place: DatasetPath, change: Callable[[Row, list[Row]], object], ordinal: int = 0) -> list[Finding]:
    """The findings after a change of the rows."""
    row, masks = as_in_tables(committed_row(place.location, ordinal))
    change(row, masks)
    images, of_masks = FilePlace("images/x"), FilePlace("masks/x")
    findings = list(audit_merged_submission(place.location, row, masks, images, of_masks))
    assert all(finding.code == Code.OTHER_SUBMISSION for finding in findings)
    return findings


def test_nothing_is_found_in_what_a_merge_wrote(place: DatasetPath) -> None:
    assert found(place, lambda row, masks: None) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("annotator", "Bo"),
        ("stage", "semi"),
        ("stage", None),
        ("seconds", 61.25),
        ("seconds", None),
        ("complete", False),
        ("complete", None),
    ],
)
def test_a_row_that_says_something_else_of_the_image_is_found(place: DatasetPath, name: str, value: Any) -> None:
    """An answer that replaces and deletes nothing fits whole, so the image is as complete as it says."""
    (finding,) = found(place, lambda row, masks: row.update({name: value}))
    assert finding.file == "images/x"
    assert f"{name}': {value!r}" in finding.found


@pytest.mark.parametrize(
    ("index", "fields"),
    [
        (0, {"seconds": 4.0}),
        (0, {"parent": None}),
        (0, {"prompts": []} | {"annotator": "Bo"}),
        (1, {"source": "manual"}),
        (1, {"prompts": None}),
        (1, {"label": "cup"}),
        (2, {"label": None}),
        (2, {"label_source": "import"}),
        (2, {"model": None}),
        (2, {"annotator": None}),
        (2, {"seconds": None}),
    ],
)
def test_a_mask_whose_columns_are_others_is_found(place: DatasetPath, index: int, fields: dict[str, Any]) -> None:
    """Also of an answer that was merged before the last one."""
    (finding,) = found(place, lambda row, masks: masks[index].update(fields))
    assert (finding.file, finding.mask) == ("masks/x", 10_002 + index)
    assert finding.where == f"mask {10_002 + index}"
    differing = [name for name in fields if repr(fields[name]) in finding.found]
    assert differing


def test_a_mask_that_the_dataset_lost_is_found(place: DatasetPath) -> None:
    (finding,) = found(place, lambda row, masks: masks.pop())
    assert (finding.expected, finding.found) == ("the masks of annotations/0/0.2.json", "1 not there")
    assert found(place, lambda row, masks: masks.pop(0)) == []  # of an earlier answer, which a later one may have gone


def test_a_mask_that_was_taken_away_and_is_there_is_found() -> None:
    with two_shards() as place:
        given = answer_to(place.location, 1, [new_mask(CUT, 10_001)], deleted=[10_000])
        before = committed_row(place.location, 0)["masks"]
        assert put_submission(place.location, given)
        merge_submissions(place.location)
        findings = found(place, lambda row, masks: masks.extend(before))
        assert [finding.mask for finding in findings] == [10_000, 10_001]
        # Where a parent may not have fit, an image that is not complete may lack the mask.
        assert len(found(place, lambda row, masks: masks.clear())) == 1

        def skipped(row: Row, masks: list[Row]) -> None:
            row["complete"] = False
            masks[:] = [{**before[1], "segmentation": {"size": [30, 40], "counts": counts_of(OTHER)}}]

        assert found(place, skipped) == []


def test_a_mask_that_was_there_before_and_an_import_are_left_alone(place: DatasetPath) -> None:
    def same(row: Row, masks: list[Row]) -> None:
        masks[2].update(source="imported", origin={"sha256": "e" * 64, "license": None}, prompts=None, label=None)
        masks[1].update(source="automatic", annotator=None, seconds=None)

    assert found(place, same) == []

    def imported(row: Row, masks: list[Row]) -> None:
        row.update(
            submission={**row["submission"], "sha256": "e" * 64},
            annotator=None,
            stage=None,
            seconds=None,
            complete=None,
        )
        masks.clear()

    assert found(place, imported) == []


def test_damaged_rows_are_no_failure(place: DatasetPath) -> None:
    def damaged(row: Row, masks: list[Row]) -> None:
        for mask in masks:
            mask["segmentation"] = None

    assert [finding.found for finding in found(place, damaged)] == ["1 not there"]
    for submission in ({"assignment": 0, "n": 99, "sha256": None}, {"assignment": 7, "n": 0, "sha256": "x"}):
        (finding,) = found(place, lambda row, masks, submission=submission: row.update(submission=submission))
        assert "is gone" in finding.found


def test_the_audit_of_a_dataset_finds_a_mask_that_a_writer_changed(place: DatasetPath) -> None:
    assert audit_integrity(place.location).findings.total == 0
    edit_row("masks", 0, 0, seconds=9.0)(Path(place.uri))
    version, finding = audit_integrity(place.location).findings
    assert version.code == Code.UNLIKE_VERSION  # which the merge recorded
    assert (finding.code, finding.mask, finding.found) == (Code.OTHER_SUBMISSION, 10_002, "{'seconds': 9.0}")
    assert finding.file.startswith("masks/sa_000000-")


def test_labels_that_a_later_answer_set_are_explained_and_those_of_a_builds_masks_are_restored() -> None:
    first = (2, 3, 12, 20)
    with two_shards() as place:
        later = [new_mask(APART, 10_002, label="cup"), new_mask(first, 10_000, label="tile")]
        answers = [
            (1, 1, [new_mask(APART, prompts=[POINT])]),
            (1, 2, later),
            (4, 1, [new_mask(first, 40_000, label="pot"), new_mask((3, 4, 13, 21), 40_001, label="")]),
        ]
        for image, n, masks in answers:
            assert put_submission(place.location, answer_to(place.location, image, masks, n=n))
            merge_submissions(place.location)
        labels = [[mask["label"] for mask in committed_row(place.location, ordinal)["masks"]] for ordinal in (0, 3)]
        assert labels == [["tile", None, "cup"], ["pot", None]]
        assert [mask["source"] for mask in committed_row(place.location, 0)["masks"]] == ["automatic"] * 2 + [
            "assisted"
        ]
        assert list(audit_integrity(place.location).findings) == []
        (finding,) = found(place, lambda row, masks: masks[2].update(label="saucer"))
        assert finding.mask == 10_002
        commit = place.log.latest(1)
        assert commit is not None
        lost = commit.file("masks").path
        place.storage.delete(f"{place.uri}/{lost}")
        assert list(repair(place.location).repaired) == [lost]
        assert committed_row(place.location, 3)["masks"][0]["label"] == "pot"
