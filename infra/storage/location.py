"""Folder or object in a store, bound to the storage through which it is accessed.

Probes of a folder in a store, which test whether it is suitable for a dataset and read the store's clock.

Objects of a `Storage` as a read-only fsspec file system, for libraries that require one.
"""

import io
import threading
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from fsspec import AbstractFileSystem

from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.storage.storage import Storage
from segmint.infra.storage.stores import TEMPORARY_PREFIX, ObjectInfo, OnSkip, warn_of_skipped
from segmint.infra.uris import absolute, base_name, child, redact


@dataclass(frozen=True, slots=True)
class Location:
    """Folder or object in a store. `location / "name"` is a child, and `str(location)` is the URI.

    Every method calls the `Storage` method of the same name and raises the same errors. Locations can be pickled, like
    `Storage`. Pickling makes a local path absolute, because other processes have other working directories.
    """

    storage: Storage
    uri: str

    def __truediv__(self, path: str) -> "Location":
        """Return the location at `path`, such as a listed name, below this one.

        Raises `UriNotAllowedError` if the path contains `..`.
        """
        return Location(self.storage, child(self.uri, path))

    def __str__(self) -> str:
        return self.uri

    def __reduce__(self) -> tuple[type["Location"], tuple[Storage, str]]:
        return Location, (self.storage, absolute(self.uri))

    @property
    def name(self) -> str:
        """Last component of the URI."""
        return base_name(self.uri)

    def read(self, max_bytes: int | None = None) -> bytes:
        """Read the object."""
        return self.storage.read(self.uri, max_bytes)

    def open(self) -> BinaryIO:
        """Open the object as a seekable stream."""
        return self.storage.open(self.uri)

    def open_ranges(self, size: int | None = None) -> BinaryIO:
        """Open a stream in which each read is one request. If you know the `size` in bytes, pass it to save one."""
        return self.storage.open_ranges(self.uri, size)

    def get_file(self, path: Path) -> None:
        """Copy the object to a local file."""
        self.storage.get_file(self.uri, path)

    def put(self, data: bytes) -> None:
        """Write the whole object, replacing any existing one."""
        self.storage.put(self.uri, data)

    def put_if_absent(self, data: bytes) -> bool:
        """Write the object unless it already exists. Return whether the object now contains these bytes."""
        return self.storage.put_if_absent(self.uri, data)

    def put_file_if_absent(self, path: Path) -> bool:
        """Upload a local file unless the object exists. Return whether the object now contains the file's bytes."""
        return self.storage.put_file_if_absent(self.uri, path)

    def put_file(self, path: Path) -> None:
        """Upload a local file as the whole object, replacing any existing one."""
        self.storage.put_file(self.uri, path)

    def exists(self) -> bool:
        """Return whether the object exists. Folders don't count as objects."""
        return self.storage.exists(self.uri)

    def size(self) -> int:
        """Return the object's size in bytes."""
        return self.storage.size(self.uri)

    def unchanged(self) -> AbstractContextManager[None]:
        """Raise `ObjectChangedError` after the block if the object changed in the meantime."""
        return self.storage.unchanged(self.uri)

    def sha256(self) -> str:
        """Return the SHA-256 of the object in hexadecimal."""
        return self.storage.sha256(self.uri)

    def size_and_sha256(self) -> tuple[int, str]:
        """Return the object's size in bytes and its SHA-256 in hexadecimal."""
        return self.storage.size_and_sha256(self.uri)

    def delete(self) -> None:
        """Delete the object if it exists."""
        self.storage.delete(self.uri)

    def purge(self) -> None:
        """Delete the object if it exists, along with all its older versions."""
        self.storage.purge(self.uri)

    def walk(self, include_temporary: bool = False, on_skip: OnSkip = warn_of_skipped) -> Iterator[ObjectInfo]:
        """Yield the objects at any depth below this folder."""
        return self.storage.walk(self.uri, include_temporary, on_skip)

    def link_target(self) -> str | None:
        """Return the link's target if this is a local symbolic link, otherwise None."""
        return self.storage.link_target(self.uri)

    def versioned(self) -> set[str]:
        """Return the names of all objects below this folder that have older versions, and of local links."""
        return self.storage.versioned(self.uri)

    def refuse_link(self) -> None:
        """Raise `UsageError` if this is a local symbolic link."""
        self.storage.refuse_link(self.uri)

    def walk_ever(self, beginning: str = "") -> tuple[str, ...]:
        """List the names of everything below this folder that could be removed: objects, older versions, and links.

        The names start with `beginning`.
        """
        return self.storage.walk_ever(self.uri, beginning)

    def list(self, include_temporary: bool = False, beginning: str = "") -> list[ObjectInfo]:
        """List the objects directly in this folder whose names start with `beginning`, sorted by name."""
        return self.storage.list(self.uri, include_temporary, beginning)


