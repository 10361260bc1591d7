"""Restoring damaged files of a shard to the same bytes, from the rest of it or from its rows built again."""

import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.catalogs.layout import DATA_KINDS, DamagedDatasetError
from segmint.operators.rows import DESCRIBED, Row, to_table
from segmint.operators.shards.restore import (
    describe_damage,
    find_damage,
    lost_annotations,
    remake_commit,
    restore_from_rest,
    restore_shard,
)
from segmint.operators.shards.revise import read_committed_rows
from segmint.operators.shards.write import ShardTask, write_shard
from tests.support.builds import digests
from tests.support.described_rows import accepted_row, described
from tests.support.locations import handle_of, location_of

Spoil = Callable[[bytes], bytes]


def commit_of(dataset: Path, shard: int) -> Commit:
    commit = CommitLog(location_of(dataset)).latest(shard)
    assert commit is not None
    return commit


def spoil(dataset: Path, commit: Commit, kind: str, change: Spoil | None) -> None:
    """Change a file of a commit; None deletes it."""
    path = dataset / commit.file(kind).path
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def in_a_json(data: bytes) -> bytes:
    at = data.index(b'"annotations"') + 20
    return data[:at] + b"#" + data[at + 1 :]


def without_its_end(data: bytes) -> bytes:
    return data[: data.rindex(b'"annotations"') + 20]


SPOILS: list[Spoil | None] = [None, flipped, lambda data: data[:-1], lambda data: data + b"x", lambda data: b""]


def restored(dataset: Path, commit: Commit) -> bool:
    damages = find_damage(location_of(dataset), commit)
    assert damages
    return restore_from_rest(handle_of(dataset), commit, damages)


@pytest.mark.parametrize("kind", sorted(DATA_KINDS))
@pytest.mark.parametrize("change", SPOILS)
def test_every_damage_is_found_and_reported(dataset: Path, kind: str, change: Spoil | None) -> None:
    commit = commit_of(dataset, 0)
    assert find_damage(location_of(dataset), commit) == []
    spoil(dataset, commit, kind, change)
    (damage,) = find_damage(location_of(dataset), commit)
    assert (damage.entry.kind, damage.entry) == (kind, commit.file(kind))
    size = f"{(dataset / damage.entry.path).stat().st_size} bytes" if change else "no such file"
    assert describe_damage(damage).startswith(f"{damage.entry.path}: {damage.entry.size} bytes, SHA-256 ")
    assert size in describe_damage(damage).partition("expected; ")[2]


@pytest.mark.parametrize("change", SPOILS)
def test_masks_come_back_from_the_tar_s_json(dataset: Path, small_dataset: Path, change: Spoil | None) -> None:
    commit = commit_of(dataset, 0)
    spoil(dataset, commit, "masks", change)
    assert restored(dataset, commit)
    assert digests(dataset) == digests(small_dataset)


@pytest.mark.parametrize("change", [in_a_json, without_its_end, lambda data: data + b"x"])
def test_a_tar_comes_back_from_the_tables_while_its_jpegs_can_be_read(
    dataset: Path, small_dataset: Path, change: Spoil
) -> None:
    commit = commit_of(dataset, 0)
    spoil(dataset, commit, "shards", change)
    assert restored(dataset, commit)
    assert digests(dataset) == digests(small_dataset)


def test_an_empty_table_of_refusals_comes_back_and_one_with_rows_does_not(dataset: Path) -> None:
    whole = digests(dataset)
    empty, full = commit_of(dataset, 1), commit_of(dataset, 0)
    assert (empty.counts["rejected"], full.counts["rejected"]) == (0, 1)
    spoil(dataset, empty, "rejects", None)
    assert restored(dataset, empty)
    assert digests(dataset) == whole
    spoil(dataset, full, "rejects", None)
    assert not restored(dataset, full)


