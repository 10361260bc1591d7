"""Training's cache of images on a machine's disk: its location, size limit, and deletion with the reader's cache.

The cache stores embeddings as `embeddings/<dataset>/<weights>/<SHA-256 of the JPEG>.npy`, and shard scans with their
thumbnails as `scans/<dataset>/<SHA-256 of the tar>.npz`. Takedowns use this file, so it must not import torch.
"""

import fcntl
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

from segmint.catalogs.dataset.manifest import dataset_keys, put_dataset_id, read_dataset_id
from segmint.catalogs.dataset.outputs import read_notes
from segmint.catalogs.dataset.reading.cache import SHARD_CACHE, drop_stale
from segmint.infra.assets.cache import cache_folder
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import StorageFaultError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.storage.stores import TEMPORARY_PREFIX
from segmint.infra.uris import LOCAL, absolute, base_name, local_path, scheme
from segmint.infra.wording import counted

CACHE = "cache"
"""Name of the cache folder in a local output. The configuration can name another folder."""

OTHER_CACHES = (
    "caches in other folders and on other machines were not looked at: a reader or a training run deletes the outdated "
    "files when it next opens this dataset with such a cache"
)
"""Line to print after the lines from `forget_dataset`."""

EMBEDDINGS, SCANS = "embeddings", "scans"

_USED = "embeddings.used"
_FILES = {
    EMBEDDINGS: re.compile(r"[^/]+/[0-9a-f]{64}\.npy", re.ASCII),
    SCANS: re.compile(r"[0-9a-f]{64}\.npz", re.ASCII),
}


def default_cache() -> Location:
    """Return the location of the cache for training runs whose output is not on this machine's disk."""
    return Location(Storage(), str(cache_folder() / "train"))


class CacheSize:
    """Total size in bytes of the embeddings in a folder. Processes share it in a locked file next to the embeddings."""

    def __init__(self, folder: Location) -> None:
        self._file = local_path(absolute((folder / _USED).uri))

    @contextmanager
    def locked(self) -> Iterator["LockedCount"]:
        """Lock the total. Until the lock is released, no other process or thread adds or deletes embeddings."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield LockedCount(file)
        finally:
            os.close(file)


class LockedCount:
    """Number of used bytes, stored in an open file. If a process dies between two writes, the number is too large."""

    def __init__(self, file: int) -> None:
        self._file = file

    def get(self) -> int:
        """Return the number of bytes, or 0 if the file doesn't contain a number."""
        text = os.pread(self._file, 32, 0)
        return int(text) if text.strip().isdigit() else 0

    def set(self, count: int) -> None:
        """Write the number of bytes."""
        os.pwrite(self._file, f"{max(0, count):<32d}".encode(), 0)


def recount(folder: Location) -> dict[str, int]:
    """Measure the embeddings in a cache's folder again, and store the total.

    Returns each file's size in bytes by path. The total includes unfinished files of killed processes.
    """
    with CacheSize(folder).locked() as used:
        sizes = {entry.name: entry.size for entry in (folder / EMBEDDINGS).walk(include_temporary=True)}
        used.set(sum(sizes.values()))
    return sizes


def purge_scans(folder: Location, dataset: str, tars: Collection[str]) -> None:
    """Delete the shard scans of the dataset with this key, except the scans of tars with these SHA-256 hashes."""
    kept = {f"{sha256}.npz" for sha256 in tars}
    for entry in (folder / SCANS / dataset).list(include_temporary=True):
        if entry.name not in kept:
            (folder / SCANS / dataset / entry.name).delete()


def forget_dataset(dataset: Location) -> list[str]:
    """Delete a dataset's removed images from the caches on this machine, and return lines of text about them.

    This covers the machine's default caches, and the training caches near the dataset that the dataset's notes name. In
    a training cache, it deletes everything about the dataset, and the next run recreates what it needs. The lines also
    report files that are in use or can't be deleted.

    If `id.json` is missing or damaged, some caches can't be found. In that case, a line says so, and this function
    creates `id.json`.
    """
    places: dict[str, str] = {}
    with suppress(UsageError):  # without a home folder, there is no default cache
        places[default_cache().uri] = "this machine's training cache"
    for note in read_notes(dataset):
        place = note.location(dataset) if note.command == "train" else None
        if place is not None and scheme(place.uri) == LOCAL:
            places |= {place.uri: note.place, (place / CACHE).uri: f"{note.place}/{CACHE}"}
    lines, keys = _forget_shards(dataset), dataset_keys(dataset)
    if read_dataset_id(dataset) is None:
        lines.append("not checked: caches of this machine: id.json was missing or damaged")
        put_dataset_id(dataset)
    for uri, name in places.items():
        try:
            count = sum(_forget(Location(Storage(), uri), key) for key in keys)
        except (StorageFaultError, OSError) as error:
            lines.append(f"{name}: some embeddings and thumbnails could not be deleted; delete them yourself: {error}")
            continue
        if count:
            lines.append(f"{name}: {counted(count, 'file')} of embeddings and thumbnails deleted")
    return lines


def _forget_shards(dataset: Location) -> list[str]:
    """Delete outdated copies from the default cache of readers, and return lines of text about them."""
    name = "this machine's shard cache"
    try:
        folder = cache_folder() / SHARD_CACHE
    except UsageError:  # without a home folder, there is none
        return []
    try:
        deleted, used = drop_stale(folder, dataset)
    except (StorageFaultError, UsageError, OSError) as error:
        return [f"{name}: some copies of shards could not be deleted; delete them yourself: {error}"]
    later = "outdated ones are deleted when a reader next opens the dataset or starts an epoch"
    return [
        *([f"{name}: {counted(deleted, 'outdated file')} deleted"] if deleted else []),
        *([f"{name}: {counted(used, 'outdated or unfinished file')} in use; {later}"] if used else []),
    ]


def _forget(folder: Location, key: str) -> int:
    """Delete a dataset's embeddings and shard scans from a cache, and return the number of deleted files."""
    count = 0
    for kind, names in _FILES.items():
        own = folder / kind / key
        path = local_path(own.uri)
        if path.is_symlink() or not path.is_dir():
            continue
        for entry in list(own.walk(include_temporary=True)):
            # A note may name any folder, so only a cache's own files are deleted.
            if names.fullmatch(entry.name) or base_name(entry.name).startswith(TEMPORARY_PREFIX):
                (own / entry.name).delete()
                count += 1
        if kind == EMBEDDINGS:
            recount(folder)
    return count
