"""The cache of shards: one bound for all processes, the least recently used go first, damaged copies are renewed."""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest

from segmint.catalogs.dataset.commits import CommitLog, FileEntry
from segmint.catalogs.dataset.manifest import dataset_keys, put_dataset_id
from segmint.catalogs.dataset.reading.cache import ShardCache, drop_stale
from segmint.catalogs.dataset.reading.torch_dataset import BatchLoader, open_dataset
from segmint.catalogs.dataset.tombstones import TakedownRequest
from segmint.catalogs.layout import DamagedDatasetError, data_path
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.pipeline.corrections.redact import redact
from segmint.pipeline.corrections.takedown import takedown
from tests.support.committed import write_dataset
from tests.support.everything import upload
from tests.support.locations import location_of

SIZE = 10_000
KEY = "0" * 32
"""The key of a dataset that has an id."""


class CacheFiles:
    """Files of one size in a folder that stands for a store, each with its entry."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def make(self, number: int) -> tuple[Location, FileEntry]:
        data = bytes([number]) * SIZE
        path = self.folder / f"{number}.tar"
        path.write_bytes(data)
        return location_of(path), FileEntry(path.name, SIZE, hashlib.sha256(data).hexdigest())


@pytest.fixture
def files(tmp_path: Path) -> CacheFiles:
    return CacheFiles(tmp_path / "store")


def read(cache: ShardCache, source: Location, entry: FileEntry, check: bool = True) -> bytes:
    with cache.open(source, entry, check) as stream:
        return stream.read()


def copies(cache: ShardCache) -> set[Path]:
    return {path for path in (cache.folder / KEY).iterdir() if path.is_file()}


def test_a_system_without_locks_is_named(files: CacheFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(UsageError, match="needs file locks"):
        read(ShardCache(tmp_path / "cache", KEY, SIZE), *files.make(0))


def test_the_least_recently_used_copies_make_room(files: CacheFiles, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", KEY, 3 * SIZE)
    made = [files.make(number) for number in range(4)]
    for number in (0, 1, 2, 0, 3):
        assert read(cache, *made[number]) == bytes([number]) * SIZE
        time.sleep(0.01)
    assert copies(cache) == {cache.path(made[number][1]) for number in (2, 0, 3)}


def test_a_copy_is_made_once_and_used_again(files: CacheFiles, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", KEY, 3 * SIZE)
    source, entry = files.make(1)
    read(cache, source, entry)
    source.delete()
    assert read(cache, source, entry) == b"\x01" * SIZE


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"x" + data[1:]])
def test_damaged_copies_are_fetched_again(files: CacheFiles, tmp_path: Path, damage) -> None:
    cache = ShardCache(tmp_path / "cache", KEY, 3 * SIZE)
    source, entry = files.make(1)
    read(cache, source, entry)
    path = cache.path(entry)
    path.write_bytes(damage(path.read_bytes()))
    assert read(cache, source, entry) == b"\x01" * SIZE


def test_a_damaged_source_is_an_error_and_leaves_nothing(files: CacheFiles, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", KEY, 3 * SIZE)
    source, entry = files.make(1)
    source.put(b"y" * SIZE)
    with pytest.raises(DamagedDatasetError, match=r"1\.tar is damaged: it has 10,000 bytes .*segmint repair"):
        cache.open(source, entry, check=False)
    assert copies(cache) == set()


def test_a_hash_that_leads_out_of_the_cache_is_refused(files: CacheFiles, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", KEY, 3 * SIZE)
    outside = tmp_path / "mine.copy"
    outside.write_bytes(b"kept")
    source, entry = files.make(1)
    with pytest.raises(DamagedDatasetError, match=r"SHA-256 '\.\./mine'"):
        cache.open(source, replace(entry, sha256="../mine"), check=True)
    assert outside.read_bytes() == b"kept"


def test_a_copy_that_is_taken_away_can_be_read_on(files: CacheFiles, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", KEY, SIZE)
    one, other = files.make(1), files.make(2)
    with cache.open(*one, check=True) as copy:
        read(cache, *other)
        assert not cache.use(one[1])
        assert copy.read() == b"\x01" * SIZE


def test_a_bound_below_one_shard_says_so(files: CacheFiles, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", KEY, SIZE - 1)
    with pytest.raises(UsageError, match="limited to 9,999 bytes, but one shard has 10,000"):
        cache.open(*files.make(1), check=True)


def test_files_of_others_in_its_folder_are_kept(files: CacheFiles, tmp_path: Path) -> None:
    folder = tmp_path / "scratch" / KEY
    folder.mkdir(parents=True)
    for name in ("thesis.txt", ".tmp-of-another", f"{0:064x}"):
        (folder / name).write_bytes(b"mine" * SIZE)
        os.utime(folder / name, (0, 0))
    cache = ShardCache(folder.parent, KEY, SIZE)
    for number in (1, 2):
        read(cache, *files.make(number))
    assert len(copies(cache)) == 4


@pytest.mark.parametrize("under", ["file", "file/cache", "/proc/cache"])
def test_a_folder_that_cannot_be_used_says_so(files: CacheFiles, tmp_path: Path, under: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match=r"the cache .* cannot be used: .* Expected a folder on a local disk"):
        ShardCache(tmp_path / under, KEY, SIZE).open(*files.make(1), check=True)


@pytest.mark.s3
def test_the_folder_is_the_same_wherever_a_process_goes(
    s3_bucket: str, s3_options: dict[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, uri = Storage(s3_options), f"s3://{s3_bucket}/some/dataset"
    write_dataset(Location(storage, uri), shards=1)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    found = [open_dataset(uri, storage, cache=name).cache for name in ("~/cache", "cache")]
    assert [each and each.folder for each in found] == [tmp_path / "home/cache", tmp_path / "cache"]


def test_room_that_others_took_is_waited_for(files: CacheFiles, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", KEY, 2 * SIZE)
    other = cache.folder / ("1" * 12)  # of another dataset
    other.mkdir(parents=True)
    taken = other / f".tmp-{0:032x}.copy"
    taken.write_bytes(b"z" * 2 * SIZE)
    made = files.make(1)
    with ThreadPoolExecutor(1) as pool, taken.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        waiting = pool.submit(read, cache, *made)
        time.sleep(0.3)
        assert not waiting.done()
        taken.unlink()
        assert waiting.result(timeout=30) == b"\x01" * SIZE


FETCHER = """
import sys, time
from pathlib import Path
from segmint.catalogs.dataset.commits import FileEntry
from segmint.catalogs.dataset.manifest import put_dataset_id
from segmint.catalogs.dataset.reading import cache
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
def never(source, target):
    print("fetching", flush=True)
    time.sleep(600)
