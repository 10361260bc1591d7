"""Local cache of a store's shards, shared by all processes of a machine and limited in bytes.

A copy is stored as `<dataset>/<SHA-256>.copy`. A process writes the copy to a temporary file and then renames the file,
so a copy is always complete. If the cache is full, the process first deletes leftovers of killed processes and the
least recently used copies. If another process has a deleted copy open, it can still read that copy.

Each process holds a shared lock on the copies that it has open. Readers and corrections call `drop_stale` to delete the
copies of shards that their dataset no longer contains. If such a copy is open, it is kept until a later call.
"""

import errno
import hashlib
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from segmint.catalogs.dataset.commits import FileEntry
from segmint.catalogs.dataset.manifest import dataset_keys
from segmint.catalogs.dataset.reader import damaged_file
from segmint.catalogs.layout import DIGEST_DIGITS, DamagedDatasetError, parse_data_path
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.stores import TEMPORARY_PREFIX

DEFAULT_BYTES = 50_000_000_000
"""Default size limit of a cache in bytes."""

SHARD_CACHE = "shards"
"""Name of the default cache in segmint's cache folder."""

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_COPY = ".copy"
_OWN = re.compile(rf"(?:{re.escape(TEMPORARY_PREFIX)}[0-9a-f]{{32}}|[0-9a-f]{{64}}){re.escape(_COPY)}", re.ASCII)
_KEY = re.compile(r"[0-9a-f]{12}|[0-9a-f]{32}", re.ASCII)
_STRIPES = 64
_ROOM = "locks/room"
_PIECE = 4 << 20
_WAIT_S = 0.2
_TRIES = 2


class _CachedShard(NamedTuple):
    used_ns: int  # time of the last use
    size: int
    path: Path


@dataclass(frozen=True)
class ShardCache:
    """Local copies of a dataset's shards, in a folder that several datasets can share.

    All copies in the folder together take at most `most_bytes`.
    """

    folder: Path
    dataset: str  # its key, from `dataset_keys`
    most_bytes: int = DEFAULT_BYTES

    def path(self, entry: FileEntry) -> Path:
        """Return the path of a file's copy. Raises `DamagedDatasetError` if its recorded hash is not a SHA-256."""
        if _SHA256.fullmatch(entry.sha256) is None:  # from a commit, which anyone may have written
            raise DamagedDatasetError(f"the commit of {entry.path} gives it the SHA-256 {entry.sha256[:80]!r}")
        return self.folder / self.dataset / f"{entry.sha256}{_COPY}"

    def open(self, source: Location, entry: FileEntry, check: bool) -> BinaryIO:
        """Open the copy of a file for reading. If the copy is missing or damaged, fetch the file first.

        A copy counts as damaged if its size doesn't match the commit or, with `check`, if its SHA-256 doesn't match.

        Raises `DamagedDatasetError` if the source doesn't match its commit. Raises `UsageError` if the file exceeds the
        cache's limit, if the limit is too small for all readers, or if the disk is full.
        """
        with _locked(self.folder / "locks" / str(int(self.path(entry).name[:4], 16) % _STRIPES)):
            copy = self._opened(entry, check)
            for _ in range(_TRIES):
                if copy is not None:
                    return copy
                self._fetch(source, entry)
                copy = self._opened(entry, check=False)  # it was hashed while it was written
        if copy is None:
            raise UsageError(
                f"the cache {self.folder} loses {source} before it is opened: its limit of {self.most_bytes:,} bytes "
                "is too small for the shards that are read at the same time"
            )
        return copy

    def use(self, entry: FileEntry) -> bool:
        """Mark a copy as recently used. Returns False if it no longer exists."""
        try:
            os.utime(self.path(entry))
        except FileNotFoundError:
            return False
        return True

    def discard(self, entry: FileEntry) -> None:
        """Delete a damaged copy."""
        self.path(entry).unlink(missing_ok=True)

    def _opened(self, entry: FileEntry, check: bool) -> BinaryIO | None:
        try:
            copy = self.path(entry).open("rb")
        except FileNotFoundError:
            return None
        import fcntl

        fcntl.flock(copy, fcntl.LOCK_SH)  # until it is closed
        whole = os.fstat(copy.fileno()).st_size == entry.size
        if whole and check:
            whole = hashlib.file_digest(copy, "sha256").hexdigest() == entry.sha256
            copy.seek(0)
        if whole and self.use(entry):
            return copy
        copy.close()
        if not whole:
            self.discard(entry)
        return None

    def _fetch(self, source: Location, entry: FileEntry) -> None:
        try:
            with self._reserved(entry.size) as temporary:
                for _ in range(_TRIES):
                    found = _copied(source, temporary)
                    if found == (entry.size, entry.sha256):
                        temporary.replace(self.path(entry))
                        return
                raise damaged_file(source, entry, *found)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UsageError(
                    f"the disk of the cache {self.folder} is full: free some space, choose a folder on another disk, "
                    f"or lower the cache's limit, now {self.most_bytes:,} bytes"
                ) from error
            raise

    @contextmanager
    def _reserved(self, size: int) -> Iterator[Path]:
        """Reserve `size` bytes of the cache with a temporary file, and yield the file's path.

        This process locks the file. Other processes therefore count the file's size, and don't delete it as a leftover.
        """
        if size > self.most_bytes:
            raise UsageError(
                f"the cache {self.folder} is limited to {self.most_bytes:,} bytes, but one shard has {size:,}: give it "
                "room for all shards that are read at the same time"
            )
        temporary = self.folder / self.dataset / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}{_COPY}"
        with ExitStack() as held:
            held.callback(temporary.unlink, missing_ok=True)
            while True:
                with _locked(self.folder / _ROOM):
                    if self._make_room(size):
                        held.enter_context(_locked(temporary))
                        os.truncate(temporary, size)
                        break
                time.sleep(_WAIT_S)  # wait for other fetches to finish
            yield temporary

    def _make_room(self, size: int) -> bool:
        """Delete leftovers and the least recently used copies until `size` bytes are free.

        Returns False if that isn't enough.
        """
        copies, total = [], 0
        for held in self._held():
            if held.path.name.startswith(TEMPORARY_PREFIX):
                if _delete_unused(held.path):
                    continue
            else:
                copies.append(held)
            total += held.size
        for held in sorted(copies):
            if total + size <= self.most_bytes:
                break
            held.path.unlink(missing_ok=True)
            total -= held.size
        return total + size <= self.most_bytes

    def _held(self) -> Iterator[_CachedShard]:
        """Yield the copies of all datasets in the folder, and ignore all other files."""
        for folder in self.folder.iterdir():
            if _KEY.fullmatch(folder.name):
                yield from _copies(folder)


