"""A shard's next generation: put before anything is removed, and then nothing of the old one is left."""

from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.infra.errors import UsageError
from segmint.infra.storage.connections import FsspecStore
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.operators.rows import Row
from segmint.operators.shards.put import LostRaceError, check_purge, remove_replaced, replace_shard
from segmint.operators.shards.revise import read_committed_rows
from tests.support.builds import digests
from tests.support.committed import write_dataset
from tests.support.everything import upload
from tests.support.locations import handle_of, location_of
from tests.support.s3_server import S3Server


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two committed shards of three made-up rows, the last of each refused."""
    write_dataset(location_of(tmp_path / "dataset"), shards=2)
    return tmp_path / "dataset"


def refused(dataset: Location, commit: Commit, ordinal: int = 0) -> list[Row]:
    """The rows of a commit with one more refused."""
    rows = read_committed_rows(dataset, commit)
    verdict = {"stage": "read", "reason": "not_found", "detail": "gone"}
    return [{**row, **verdict} if row["ordinal"] == ordinal else row for row in rows]


def test_the_next_generation_holds_and_nothing_of_the_old_one_is_left(dataset: Path) -> None:
    location = location_of(dataset)
    old, other = CommitLog(location).read_all()
    before = digests(dataset)
    new = replace_shard(handle_of(location), old, refused(location, old))
    assert (new.shard, new.generation, new.ordinals, new.numerics) == (0, 2, old.ordinals, old.numerics)
    assert new.counts["images"] == old.counts["images"] - 1
    assert before.items() <= digests(dataset).items()  # nothing is removed yet

    remove_replaced(location, [0])
    after = digests(dataset)
    assert after.keys() == {
        "dataset.json",
        "commits/000000.g2.json",
        "commits/000001.g1.json",
        *(entry.path for entry in (*new.files, *other.files)),
    }
    remove_replaced(location, [0, 1])
    assert digests(dataset) == after


def test_a_file_that_did_not_change_stays(dataset: Path) -> None:
    location = location_of(dataset)
    old, _ = CommitLog(location).read_all()
    new = replace_shard(handle_of(location), old, read_committed_rows(location, old))
    remove_replaced(location, [0])
    assert new.to_json() == replace(old, generation=2).to_json()
    assert all((dataset / entry.path).is_file() for entry in old.files)


def test_leftovers_of_the_shard_and_temporary_files_go_and_those_of_others_stay(dataset: Path) -> None:
    location = location_of(dataset)
    digits = f"{0:032x}"
    left = [
        "shards/sa_000000-0123456789ab.tar",
        "images/sa_000000-0123456789ab.parquet",
        "masks/.tmp-dead",
        f"masks/.tmp-{digits}",
        f"masks/.tmp-sa_000000-0123456789ab.parquet-{digits}",
        f"masks/.tmp-notes.txt-{digits}",
    ]
    kept = [
        "shards/sa_000001-0123456789ab.tar",
        "shards/notes.txt",
        f"masks/.tmp-sa_000001-0123456789ab.parquet-{digits}",  # its writer may be at work
    ]
    for name in (*left, *kept):
        (dataset / name).write_bytes(b"x")
    before = digests(dataset)
    remove_replaced(location, [0])
    assert before.keys() - digests(dataset).keys() == set(left)


def test_names_of_other_shards_are_not_listed_for_one(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset has up to millions of files, and a takedown removes what it replaced shard by shard."""
    listed = set[str]()
    walk_ever = Location.walk_ever

    def record(self: Location, beginning: str = "") -> tuple[str, ...]:
        names = walk_ever(self, beginning)
        listed.update(names)
        return names

    monkeypatch.setattr(Location, "walk_ever", record)
    remove_replaced(location_of(dataset), [0])
    assert {name[:9] for name in listed} == {"sa_000000", "000000.g1"}


def test_what_a_dead_writer_left_of_a_shard_without_a_commit_goes(dataset: Path) -> None:
    """It may hold the very image that is taken down; the next build makes the shard without it."""
    (dataset / "commits" / "000000.g1.json").unlink()
    before = digests(dataset)
    remove_replaced(location_of(dataset), [0])
    gone = before.keys() - digests(dataset).keys()
    assert gone == {path for path in before if "/sa_000000-" in path}
    assert len(gone) == 4


def test_the_loser_of_a_race_deletes_only_its_own_files(dataset: Path) -> None:
    location = location_of(dataset)
    old, _ = CommitLog(location).read_all()
    winner = replace_shard(handle_of(location), old, refused(location, old, ordinal=0))
    before = digests(dataset)
    with pytest.raises(LostRaceError, match="shard 0: another command committed generation 2"):
        replace_shard(handle_of(location), old, refused(location, old, ordinal=1))
    assert digests(dataset) == before
    assert replace_shard(handle_of(location), old, refused(location, old, ordinal=0)) == winner


def test_a_store_whose_versions_cannot_be_seen_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_purge(location_of(tmp_path))
    assert digests(tmp_path) == {}
    filesystem = fsspec.filesystem("memory")
    monkeypatch.setattr("segmint.infra.storage.storage.connect", lambda *_: FsspecStore(filesystem))
    with pytest.raises(UsageError, match="older versions"):
        check_purge(Location(Storage(), "gs://datasets/small"))
    assert filesystem.find("/") == []


@pytest.mark.s3
def test_older_versions_go_too_on_a_versioned_bucket(
    dataset: Path, s3_server: S3Server, s3_bucket: str, s3_options: dict[str, dict[str, str]]
) -> None:
    client = s3_server.client()
    storage, uri = Storage(s3_options), f"s3://{s3_bucket}/dataset"
    location = Location(storage, uri)
    storage.put(f"{uri}/shards/sa_000000-0123456789ab.tar", b"put before versions were kept")
    client.put_bucket_versioning(Bucket=s3_bucket, VersioningConfiguration={"Status": "Enabled"})
    upload(dataset, Location(storage, uri))
    old, other = CommitLog(location).read_all()
    storage.put(f"{uri}/{old.files[0].path}", storage.read(f"{uri}/{old.files[0].path}"))
    storage.delete(f"{uri}/shards/sa_000000-0123456789ab.tar")  # as a sweep does: its version is kept

    check_purge(location)
    new = replace_shard(handle_of(location), old, refused(location, old))
    remove_replaced(location, [0])
    left = client.list_object_versions(Bucket=s3_bucket)
    assert left.get("DeleteMarkers", []) == []
    assert {entry["Key"].removeprefix("dataset/") for entry in left["Versions"]} == {
        "dataset.json",
        "commits/000000.g2.json",
        "commits/000001.g1.json",
        *(entry.path for entry in (*new.files, *other.files)),
    }