cache._copied = never
most = int(sys.argv[2])
entry = FileEntry("x", most, "0" * 64)
cache.ShardCache(Path(sys.argv[1]), "0" * 32, most).open(Location(Storage(), "/none"), entry, True)
"""


def test_room_that_a_killed_process_took_is_free_at_once(files: CacheFiles, tmp_path: Path) -> None:
    cache, made = ShardCache(tmp_path / "cache", KEY, SIZE), files.make(1)
    with (
        subprocess.Popen(
            [sys.executable, "-c", FETCHER, str(cache.folder), str(SIZE)], stdout=subprocess.PIPE
        ) as fetching,
        ThreadPoolExecutor(1) as pool,
    ):
        assert fetching.stdout is not None
        assert fetching.stdout.readline() == b"fetching\n"
        (left,) = copies(cache)
        os.utime(left, (0, 0))  # however long it takes: it may be halted
        waiting = pool.submit(read, cache, *made)
        time.sleep(0.5)
        assert not waiting.done()
        fetching.kill()
        assert waiting.result(timeout=30) == b"\x01" * SIZE
    assert copies(cache) == {cache.path(made[1])}


READER = """
import hashlib, os, random, sys
from pathlib import Path
from segmint.catalogs.dataset.commits import FileEntry
from segmint.catalogs.dataset.manifest import put_dataset_id
from segmint.catalogs.dataset.reading.cache import ShardCache
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
store, folder, seed, most = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
random.seed(seed)
for _ in range(60):
    path = random.choice(sorted(store.iterdir()))
    data = path.read_bytes()
    entry = FileEntry(path.name, len(data), hashlib.sha256(data).hexdigest())
    with ShardCache(folder, "0" * 32, most).open(Location(Storage(), str(path)), entry, True) as stream:
        assert stream.read() == data
