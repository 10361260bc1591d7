"""A committed shard read back: built again from its rows, it has the bytes that were read."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.layout import DamagedDatasetError
from segmint.operators.rows import DESCRIBED
from segmint.operators.shards.put import build_shard_files
from segmint.operators.shards.revise import committed_rows, read_committed_rows, read_table, tar_members
from tests.support.committed import write_dataset
from tests.support.described_rows import accepted_row, described, rejected_row
from tests.support.locations import location_of


def rebuilt(dataset: Path, commit: Commit, *, with_images: bool) -> dict[str, str]:
    """SHA-256 of the files built again from a commit's rows, by folder."""
    files = build_shard_files(read_committed_rows(location_of(dataset), commit), with_images=with_images)
    assert files.counts == commit.counts
    data = {"shards": files.tar, "images": files.images, "masks": files.masks, "rejects": files.rejects}
    return {kind: hashlib.sha256(data).hexdigest() for kind, data in data.items()}


def named(commit: Commit) -> dict[str, str]:
    return {entry.path.partition("/")[0]: entry.sha256 for entry in commit.files}


def test_every_shard_of_a_real_dataset_is_built_again_to_the_byte(small_dataset: Path) -> None:
    commits = list(CommitLog(location_of(small_dataset)).read_all())
    assert sum(commit.counts["rejected"] for commit in commits) == 2
    for commit in commits:
        assert rebuilt(small_dataset, commit, with_images=True) == named(commit)


def test_rows_are_those_of_the_last_stage_in_order(small_dataset: Path) -> None:
    manifest = load_manifest(location_of(small_dataset))
    for commit in CommitLog(location_of(small_dataset)).read_all():
        rows = read_committed_rows(location_of(small_dataset), commit)
        assert [row["ordinal"] for row in rows] == list(range(*manifest.ordinals(commit.shard)))
        assert all(set(row) >= set(DESCRIBED.names) for row in rows)
        assert all((row["reason"] is None) == (row["release"] is not None) for row in rows)


def test_a_dataset_without_images_too(tmp_path: Path) -> None:
    write_dataset(location_of(tmp_path), shards=1, with_images=False)
    (commit,) = CommitLog(location_of(tmp_path)).read_all()
    assert rebuilt(tmp_path, commit, with_images=False) == named(commit)


@pytest.mark.parametrize("kind", ["shards", "images", "masks", "rejects"])
def test_a_damaged_file_is_named_and_nothing_is_read_of_it(tmp_path: Path, kind: str) -> None:
    write_dataset(location_of(tmp_path), shards=1)
    (commit,) = CommitLog(location_of(tmp_path)).read_all()
    entry = commit.file(kind)
    path = tmp_path / entry.path
    data = path.read_bytes()
    for damaged, told in (
        (data[:-1], f"expected {entry.size} bytes; found {entry.size - 1}"),
        (data + b"x", f"expected {entry.size} bytes; found {entry.size + 1}"),
        (bytes([data[0] ^ 1]) + data[1:], f"expected SHA-256 {entry.sha256}; found "),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DamagedDatasetError, match=f"{entry.path}: {told}"):
            read_committed_rows(location_of(tmp_path), commit)
    path.unlink()
    with pytest.raises(DamagedDatasetError, match=f"{entry.path}: expected .* bytes; found no such file"):
        read_committed_rows(location_of(tmp_path), commit)


def test_a_tar_that_does_not_hold_what_the_tables_say_is_named(tmp_path: Path) -> None:
    """Undamaged files of two shards under one commit, which no writer of ours makes."""
    write_dataset(location_of(tmp_path), shards=2)
    first, second = CommitLog(location_of(tmp_path)).read_all()
    files = [second.file("shards"), *(entry for entry in first.files if not entry.path.startswith("shards/"))]
    with pytest.raises(DamagedDatasetError, match=r"doesn't match its tables: it contains no sa_1\.jpg"):
        read_committed_rows(location_of(tmp_path), replace(first, files=tuple(files)))


def test_what_people_said_and_numbers_with_gaps_survive() -> None:
    """Mask 1 of three was corrected, and is mask 3 now; the row's verdict has another `stage` than its annotation."""
    (row,) = described([accepted_row(0, masks=3)]).to_pylist()
    corrected = {
        **row["masks"][1],
        "index": 3,
        "predicted_iou": None,
        "label": "cup",
        "source": "corrected",
        "annotator": "Ada",
        "seconds": 4.5,
        "prompts": [
            {"kind": "point", "x": 1.0, "y": 2.0, "label": 0, **dict.fromkeys(("w", "h", "text", "clip_sha256"))}
        ],
        "parent": 10_001,
        "origin": {"sha256": "0" * 64, "license": "CC0-1.0"},
        "model": "1" * 64,
    }
    answer = {"assignment": 0, "n": 1, "sha256": "2" * 64}
    row |= {"masks": [row["masks"][0], row["masks"][2] | {"index": 2}, corrected], "next_mask": 4, "submission": answer}
    row |= {"annotation_stage": "semi", "annotator": "Ada", "seconds": 30.0, "complete": True}
    files = build_shard_files([row, rejected_row(1)], with_images=True)
    images, masks = (read_table(getattr(files, kind), kind).to_pylist() for kind in ("images", "masks"))
    assert [mask["annotation_id"] for mask in masks] == [10_000, 10_002, 10_003]
    assert (images[0]["stage"], images[0]["submission"], images[0]["next_mask"]) == ("semi", answer, 4)
    members = dict(tar_members(files.tar))
    written = json.loads(members["sa_1.json"])["annotations"]
    assert [(mask["id"], mask["predicted_iou"]) for mask in written] == [(10_000, 0.93), (10_002, 0.93), (10_003, None)]
    rejects = read_table(files.rejects, "rejects").to_pylist()
    again = committed_rows(images, masks, rejects, members)
    assert (again[0]["stage"], again[0]["annotation_stage"], again[0]["masks"][2]) == (None, "semi", corrected)
    assert again[1]["stage"] == "read"
    assert build_shard_files(again, with_images=True) == files
