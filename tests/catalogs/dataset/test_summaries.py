"""Sums over commits, and the summaries that save them."""

from pathlib import Path

import pytest

from segmint.catalogs.dataset import summaries
from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.summaries import NOTHING, save_full_blocks, sum_commits
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from tests.support.committed import write_dataset, write_generation
from tests.support.locations import location_of


def test_sums_are_those_of_the_commits_that_hold(dataset: str) -> None:
    storage = Storage()
    location = Location(storage, dataset)
    sums = sum_commits(location)
    assert sums.counts == {"rows": 9, "images": 6, "masks": 12, "rejected": 3, "rejected:not_an_image": 3}
    assert (sums.shards, sums.files, dict(sums.numerics)) == (3, 12, {"0123456789ab": 3})
    files = [path for kind in ("shards", "images", "masks", "rejects") for path in Path(dataset, kind).iterdir()]
    assert sums.bytes == sum(path.stat().st_size for path in files)

    write_generation(location, shard=1, generation=2, refuse=3)
    again = sum_commits(location)
    assert (again.shards, again.counts["images"], again.counts["rejected:not_an_image"]) == (3, 4, 5)
    assert sum_commits(location, wanted=range(1, 2)).counts["images"] == 0
    assert sum_commits(Location(storage, f"{dataset}-nowhere")) == NOTHING


def test_full_blocks_are_summed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "SUMMARY_SHARDS", 2)
    location = location_of(tmp_path / "dataset")
    write_dataset(location, shards=5)
    first = sum_commits(location)
    assert len(list((tmp_path / "dataset/summaries").iterdir())) == 2

    read: list[tuple[int, int]] = []
    original = CommitLog.read

    def counted(self: CommitLog, shard: int, generation: int) -> object:
        read.append((shard, generation))
        return original(self, shard, generation)

    monkeypatch.setattr(CommitLog, "read", counted)
    assert sum_commits(location) == first
    assert read == [(4, 1)], "only the block that is not full yet is read"

    write_generation(location, shard=0, generation=2, refuse=3)
    read.clear()
    assert sum_commits(location).counts["images"] == first.counts["images"] - 2
    assert sorted(read) == [(0, 2), (1, 1), (4, 1)]
    names = sorted(path.name[:7] for path in (tmp_path / "dataset/summaries").iterdir())
    assert names == ["000000-", "000002-"], "the summary that no longer fits is gone"


def test_a_build_saves_full_blocks_as_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "SUMMARY_SHARDS", 2)
    location = location_of(tmp_path / "dataset")
    write_dataset(location, shards=1)
    save_full_blocks(location, CommitLog(location).committed().items())
    assert not (tmp_path / "dataset/summaries").exists()
    write_dataset(location, shards=5)
    save_full_blocks(location, CommitLog(location).committed().items())
    assert [path.name[:7] for path in sorted((tmp_path / "dataset/summaries").iterdir())] == ["000000-", "000002-"]
    (tmp_path / "dataset/commits/000001.g1.json").write_bytes(b"junk")
    for path in (tmp_path / "dataset/summaries").iterdir():
        path.unlink()
    save_full_blocks(location, CommitLog(location).committed().items())  # what is damaged is for the end of the run


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"[" * 100_000, b'{"shards":"2","files":8,"bytes":1,"counts":{}}'])
def test_a_damaged_summary_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(summaries, "SUMMARY_SHARDS", 2)
    location = location_of(tmp_path / "dataset")
    write_dataset(location, shards=2)
    sums = sum_commits(location)
    (file,) = (tmp_path / "dataset/summaries").iterdir()
    whole = file.read_bytes()
    file.write_bytes(data)
    assert sum_commits(location) == sums
    assert file.read_bytes() == whole