"""


def test_the_bound_holds_for_several_processes(files: CacheFiles, tmp_path: Path) -> None:
    for number in range(8):
        files.make(number)
    folder, most = tmp_path / "cache", 4 * SIZE
    command = [sys.executable, "-c", READER, str(files.folder), str(folder)]
    readers = [subprocess.Popen([*command, str(seed), str(most)]) for seed in range(3)]
    largest = 0
    while any(reader.poll() is None for reader in readers):
        found = 0
        for path in list(folder.rglob("*.copy")) if folder.exists() else []:
            try:
                found += path.stat().st_size if path.is_file() else 0
            except FileNotFoundError:
                continue
        # A file that is renamed between two looks may be counted twice.
        largest = max(largest, found - SIZE)
        time.sleep(0.002)  # the readers get the processor
    assert [reader.returncode for reader in readers] == [0, 0, 0]
    assert 0 < largest <= most
    assert sum(path.stat().st_size for path in folder.rglob("*.copy")) <= most


def test_threads_of_a_process_fetch_a_file_once(
    files: CacheFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, made, fetched = ShardCache(tmp_path / "cache", KEY, 3 * SIZE), files.make(1), []
    plain = Location.open

    def counted(source: Location) -> BinaryIO:
        fetched.append(threading.get_ident())
        time.sleep(0.1)
        return plain(source)

    monkeypatch.setattr(Location, "open", counted)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: read(cache, *made), range(4))) == {b"\x01" * SIZE}
    assert len(fetched) == 1


@pytest.mark.s3
def test_a_bucket_is_read_through_a_small_cache_that_is_damaged_meanwhile(
    s3_bucket: str, s3_options: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    storage, uri = Storage(s3_options), f"s3://{s3_bucket}/some/dataset"
    write_dataset(Location(storage, uri), shards=6)
    plain = sorted(sample.id for sample in open_dataset(uri, storage))
    tar = max(entry.size for entry in Location(storage, f"{uri}/shards").list())
    opened = open_dataset(uri, storage, cache=tmp_path / "cache", cache_bytes=3 * tar)
    batches = opened.batches(3, seed=1, window=4)
    loader = BatchLoader(batches, num_workers=2)
    first = [[sample.id for sample in batch] for batch in loader]
    assert sorted(sum(first, [])) == plain  # noqa: RUF017
    held = list((tmp_path / "cache").rglob("*.copy"))
    assert 0 < sum(path.stat().st_size for path in held) <= 3 * tar
    for path in held:
        path.write_bytes(path.read_bytes().replace(b'{"image"', b'{"imagf"'))
    assert sorted(sample.id for batch in loader for sample in batch) == plain
    assert sorted(sample.id for sample in opened) == plain


def test_copies_of_shards_that_a_dataset_lost_are_dropped_and_no_others(tmp_path: Path) -> None:
    """Those from before it got an id too, and what a killed process left; not what is open, or another dataset's."""
    folder, dataset = tmp_path / "cache", location_of(tmp_path / "dataset")

    def add(number: int) -> tuple[Path, BinaryIO]:
        """Add a shard to the dataset and open a copy of it."""
        data = bytes([number]) * SIZE
        entry = FileEntry(path := data_path("shards", number, digest := hashlib.sha256(data).hexdigest()), SIZE, digest)
        (dataset / path).put(data)
        cache = ShardCache(folder, dataset_keys(dataset)[0])
        return cache.path(entry), cache.open(dataset / path, entry, check=True)

    early, early_copy = add(0)
    put_dataset_id(dataset)
    (held, held_copy), (late, late_copy), (current, current_copy) = (add(number) for number in (1, 2, 3))
    other = folder / KEY / late.name
    left = current.with_name(f".tmp-{0:032x}.copy")
    other.parent.mkdir()
    for path in (other, left):
        path.write_bytes(b"x")
    assert early.parent != late.parent
    for copy in (early_copy, late_copy, current_copy):
        copy.close()
    assert drop_stale(folder, dataset) == (1, 0)  # what was left
    for name in (early.stem, held.stem, late.stem):
        (tar,) = (tmp_path / "dataset" / "shards").glob(f"*-{name[:12]}.tar")
        tar.unlink()
    assert drop_stale(folder, dataset) == (2, 1)
    assert set(folder.rglob("*.copy")) == {held, current, other}
    held_copy.close()
    assert drop_stale(folder, dataset) == (1, 0)
    assert set(folder.rglob("*.copy")) == {current, other}


