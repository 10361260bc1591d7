"""Objects of a `Storage` as a read-only fsspec file system, for libraries that require one."""

import io
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, BinaryIO

from fsspec import AbstractFileSystem

from segmint.infra.storage.storage import Storage


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