def refuse_existing(file: Location) -> None:
    """Raise `UsageError` if the file exists, because someone may have edited it."""
    if file.exists():
        raise _taken(file)


def put_new_file(file: Location, path: Path) -> None:
    """Upload a local file. Raise `UsageError` if another process wrote a different file in the meantime."""
    if not file.put_file_if_absent(path):
        raise _taken(file)


def _taken(file: Location) -> UsageError:
    return UsageError(f"{file} already exists and is not overwritten: choose another file, or delete it first")


_RACERS = 8
_TRIES = 3  # a concurrent sweep of temporary files may delete a probe


def probe(folder: Location) -> None:
    """Test every operation that a dataset needs from its store, and leave nothing behind in the folder.

    The probe writes an object, reads it back, and tries to overwrite it with put-if-absent. Then several writers race
    for one name. Finally, the probe lists and deletes its objects. Raises `UsageError` if put-if-absent replaces an
    object, and `StorageFaultError` if the store fails or refuses access.
    """
    digits = uuid.uuid4().hex
    once, raced = folder / f"{TEMPORARY_PREFIX}once-{digits}", folder / f"{TEMPORARY_PREFIX}raced-{digits}"
    try:
        _put_twice(once)
        _race(raced)
        listed = {entry.name for entry in folder.list(include_temporary=True)}
        if not {once.name, raced.name} <= listed:
            raise UsageError(f"the store of {redact(folder.uri)} does not list what was just written there")
    finally:
        with suppress(SegmintError):
            once.delete()
            raced.delete()
    if once.exists() or raced.exists():
        raise UsageError(f"the store of {redact(folder.uri)} still shows what was deleted there")


def _put_twice(file: Location) -> None:
    if not file.put_if_absent(b"first") or file.read() != b"first":
        raise UsageError(f"the store returns different bytes than were written to {redact(file.uri)}")
    if file.put_if_absent(b"second") or file.read() != b"first":
        raise _not_exclusive(file)


def _race(file: Location) -> None:
    start = threading.Barrier(_RACERS)

    def contend(index: int) -> bool:
        start.wait()
        return file.put_if_absent(b"racer %d" % index)

    with ThreadPoolExecutor(_RACERS) as pool:
        won = list(pool.map(contend, range(_RACERS)))
    if won.count(True) != 1 or file.read() != b"racer %d" % won.index(True):
        raise _not_exclusive(file)


def _not_exclusive(file: Location) -> UsageError:
    return UsageError(
        f"the store of {redact(file.uri)} let a second writer replace an object that was put if absent, so shards "
        "could be written twice there: choose a store with conditional puts (If-None-Match) or hard links"
    )


def store_time(folder: Location) -> datetime:
    """Write an object and return its modification time as the store's current time.

    Ages are relative to this time, never to the local clock.
    """
    for _ in range(_TRIES):
        name = f"{TEMPORARY_PREFIX}clock-{uuid.uuid4().hex}"
        file = folder / name
        file.put(b"")
        try:
            for entry in folder.list(include_temporary=True, beginning=name):
                return entry.modified
        finally:
            file.delete()
    raise SegmintError(f"the store of {folder} does not list what was just written there")


class StorageFiles(AbstractFileSystem):  # type: ignore[misc]
    """Read-only file system for the URIs of one scheme, with the options and retries of a `Storage`.

    It doesn't list anything, so a pattern matches only itself. `sizes` maps URIs to sizes in bytes; each entry saves a
    request. Objects must not change while they are read.
    """

    cachable = False

    def __init__(self, storage: Storage, protocol: str, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.protocol = protocol
        self._storage = storage
        self._sizes = sizes

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return path

    def open(self, path: str, mode: str = "rb", **_: Any) -> BinaryIO:
        """Open an object as a stream that requests only the ranges that its reader reads."""
        if mode != "rb":
            raise io.UnsupportedOperation(f"{path}: opened with mode {mode!r}, but it is read-only: use 'rb'")
        return self._storage.open_ranges(path, self._sizes.get(path))

    def size(self, path: str) -> int:
        """Return the size of an object in bytes."""
        known = self._sizes.get(path)
        return self._storage.size(path) if known is None else known

    def isfile(self, path: str) -> bool:
        """Return whether an object exists."""
        return path in self._sizes or self._storage.exists(path)

    def modified(self, path: str) -> datetime:
        """Return the epoch. Objects are assumed not to change."""
        return datetime.fromtimestamp(0, UTC)

    def glob(self, path: str, **_: Any) -> list[str]:
        """Return the path itself. Object names may contain any character, so `path` isn't a pattern."""
        return [path]
