"""The commit log on local files and on S3: exactly one of several writers wins, the highest generation holds."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from segmint.catalogs.dataset.commits import Commit, CommitLog, FileEntry, Reservation, read_shard_state
from segmint.catalogs.layout import DamagedDatasetError, data_path
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from tests.support.locations import location_of

DIGEST = "ab" * 32


def commit_of(shard: int, generation: int = 1, **changes: object) -> Commit:
    commit = Commit(
        shard=shard,
        generation=generation,
        ordinals=(shard * 10, shard * 10 + 10),
        numerics="0123456789ab",
        build_sha256=DIGEST,
        counts={"rows": 10, "images": 9, "rejected": 1, "masks": 700, "rejected:not_found": 1},
        files=tuple(FileEntry(data_path(kind, shard, DIGEST), 100, DIGEST) for kind in ("shards", "images")),
    )
    return replace(commit, **changes)  # type: ignore[arg-type]


def test_a_commit_survives_its_file() -> None:
    commit = commit_of(3, files=(FileEntry("shards/z", 1, DIGEST), FileEntry("images/a", 2, DIGEST)))
    read = Commit.from_json(commit.to_json())
    assert read == replace(commit, files=commit.files[::-1])
    assert read.to_json() == commit.to_json()
    assert read.file("images").path == "images/a"
    with pytest.raises(DamagedDatasetError, match=r"000003\.g1\.json names no file in rejects/"):
        read.file("rejects")


def test_a_commit_holds_nothing_but_its_content() -> None:
    counts = dict(reversed(commit_of(0).counts.items()))
    assert commit_of(0, counts=counts).to_json() == commit_of(0).to_json()
    assert set(Commit.from_json(commit_of(0).to_json()).__dict__) == {
        "shard", "generation", "ordinals", "numerics", "build_sha256", "counts", "files", "most_redacted",
    }  # fmt: skip


@pytest.mark.parametrize("data", [b"", b"[]", b'{"shard": 1}', commit_of(1).to_json().replace(b"[10,20]", b"[10]")])
def test_other_files_are_not_commits(data: bytes) -> None:
    with pytest.raises(DamagedDatasetError, match="a/commit is not a commit"):
        Commit.from_json(data, "a/commit")


def check_log(dataset: Location) -> None:
    log = CommitLog(dataset)
    assert log.committed() == {}
    assert log.read(0, 1) is None
    assert list(log.read_all()) == []

    for shard, generation in ((2, 1), (0, 1), (0, 2), (0, 10), (1_000_000, 1)):
        assert log.put(commit_of(shard, generation))
    assert log.put(commit_of(0)), "the same commit stands there: as good as written"
    assert not log.put(commit_of(0, numerics="other0000000"))
    (dataset / "commits/README").put(b"x")
    (dataset / "commits/000005.g1.json.orig").put(b"x")

    assert list(log.committed().items()) == [(0, 10), (2, 1), (1_000_000, 1)]
    assert log.generations()[0] == [1, 2, 10]
    assert [commit.key for commit in log.latest_commits()] == [(0, 10), (2, 1), (1_000_000, 1)]
    assert log.put(commit_of(100_099))  # its name begins as that of shard 1,000,000
    for shards, expected in ((1_000_001, [0, 0, 0, 2, 100_099, 1_000_000]), (2, [0, 0, 0]), (0, [])):
        assert [commit.shard for commit in log.listed(shards)] == expected
    log.location(100_099, 1).delete()
    assert [(c.shard, c.generation) for c in log.read_all(threads=3)] == [(0, 10), (2, 1), (1_000_000, 1)]
    assert log.read(0, 1) == Commit.from_json(commit_of(0).to_json())
    assert log.latest(0) == Commit.from_json(commit_of(0, 10).to_json())
    assert log.latest(1) is None

    # Of eight writers with eight different contents one wins, and the others learn that they did not.
    def contend(racer: int) -> bool:
        return log.put(commit_of(7, counts={"rows": racer}))

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(contend, range(8)))
    assert won.count(True) == 1
    winner = log.latest(7)
    assert winner is not None
    assert winner.counts == {"rows": won.index(True)}


def test_the_log_on_local_files(tmp_path: Path) -> None:
    check_log(location_of(tmp_path / "dataset"))


@pytest.mark.s3
def test_the_log_on_s3(s3_bucket: str, s3_options: dict[str, dict[str, str]]) -> None:
    check_log(Location(Storage(s3_options), f"s3://{s3_bucket}/data/set"))


def test_a_commit_under_another_name_is_damage(tmp_path: Path) -> None:
    storage, uri = Storage(), str(tmp_path)
    storage.put(f"{uri}/commits/000001.g1.json", commit_of(2).to_json())
    with pytest.raises(DamagedDatasetError, match="is the commit of shard 2"):
        CommitLog(Location(storage, uri)).read(1, 1)


def test_a_commit_that_is_replaced_between_listing_and_reading_is_read_in_its_newer_generation(tmp_path: Path) -> None:
    log = CommitLog(location_of(tmp_path))
    for shard in range(3):
        log.put(commit_of(shard))

    class ReplacedLog(CommitLog):
        """Another process replaces shard 1 twice after this one has listed the commits."""

        def committed(self) -> dict[int, int]:
            listed = super().committed()
            self.replace(listed[1])
            return listed

        def generations_of(self, shard: int) -> list[int]:
            listed = super().generations_of(shard)
            self.replace(listed[-1])
            return listed

        def replace(self, generation: int) -> None:
            if generation < 3:
                log.put(commit_of(1, generation + 1))
                log.location(1, generation).delete()

    replaced = ReplacedLog(location_of(tmp_path))
    assert [(commit.shard, commit.generation) for commit in replaced.read_all()] == [(0, 1), (1, 3), (2, 1)]
    log.location(1, 3).delete()
    assert [commit.shard for commit in log.read_all()] == [0, 2]


@pytest.mark.parametrize("data", [b"{}", b'{"paths":[[]]}', b'{"paths":"shards/x"}', b'{"paths":' + b"[" * 100_000])
def test_another_file_among_the_reservations_is_named(tmp_path: Path, data: bytes) -> None:
    reservation = Reservation(1, 2, ()).location(location_of(tmp_path))
    reservation.put(data)
    with pytest.raises(DamagedDatasetError, match=reservation.name):
        read_shard_state(location_of(tmp_path), 1)
