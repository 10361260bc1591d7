"""Cached embeddings: found again, bounded, never half written, and gone when their image is."""

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from segmint.catalogs.dataset.manifest import dataset_keys, put_dataset_id
from segmint.catalogs.dataset.outputs import CacheSize, purge_scans
from segmint.pipeline.engine.train.reading import BYTES, EmbeddingCache
from tests.support.builds import ROOT
from tests.support.committed import write_generation
from tests.support.locations import location_of
from tests.support.trainable import row_of
from tests.support.trained import find

DATASET = "0123456789ab"


def jpeg(number: int) -> bytes:
    return bytes([number]) * 32


def features(number: int) -> torch.Tensor:
    return torch.full((1, 256, 64, 64), float(number))


def test_embeddings_are_found_by_weights_and_jpeg(tmp_path):
    cache = EmbeddingCache(location_of(tmp_path), "w1", 3 * BYTES)
    cache.put(DATASET, jpeg(1), features(1))
    again = EmbeddingCache(location_of(tmp_path), "w1", 3 * BYTES)
    assert torch.equal(again.get(DATASET, jpeg(1)), features(1))
    assert again.get(DATASET, jpeg(2)) is None
    assert EmbeddingCache(location_of(tmp_path), "w2", 3 * BYTES).get(DATASET, jpeg(1)) is None


def holds(cache: EmbeddingCache, dataset: str, hashed: bytes) -> bool:
    return cache.get(dataset, hashed) is not None


def used(folder: Path) -> int:
    """Bytes that the cache has counted."""
    with CacheSize(location_of(folder)).locked() as counted:
        return counted.get()


PUT = """
import sys
from pathlib import Path
from tests.pipeline.engine.train.test_reading_cache import BYTES, DATASET, EmbeddingCache, features, jpeg, location_of
cache = EmbeddingCache(location_of(Path(sys.argv[1])), "w1", 5.5 * BYTES)
print("open", flush=True)
for number in range(100, 110):
    cache.put(DATASET, jpeg(number), features(number))
"""


def test_processes_that_share_a_folder_keep_no_more_than_the_bound_together(tmp_path):
    """Each as it begins sees an empty folder, in which there is room for all that it puts."""
    cache = EmbeddingCache(location_of(tmp_path), "w1", 5.5 * BYTES)
    with subprocess.Popen([sys.executable, "-c", PUT, tmp_path], cwd=ROOT, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"open\n"
        for number in range(10):
            cache.put(DATASET, jpeg(number), features(number))
    assert other.returncode == 0
    assert len(list(tmp_path.rglob("*.npy"))) == 5
    assert used(tmp_path) == sum(path.stat().st_size for path in tmp_path.rglob("*.npy"))
    for number in (*range(10), *range(100, 110)):
        found = cache.get(DATASET, jpeg(number))
        assert found is None or torch.equal(found, features(number))
    again = EmbeddingCache(location_of(tmp_path), "w1", 6.5 * BYTES)
    again.put(DATASET, jpeg(200), features(200))
    assert len(list(tmp_path.rglob("*.npy"))) == 6
    assert torch.equal(cache.get(DATASET, jpeg(200)), features(200))


def test_what_was_counted_and_not_written_takes_no_room_from_the_next_run(tmp_path):
    """A process that is killed leaves too large a number, never too small a one."""
    cache = EmbeddingCache(location_of(tmp_path), "w1", 2.5 * BYTES)
    with CacheSize(location_of(tmp_path)).locked() as used:
        used.set(2 * BYTES)
    cache.put(DATASET, jpeg(1), features(1))
    assert cache.get(DATASET, jpeg(1)) is None
    EmbeddingCache(location_of(tmp_path), "w1", 2.5 * BYTES).put(DATASET, jpeg(1), features(1))
    assert holds(cache, DATASET, jpeg(1))


def test_no_more_is_kept_than_the_bound_and_other_weights_give_way(tmp_path):
    older = EmbeddingCache(location_of(tmp_path), "w1", 2.5 * BYTES)
    for number in range(4):
        older.put(DATASET, jpeg(number), features(number))
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.npy"))
    assert size == used(tmp_path) == 2 * BYTES
    assert [holds(older, DATASET, jpeg(number)) for number in range(4)] == [True, True, False, False]
    newer = EmbeddingCache(location_of(tmp_path), "w2", 2.5 * BYTES)
    newer.make_room(1)
    newer.put(DATASET, jpeg(9), features(9))
    assert holds(newer, DATASET, jpeg(9))
    assert used(tmp_path) == 2 * BYTES
    newer = EmbeddingCache(location_of(tmp_path), "w2", 1.5 * BYTES)
    newer.make_room(1)
    assert used(tmp_path) == BYTES
    assert holds(newer, DATASET, jpeg(9))


def test_damaged_files_are_not_used(tmp_path):
    cache = EmbeddingCache(location_of(tmp_path), "w1", 9 * BYTES)
    for number in range(4):
        cache.put(DATASET, jpeg(number), features(number))
    short, other, hostile, flipped = sorted(tmp_path.rglob("*.npy"))
    short.write_bytes(short.read_bytes()[:-1])
    np.save(other, np.zeros((1, 256, 64, 32), np.float32))
    np.save(hostile, np.array([{"code": print}], dtype=object), allow_pickle=True)
    data = bytearray(flipped.read_bytes())
    data[2_000_000] ^= 1
    flipped.write_bytes(data)
    assert [cache.get(DATASET, jpeg(number)) for number in range(4)] == [None] * 4
    cache.put(DATASET, jpeg(0), features(0))
    assert torch.equal(cache.get(DATASET, jpeg(0)), features(0))


def test_a_full_disk_ends_the_caching_and_not_the_run(tmp_path):
    cache = EmbeddingCache(location_of(tmp_path), "w1", 9 * BYTES)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        cache.put(DATASET, jpeg(1), features(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert cache.get(DATASET, jpeg(1)) is None
    assert not list(tmp_path.rglob("*.npy"))
    assert used(tmp_path) == 0


def test_what_a_dataset_no_longer_has_is_deleted(trainable, tmp_path):
    dataset, kept = tmp_path / "dataset", location_of(tmp_path / "cache")
    shutil.copytree(trainable, dataset)
    found = find(tmp_path, dataset, kept / "scans")
    key = found.datasets[0].key
    cache = EmbeddingCache(kept, "w1", 1e9)
    hashes = [row.tobytes() for row in found.images.jpeg_sha256]
    for number in (0, 2):
        cache.put(key, hashes[number], features(number))
    cache.put("0" * 12, hashes[2], features(2))  # of another dataset
    write_generation(location_of(dataset), 0, generation=2, make_row=row_of)  # without image 3, as a takedown leaves it
    after = find(tmp_path, dataset, kept / "scans")
    held = after.held[key]
    assert cache.purge(key, {row.tobytes() for row in held.jpegs}) == 1
    assert [holds(cache, key, hashes[number]) for number in (0, 2)] == [True, False]
    assert holds(cache, "0" * 12, hashes[2])
    looks = tmp_path / "cache" / "scans" / key
    assert len(list(looks.iterdir())) == 5
    purge_scans(kept, key, held.tars)
    assert sorted(path.stem for path in looks.iterdir()) == sorted(held.tars)
    put_dataset_id(location_of(dataset))  # from now on it has another folder, and all in the former one is outdated
    named = find(tmp_path, dataset).held
    assert named.keys() == set(dataset_keys(location_of(dataset))) > {key}
    assert (len(named[key].tars), len(named[key].jpegs), named[key].whole) == (0, 0, True)