@pytest.mark.parametrize(
    "spoiled",
    [
        {"images": flipped},
        {"shards": None},
        {"shards": lambda data: data[: len(data) // 3]},
        {"masks": flipped, "shards": flipped},
        {"images": flipped, "masks": flipped},
    ],
)
def test_too_little_data_changes_nothing(dataset: Path, spoiled: dict[str, Spoil | None]) -> None:
    commit = commit_of(dataset, 0)
    for kind, change in spoiled.items():
        spoil(dataset, commit, kind, change)
    before = digests(dataset)
    assert not restored(dataset, commit)
    assert digests(dataset) == before


def test_a_jpeg_with_another_bit_is_not_passed_off_as_the_picture(dataset: Path) -> None:
    commit = commit_of(dataset, 0)

    def in_a_jpeg(data: bytes) -> bytes:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            first = archive.next()
            assert first is not None
            at = first.offset_data + first.size // 2
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    spoil(dataset, commit, "shards", in_a_jpeg)
    before = digests(dataset)
    assert not restored(dataset, commit)
    assert digests(dataset) == before


def task_of(dataset: Path, commit: Commit) -> ShardTask:
    start, stop = commit.ordinals
    return ShardTask(commit.shard, start, stop, handle_of(dataset), commit.numerics, 0.5)


def built(
    dataset: Path, commit: Commit, change: Callable[[Row], Row] = lambda row: row
) -> tuple[ShardTask, list, object]:
    """The task that a build would give to the writer of a shard."""
    rows = [change(row) for row in read_committed_rows(location_of(dataset), commit)]
    return task_of(dataset, commit), [(0, len(rows))], to_table(rows, DESCRIBED)


def test_rows_built_again_restore_all_files(dataset: Path, small_dataset: Path) -> None:
    commit = commit_of(dataset, 0)
    task, cuts, table = built(dataset, commit)
    for kind in DATA_KINDS:
        spoil(dataset, commit, kind, None)
    assert restore_shard(task, cuts, table).status == "committed"
    assert digests(dataset) == digests(small_dataset)


def test_rows_that_came_out_differently_are_reported_and_change_nothing(dataset: Path) -> None:
    commit = commit_of(dataset, 1)
    task, cuts, table = built(dataset, commit, lambda row: {**row, "faces": 7})
    spoil(dataset, commit, "images", flipped)
    spoil(dataset, commit, "masks", flipped)
    before = digests(dataset)
    result = restore_shard(task, cuts, table)
    entry = commit.file("images")
    assert result.status == "on_hold"
    assert result.detail.startswith(f"{entry.path}: the rebuilt file has ")
    assert f"the commit names {entry.size} bytes, SHA-256 {entry.sha256[:12]}" in result.detail
    assert digests(dataset) == before


def test_rows_that_could_not_be_judged_are_reported(dataset: Path) -> None:
    commit = commit_of(dataset, 1)
    task, cuts, table = built(
        dataset, commit, lambda row: {**row, "reason": None, "fault": "prepare: the store is out"}
    )
    result = restore_shard(task, cuts, table)
    assert (result.status, "3 of 3 rows couldn't be judged" in result.detail) == ("on_hold", True)


def standing(commit: Commit) -> dict[str, list[str]]:
    return {entry.path.partition("/")[0]: [entry.path] for entry in commit.files}


def test_a_commit_is_made_again_from_its_files(dataset: Path) -> None:
    for shard in range(3):
        commit = commit_of(dataset, shard)
        known = replace(commit, counts={}, files=())
        made = remake_commit(handle_of(dataset), known, standing(commit))
        assert made.to_json() == commit.to_json()


def test_files_that_do_not_prove_it_make_no_commit(dataset: Path) -> None:
    commit, other = commit_of(dataset, 0), commit_of(dataset, 1)
    known, uri = replace(commit, counts={}, files=()), str(dataset)
    for paths, told in (
        ({**standing(commit), "masks": []}, "takes one file of each kind, .* masks: none"),
        ({**standing(commit), "shards": [*standing(commit)["shards"], "shards/x.tar"]}, "there are shards: "),
        ({**standing(commit), "masks": standing(other)["masks"]}, "from the rows gives different bytes"),
        (standing(other), "don't contain each of its ordinals once and in order"),
    ):
        with pytest.raises(DamagedDatasetError, match=told):
            remake_commit(handle_of(uri), known, paths)
    spoil(dataset, commit, "masks", flipped)
    with pytest.raises(DamagedDatasetError):
        remake_commit(handle_of(uri), known, standing(commit))


def test_what_people_said_of_masks_is_lost_with_their_table_and_is_named(tmp_path: Path) -> None:
    location = location_of(tmp_path)
    row = accepted_row(0)
    row |= {"annotator": "Ada", "masks": [{**mask, "label": "cup"} for mask in row["masks"]]}
    write_shard(
        ShardTask(0, 0, 2, handle_of(location), "0123456789ab", 1.0), [(0, 2)], described([row, accepted_row(1)])
    )
    commit = commit_of(tmp_path, 0)
    spoil(tmp_path, commit, "masks", flipped)
    before = digests(tmp_path)
    damages = find_damage(location, commit)
    assert not restore_from_rest(handle_of(location), commit, damages)
    assert digests(tmp_path) == before
    said = lost_annotations(location, commit, damages)
    assert said.startswith("the annotations of the masks of 1 image (label, source,")
    assert commit.file("masks").path in said


def test_nothing_of_people_is_lost_with_other_tables(dataset: Path) -> None:
    commit = commit_of(dataset, 0)
    for kind in ("masks", "rejects"):
        spoil(dataset, commit, kind, flipped)
    assert lost_annotations(location_of(dataset), commit, find_damage(location_of(dataset), commit)) == ""
