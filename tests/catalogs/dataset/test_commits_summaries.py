"""Sums over commits, and the summaries that save them."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from segmint.catalogs.dataset import commits as summaries
from segmint.catalogs.dataset import digest
from segmint.catalogs.dataset.commits import NOTHING, CommitLog, save_full_blocks, sum_listing
from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.dataset.versions import put_version
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import StorageFaultError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.pipeline.building.totals import total
from tests.support.committed import row_of, sum_commits, write_dataset, write_generation
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


def test_a_block_with_a_shard_that_is_held_back_is_summed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "SUMMARY_SHARDS", 2)
    location = location_of(tmp_path / "dataset")
    write_dataset(location, shards=7)
    for shard in (0, 5):
        (tmp_path / f"dataset/commits/{shard:06d}.g1.json").unlink()
    first = sum_commits(location)
    names = sorted(path.name for path in (tmp_path / "dataset/summaries").iterdir())
    assert [name[:7] for name in names] == ["000000-", "000002-", "000004-"], "the last block may still grow"

    read: list[int] = []
    original = CommitLog.read

    def counted(self: CommitLog, shard: int, generation: int) -> object:
        read.append(shard)
        return original(self, shard, generation)

    monkeypatch.setattr(CommitLog, "read", counted)
    assert sum_commits(location) == first
    assert read == [6]
    read.clear()
    assert sum_commits(location, wanted=range(3, 6)).shards == 2
    assert sorted(read) == [3], "a block that is wanted in part is read"
    assert sorted(path.name for path in (tmp_path / "dataset/summaries").iterdir()) == names, "and saved as a whole"


def test_a_build_saves_full_blocks_as_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "SUMMARY_SHARDS", 2)
    location = location_of(tmp_path / "dataset")
    write_dataset(location, shards=1)
    save_full_blocks(location, CommitLog(location).latest_commits())
    assert not (tmp_path / "dataset/summaries").exists()
    write_dataset(location, shards=5)
    save_full_blocks(location, CommitLog(location).latest_commits())
    assert [path.name[:7] for path in sorted((tmp_path / "dataset/summaries").iterdir())] == ["000000-", "000002-"]
    (tmp_path / "dataset/commits/000001.g1.json").write_bytes(b"junk")
    for path in (tmp_path / "dataset/summaries").iterdir():
        path.unlink()
    save_full_blocks(location, CommitLog(location).latest_commits())  # what is damaged is for the end of the run


def test_a_dataset_that_is_begun_again_does_not_get_the_old_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summaries, "SUMMARY_SHARDS", 2)
    monkeypatch.setattr(digest, "SUMMARY_SHARDS", 2)
    location = location_of(tmp_path / "dataset")
    commits = []
    for time, images in ((10**9, 2), (10**9 + 1, 1)):
        write_dataset(location, shards=2)
        for file in (tmp_path / "dataset/commits").iterdir():
            file.write_bytes(file.read_bytes().replace(b'"images":2', b'"images":%d' % images))
            os.utime(file, (time, time))
        commits.append(sorted(path.read_bytes() for path in (tmp_path / "dataset/commits").iterdir()))
        assert sum_commits(location).counts["images"] == 2 * images
        assert digest.take_snapshot(location, save_cache=True) == digest.take_snapshot(location, use_cache=False)
        for folder in ("commits", "shards", "images", "masks", "rejects"):
            shutil.rmtree(tmp_path / "dataset" / folder)
    assert [len(data) for data in commits[0]] == [len(data) for data in commits[1]], "only times and content differ"
    assert len(list((tmp_path / "dataset/summaries").iterdir())) == 2, "the old ones are gone"


@pytest.mark.parametrize("fault", [StorageFaultError("denied"), UsageError("no such profile"), OSError("disk full")])
def test_sums_that_cannot_be_saved_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: Exception
) -> None:
    monkeypatch.setattr(summaries, "SUMMARY_SHARDS", 2)
    monkeypatch.setattr(digest, "SUMMARY_SHARDS", 2)
    location = location_of(tmp_path / "dataset")
    write_dataset(location, shards=4)
    put = Location.put
    tried: list[str] = []

    def refused(self: Location, data: bytes) -> None:
        if "/summaries/" in self.uri:
            tried.append(self.name)
            raise fault
        put(self, data)

    monkeypatch.setattr(Location, "put", refused)
    held = CommitLog(location).latest_commits()
    assert sum_commits(location).shards == 4
    save_full_blocks(location, held)
    assert len(tried) == 2, "one try each"
    assert put_version(location, "build").number == 1
    assert not (tmp_path / "dataset/summaries").exists()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "sums of commits are not saved" in line]
    assert str(fault) in line, "once"

    def unlisted(self: Location, include_temporary: bool = False, beginning: str = "") -> list[object]:
        raise fault

    monkeypatch.setattr(Location, "list", unlisted)
    save_full_blocks(location, held)


def test_a_commit_that_is_replaced_after_the_listing_is_counted_as_the_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summaries, "SUMMARY_SHARDS", 2)
    location = location_of(tmp_path / "dataset")
    write_dataset(location, shards=3)
    held = CommitLog(location).latest_commits()
    for shard in (1, 2):
        write_generation(location, shard=shard, generation=2, refuse=3)
        CommitLog(location).location(shard, 1).delete()
    sums = sum_listing(location, held)
    assert (sums.shards, sums.counts["rows"], sums.counts["images"]) == (3, 9, 2)
    assert not (tmp_path / "dataset/summaries").exists(), "a thousand that changed meanwhile is not saved"
    assert sum_commits(location) == sums


def test_many_commits_to_be_read_are_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(summaries, "SUMMARY_SHARDS", 2)
    monkeypatch.setattr(summaries, "PROGRESS_FROM", 3)
    location = location_of(tmp_path / "dataset")
    write_dataset(location, shards=4)
    sum_commits(location)
    assert "commits without saved sums are read one by one" in capsys.readouterr().err
    sum_commits(location)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b"[" * 100_000, b'{"shards":"2","files":8,"bytes":1,"counts":{}}', None]
)
def test_a_damaged_summary_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes | None) -> None:
    monkeypatch.setattr(summaries, "SUMMARY_SHARDS", 2)
    location = location_of(tmp_path / "dataset")
    write_dataset(location, shards=2)
    sums = sum_commits(location)
    (file,) = (tmp_path / "dataset/summaries").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b'"images":4', b'"images":5') if data is None else data)
    assert sum_commits(location) == sums
    assert file.read_bytes() == whole


def test_the_most_redacted_images_of_all_blocks_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "SUMMARY_SHARDS", 2)
    location = location_of(tmp_path / "dataset")

    def redacted(ordinal: int, refused: bool) -> dict[str, Any]:
        return {**row_of(ordinal, refused), "redacted_share": (ordinal * 7 % 10) / 10}

    write_dataset(location, shards=4, make_row=redacted)
    first = sum_commits(location)
    shares = {ordinal + 1: (ordinal * 7 % 10) / 10 for ordinal in range(12) if ordinal % 3 < 2}
    high = {id: share for id, share in shares.items() if share > 0.15}
    assert first.counts["highly_redacted"] == len(high) == 5
    assert first.most_redacted == tuple(sorted(high.items(), key=lambda each: (-each[1], each[0]))[:5])
    assert sum_commits(location) == first, "from the saved summaries"
    manifest = load_manifest(location)
    totals = total(location, manifest, CommitLog(location).latest_commits(), range(4)).redactions
    assert [share for _, share in totals.worst] == [share for _, share in first.most_redacted]
    assert totals.worst[0][0] == f"image-{first.most_redacted[0][0] - 1}"
    (line,) = totals.lines(width=10)
    assert line.startswith(f"redacted  over 15% of 5 images; the worst: {totals.worst[0][0]} 90%, ")