def drop_stale(folder: Path, dataset: Location) -> tuple[int, int]:
    """Delete the copies of shards that a dataset no longer contains from the cache in `folder`.

    A copy is kept as long as its tar exists in the dataset, even if only an older version contains that tar. Copies of
    other datasets are also kept. Returns two numbers: deleted files, including leftovers of killed processes, and stale
    files that were kept because a process has them open.
    """
    held = [copy.path for key in dataset_keys(dataset) for copy in _copies(folder / key)]
    if not held:
        return 0, 0
    # The dataset is listed after the copies. If a shard is committed and copied in between, its copy is kept.
    files = (parse_data_path(f"shards/{entry.name}") for entry in (dataset / "shards").list())
    current = {file.digest for file in files if file is not None}
    stale = [path for path in held if path.name[:DIGEST_DIGITS] not in current]
    with _locked(folder / _ROOM):
        deleted = [path for path in stale if _delete_unused(path)]
        return len(deleted), sum(path.exists() for path in stale)


def _copies(folder: Path) -> Iterator[_CachedShard]:
    """Yield the copies in a dataset's folder, including unfinished ones."""
    if folder.is_symlink() or not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if _OWN.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    status = entry.stat()
                    yield _CachedShard(status.st_mtime_ns, status.st_size, Path(entry.path))


def _copied(source: Location, target: Path) -> tuple[int, str]:
    """Copy an object over a file, and return its size in bytes and its SHA-256."""
    digest, size = hashlib.sha256(), 0
    with source.open() as stream, target.open("r+b") as file:
        while piece := stream.read(_PIECE):
            digest.update(piece)
            file.write(piece)
            size += len(piece)
    return size, digest.hexdigest()


def _delete_unused(file: Path) -> bool:
    """Delete a file unless a process locks it, and return whether it was deleted.

    A killed process no longer holds its locks.
    """
    import fcntl

    try:
        with file.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.unlink()
    except (BlockingIOError, FileNotFoundError):  # it is locked, or has become a copy
        return False
    return True


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, so that no other thread or process of this machine can hold it.

    The lock ends with the context or with the process. This function uses `flock` instead of POSIX locks, because the
    kernel reports false deadlocks when multithreaded processes use POSIX locks.
    """
    try:
        import fcntl
    except ImportError as error:  # Windows
        raise UsageError(
            "a cache of shards needs file locks, which Python lacks on this system. Copy the dataset to a local disk, "
            "or use Linux or macOS."
        ) from error
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = file.open("ab")
    except OSError as error:
        raise UsageError(
            f"the cache {file.parent.parent} cannot be used: {error.strerror}: {error.filename}. Expected a folder on "
            "a local disk that this user can write to"
        ) from error
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(stream, fcntl.LOCK_UN)  # because a process forked in the meantime keeps the file open
