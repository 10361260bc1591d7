"""The sweep deletes what nothing names, once it is old, and nothing else."""

import os
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import pytest

from segmint.catalogs.dataset.commits import CommitLog, Reservation
from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.catalogs.dataset.sweep import sweep
from segmint.catalogs.layout import DamagedDatasetError, data_path, part_path
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from tests.support.committed import write_dataset, write_generation
from tests.support.locations import location_of

LATER = datetime.now(UTC) + timedelta(days=2)


def files_of(dataset: str) -> set[str]:
    return {str(path.relative_to(dataset)) for path in Path(dataset).rglob("*") if path.is_file()}


def put(dataset: str, path: str) -> str:
    Storage().put(f"{dataset}/{path}", b"left over")
    return path


def test_files_are_old_by_the_store_s_clock(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's may be days ahead: a file of a writer at work must not look old."""
    unnamed = put(dataset, data_path("shards", 1, "0" * 64))

    class FastClock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + timedelta(days=30)

    monkeypatch.setattr("segmint.catalogs.dataset.sweep.datetime", FastClock)
    assert sweep(location_of(dataset)) == []
    old = datetime.now(UTC).timestamp() - 2 * 86_400
    os.utime(f"{dataset}/{unnamed}", (old, old))
    assert sweep(location_of(dataset)) == [unnamed]
    assert not [path for path in files_of(dataset) if ".tmp-" in path]


def test_what_a_writer_reserves_stays_until_its_generation_is_committed(dataset: str) -> None:
    location = location_of(dataset)
    paths = [put(dataset, data_path(kind, 1, "0" * 64)) for kind in ("shards", "masks")]
    for generation, gone in ((2, []), (1, sorted(paths))):
        reservation = Reservation(1, generation, tuple(paths))
        reservation.location(location).put(reservation.to_json())
        assert sweep(location, now=LATER) == gone
        assert reservation.location(location).exists()
        reservation.location(location).delete()


@pytest.mark.parametrize("changed", ["sh|ards/sa_000001", "masks/sa_00000|1-", "masks/sa_000001-|"])
def test_a_commit_with_a_changed_letter_costs_no_file(dataset: str, changed: str) -> None:
    """The file that it meant looks left over, once another file makes the sweep look at the shard."""
    commit = Path(dataset, "commits/000001.g1.json")
    before, after = changed.split("|")
    text = commit.read_text()
    place = text.index(before + after) + len(before)
    commit.write_text(text[:place] + ("1" if text[place] == "0" else "0") + text[place + 1 :])
    put(dataset, data_path("shards", 1, "0" * 64))
    files = files_of(dataset)
    with pytest.raises(DamagedDatasetError, match=r"000001\.g1\.json names .*segmint repair"):
        sweep(location_of(dataset), now=LATER)
    assert files_of(dataset) == files


def test_a_whole_dataset_loses_nothing(dataset: str) -> None:
    before = files_of(dataset)
    assert sweep(location_of(dataset), now=LATER) == []
    assert files_of(dataset) == before


def test_leftovers_go_when_they_are_old(dataset: str) -> None:
    before = files_of(dataset)
    unnamed = put(dataset, data_path("shards", 1, "0" * 64))
    temporary = {
        put(dataset, f"{folder}.tmp-0123")
        for folder in ("images/", "commits/", "catalog/", "summaries/", "tombstones/", "")
    }
    foreign = {put(dataset, "shards/README.txt"), put(dataset, "report/sa_000001-000000000000.tar")}

    assert sweep(location_of(dataset)) == [], "a writer may be at work"
    assert sweep(location_of(dataset), now=LATER) == sorted([unnamed, *temporary])
    assert files_of(dataset) == before | foreign


def test_parts_of_the_catalog_that_the_manifest_does_not_name_go_when_they_are_old(dataset: str) -> None:
    """A build that died while the dataset grew left its part, but no manifest that names it."""
    named = put(dataset, part_path(0, "0" * 64))
    unnamed = put(dataset, part_path(1, "ab" * 32))
    assert sweep(location_of(dataset)) == [], "a build may be at work"
    assert sweep(location_of(dataset), now=LATER) == [unnamed]
    assert named in files_of(dataset)


def test_nothing_of_a_shard_goes_before_it_is_committed(dataset: str) -> None:
    """Its writer may pause for days before it puts the commit, and another may write the same bytes again."""
    commit = CommitLog(location_of(dataset)).latest(1)
    assert commit is not None
    Storage().delete(f"{dataset}/commits/000001.g1.json")
    unnamed = put(dataset, data_path("shards", 1, "0" * 64))
    before = files_of(dataset)
    assert sweep(location_of(dataset), now=LATER) == []
    assert files_of(dataset) == before

    CommitLog(location_of(dataset)).put(commit)
    assert sweep(location_of(dataset), now=LATER) == [unnamed]


def test_a_replaced_generation_goes_at_once(dataset: str) -> None:
    """A take-down that died after its commit is finished by the sweep."""
    storage = Storage()
    location = Location(storage, dataset)
    log = CommitLog(location)
    old = log.latest(1)
    assert old is not None
    write_generation(location, shard=1, generation=2, refuse=2)
    new = log.latest(1)
    assert new is not None
    busy = put(dataset, data_path("shards", 1, "5" * 64))  # of a writer of generation 3

    gone = sorted({entry.path for entry in old.files} - {entry.path for entry in new.files})
    assert sweep(location) == sorted([*gone, "commits/000001.g1.json"])
    assert log.generations() == {0: [1], 1: [2], 2: [1]}
    assert busy in files_of(dataset)
    assert [sample.id for sample in open_dataset(dataset)] == [1, 2, 4, 7, 8]


def test_a_file_that_both_generations_name_stays(dataset: str) -> None:
    storage = Storage()
    location = Location(storage, dataset)
    write_generation(location, shard=0, generation=2)  # the same rows: the same files
    before = files_of(dataset)
    assert sweep(location, now=LATER) == ["commits/000000.g1.json"]
    assert files_of(dataset) == before - {"commits/000000.g1.json"}


def test_nothing_goes_in_a_folder_that_is_a_link(dataset: str, tmp_path: Path) -> None:
    unnamed = put(dataset, data_path("shards", 1, "0" * 64))
    temporary = put(dataset, "images/.tmp-0123")
    Path(dataset, "shards").rename(tmp_path / "elsewhere")
    Path(dataset, "shards").symlink_to(tmp_path / "elsewhere")
    assert sweep(location_of(dataset), now=LATER) == [temporary]
    assert Path(dataset, unnamed).exists()


@pytest.mark.s3
def test_the_sweep_on_s3(s3_bucket: str, s3_options: dict[str, dict[str, str]]) -> None:
    storage, uri = Storage(s3_options), f"s3://{s3_bucket}/dataset"
    location = Location(storage, uri)
    write_dataset(location, shards=2)
    before = [entry.name for entry in storage.walk(uri)]
    unnamed = data_path("images", 0, "0" * 64)
    storage.put(f"{uri}/{unnamed}", b"left over")
    assert sweep(location) == []
    assert sweep(location, now=LATER) == [unnamed]
    assert [entry.name for entry in storage.walk(uri)] == before
