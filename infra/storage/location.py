"""Folder or object in a store, bound to the storage through which it is accessed."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from segmint.infra.errors import UsageError
from segmint.infra.storage.storage import Storage
from segmint.infra.storage.stores import ObjectInfo, OnSkip, warn_of_skipped
from segmint.infra.uris import absolute, base_name, child


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

    def walk_ever(self) -> tuple[str, ...]:
        """List the names of everything below this folder that could be removed: objects, older versions, and links."""
        return self.storage.walk_ever(self.uri)

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