@pytest.fixture
def stored(
    small_dataset: Path,
    s3_bucket: str,
    s3_options: dict[str, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Location:
    """The small dataset in a bucket, whose readers cache in `tmp_path / "own"`."""
    monkeypatch.setenv("SEGMINT_CACHE", str(tmp_path / "own"))
    location = Location(Storage(s3_options), f"s3://{s3_bucket}/some/dataset")
    upload(small_dataset, location)
    return location


@pytest.mark.s3
def test_a_takedown_deletes_the_copies_that_it_knows_and_readers_delete_the_others(
    stored: Location, tmp_path: Path
) -> None:
    storage, other = stored.storage, f"{stored.uri}-2"
    write_dataset(Location(storage, other), shards=1)
    own = tmp_path / "own" / "shards"
    folders = {name: tmp_path / name for name in ("opened", "iterated", "batches")}
    readers = {name: open_dataset(stored.uri, storage, cache=folder) for name, folder in folders.items()}
    loader = BatchLoader(readers["batches"].batches(2))
    for images in (*readers.values(), loader, open_dataset(stored.uri, storage).batches(2)):
        assert len(list(images)) > 1
    list(open_dataset(other, storage).batches(1))
    list(open_dataset(other, storage, cache=folders["iterated"]))
    tar = CommitLog(stored).read(1, 1).file("shards")

    def names(folder: Path) -> set[str]:
        return {path.stem for path in folder.rglob("*.copy")}

    kept = names(own) - {tar.sha256}
    assert all(tar.sha256 in names(folder) for folder in (own, *folders.values()))
    assert len(kept) == 3  # one of the other dataset
    result = takedown(stored, TakedownRequest(ids=("sa_5",)), "asked")
    assert result.caches == ("this machine's shard cache: 1 outdated file deleted",)
    assert names(own) == kept
    assert all(tar.sha256 in names(folder) for folder in folders.values())
    open_dataset(stored.uri, storage, cache=folders["opened"])
    assert next(iter(readers["iterated"])).id == 1
    with pytest.raises(UsageError, match=r"shard 1 of .* was changed while it was read"):
        list(loader)
    assert names(folders["iterated"]) == kept
    assert names(folders["opened"]) == names(folders["batches"]) < kept
    assert len(names(folders["opened"])) == 2


HOLDER = """
import sys
from pathlib import Path
from segmint.catalogs.dataset.commits import FileEntry
from segmint.catalogs.dataset.reading.cache import ShardCache
copy = Path(sys.argv[1])
entry = FileEntry("x", copy.stat().st_size, copy.stem)
with ShardCache(copy.parent.parent, copy.parent.name).open(None, entry, check=False) as stream:
    print("open", flush=True)
    sys.stdin.read()
    sys.exit(len(stream.read()) != entry.size)
"""


@pytest.mark.s3
def test_a_copy_that_another_process_reads_stays_until_it_is_closed(stored: Location, tmp_path: Path) -> None:
    list(open_dataset(stored.uri, stored.storage).batches(2))
    tar = CommitLog(stored).read(0, 1).file("shards")
    (copy,) = (tmp_path / "own" / "shards").rglob(f"{tar.sha256}.copy")
    regions = tmp_path / "regions.jsonl"
    regions.write_text(json.dumps({"id": 1, "kind": "face", "x": 9, "y": 9, "w": 20, "h": 20}))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(copy)], **pipes) as holder:
        assert holder.stdout.readline() == b"open\n"
        (line,) = redact(stored, location_of(regions)).caches
        assert line.startswith("this machine's shard cache: 1 outdated or unfinished file in use; outdated ones are ")
        assert copy.exists()
        holder.communicate()
    assert holder.returncode == 0
    open_dataset(stored.uri, stored.storage).batches(2)
    assert not copy.exists()
