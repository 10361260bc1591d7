"""A folder or an object of a store, with the storage that reaches it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from segmint.infra.errors import UsageError
from segmint.infra.storage.storage import Storage
from segmint.infra.storage.stores import ObjectInfo, OnSkip, warn_of_skipped
from segmint.infra.uris import absolute, base_name, join


@dataclass(frozen=True, slots=True)
class Location:
    """A folder or an object of a store: `location / "name"` is one below it, `str(location)` its URI.

    Every method is the one of that name of `Storage`, and raises what that raises. Picklable, as `Storage` is: a local
    path is absolute then, since other processes have other current folders.
    """

    storage: Storage
    uri: str

    def __truediv__(self, path: str) -> "Location":
        """What is at `path` below this; raises `UriNotAllowedError` for a path with `..`."""
        return Location(self.storage, join(self.uri, path))

    def __str__(self) -> str:
        return self.uri

    def __reduce__(self) -> tuple[type["Location"], tuple[Storage, str]]:
        return Location, (self.storage, absolute(self.uri))

    @property
    def name(self) -> str:
        """The last part of the URI."""
        return base_name(self.uri)

    def read(self, max_bytes: int | None = None) -> bytes:
        """Return the object's bytes."""
        return self.storage.read(self.uri, max_bytes)

    def open(self) -> BinaryIO:
        """Open a seekable stream of the object's bytes."""
        return self.storage.open(self.uri)

    def open_ranges(self, size: int | None = None) -> BinaryIO:
        """Open a stream for which each read is a request; `size` in bytes spares asking for it."""
        return self.storage.open_ranges(self.uri, size)

    def get_file(self, path: Path) -> None:
        """Copy the object to a local file."""
        self.storage.get_file(self.uri, path)

    def put(self, data: bytes) -> None:
        """Write the whole object, over an older one."""
        self.storage.put(self.uri, data)

    def put_if_absent(self, data: bytes) -> bool:
        """Put the object if there is none; return whether it holds these bytes now."""
        return self.storage.put_if_absent(self.uri, data)

    def put_file_if_absent(self, path: Path) -> bool:
        """Put a local file if there is no object; return whether there are its bytes now."""
        return self.storage.put_file_if_absent(self.uri, path)

    def put_file(self, path: Path) -> None:
        """Write the object from a local file, over an older one."""
        self.storage.put_file(self.uri, path)

    def exists(self) -> bool:
        """Return whether the object is there; a folder is not an object."""
        return self.storage.exists(self.uri)

    def size(self) -> int:
        """Return the object's size in bytes."""
        return self.storage.size(self.uri)

    def sha256(self) -> str:
        """Return the SHA-256 of the object's bytes in hexadecimal."""
        return self.storage.sha256(self.uri)

    def size_and_sha256(self) -> tuple[int, str]:
        """Return how many bytes the object has, and their SHA-256 in hexadecimal."""
        return self.storage.size_and_sha256(self.uri)

    def delete(self) -> None:
        """Remove the object; absent is fine."""
        self.storage.delete(self.uri)

    def purge(self) -> None:
        """Remove the object with all its older versions; absent is fine."""
        self.storage.purge(self.uri)

    def walk(self, include_temporary: bool = False, on_skip: OnSkip = warn_of_skipped) -> Iterator[ObjectInfo]:
        """Yield the objects below this folder at any depth."""
        return self.storage.walk(self.uri, include_temporary, on_skip)

    def link_target(self) -> str | None:
        """Return where this leads if it is a local symbolic link."""
        return self.storage.link_target(self.uri)

    def refuse_link(self) -> None:
        """Raise `UsageError` if this is a local symbolic link."""
        self.storage.refuse_link(self.uri)

    def walk_ever(self) -> tuple[str, ...]:
        """Return the names of all that may be removed below this folder: objects, older versions, links."""
        return self.storage.walk_ever(self.uri)

    def list(self, include_temporary: bool = False, beginning: str = "") -> list[ObjectInfo]:
        """Return the objects directly in this folder whose names begin so, sorted by name."""
        return self.storage.list(self.uri, include_temporary, beginning)


def refuse_existing(file: Location) -> None:
    """Raise `UsageError` if the file is there: it may hold work that was done by hand."""
    if file.exists():
        raise _taken(file)


def put_new_file(file: Location, path: Path) -> None:
    """Put a local file; raise `UsageError` if another one was put there meanwhile."""
    if not file.put_file_if_absent(path):
        raise _taken(file)


def _taken(file: Location) -> UsageError:
    return UsageError(f"{file} exists already, and is not overwritten: name another file, or delete it first")
