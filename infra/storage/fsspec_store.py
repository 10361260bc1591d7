"""Stores other than local files, S3, and Azure, through the fsspec file system of their scheme."""

import errno
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from segmint.infra.errors import UsageError
from segmint.infra.storage.stores import (
    NO_TIME,
    ObjectInfo,
    ObjectVersion,
    OnSkip,
    check_length,
    check_size,
    warn_of_skipped,
)
from segmint.infra.uris import parent, redact


class FsspecStore:
    """Store for any other fsspec file system, such as Google Cloud Storage.

    Only one of several writers may create an object, so this class uses `pipe_file(mode="create")`. fsspec's default
    implementation of that call checks first and writes later, which is a race, so this class refuses it. If a store
    overrides it, `segmint.infra.storage.probe` tests the override with concurrent writers.
    """

    def __init__(self, filesystem: Any) -> None:
        self._fs = filesystem

    def read(self, uri: str, max_bytes: int | None) -> bytes:
        """Read the whole object."""
        size = self.version(uri).size
        check_size(uri, size or 0, max_bytes)
        data: bytes = self._fs.cat_file(self._path(uri))
        check_size(uri, len(data), max_bytes)
        if size is not None:
            check_length(len(data), size)
        return data

    def read_range(self, uri: str, start: int, stop: int, first: ObjectVersion) -> tuple[bytes, ObjectVersion]:
        """Read the bytes [start, stop).

        fsspec has no conditional reads. Therefore, if `first` is known, this looks at the version after the read.
        """
        data: bytes = self._fs.cat_file(self._path(uri), start=start, end=stop)
        return data, ObjectVersion() if first == ObjectVersion() else self.version(uri)

    def create(self, uri: str, data: bytes) -> None:
        """Create an object with a conditional write. Raises `UsageError` if the store only checks before it writes."""
        if not self._claims_exclusive_create():
            raise UsageError(
                f"the store of {redact(uri)} ({type(self._fs).__name__}) cannot put an object only if it is "
                "absent: choose a local folder, an S3 bucket, Google Cloud Storage or Azure"
            )
        self._fs.pipe_file(self._path(uri), data, mode="create")

    def create_file(self, uri: str, path: Path) -> None:
        """Create an object from a local file with a conditional write, like `create`.

        The file is read into memory, because few implementations support conditional uploads of files.
        """
        self.create(uri, path.read_bytes())

    def put(self, uri: str, data: bytes) -> None:
        """Write the whole object."""
        self._fs.makedirs(self._fs._parent(self._path(uri)), exist_ok=True)
        self._fs.pipe_file(self._path(uri), data)

    def put_file(self, uri: str, path: Path) -> None:
        """Upload a local file."""
        self._fs.makedirs(self._fs._parent(self._path(uri)), exist_ok=True)
        self._fs.put_file(str(path), self._path(uri))

    def walk(
        self, uri: str, recursive: bool, on_skip: OnSkip = warn_of_skipped, beginning: str = ""
    ) -> Iterator[ObjectInfo]:
        """Yield the objects below a folder."""
        root = self._path(uri).rstrip("/") + "/"
        try:
            found = self._fs.find(root, detail=True, maxdepth=None if recursive else 1)
        except FileNotFoundError:
            return
        for path in sorted(found):
            if path.startswith(root + beginning) and not path.endswith("/"):
                yield ObjectInfo(path[len(root) :], int(found[path]["size"] or 0), _modified(found[path]))

    def version(self, uri: str) -> ObjectVersion:
        """Return the object's size in bytes, ETag or generation, and time of modification."""
        info = self._fs.info(self._path(uri))
        if info["type"] != "file":
            raise IsADirectoryError(errno.EISDIR, "is a folder", uri)
        etag = info.get("generation") or info.get("etag") or info.get("ETag")
        return ObjectVersion(info["size"], etag and str(etag), _modified(info))

    def delete(self, uri: str) -> None:
        """Delete the object if it exists."""
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._path(uri))

    def purge(self, uri: str) -> None:
        """Raise `UsageError`, because fsspec can't delete older versions."""
        raise UsageError(
            f"older versions of {redact(uri)} cannot be removed through {type(self._fs).__name__}: "
            "remove them with the store's tools"
        )

    def versioned(self, uri: str) -> set[str]:
        """Raise `UsageError`, because fsspec can't list older versions."""
        raise UsageError(
            f"older versions of the objects in {redact(uri)} can't be listed through {type(self._fs).__name__}: "
            "look for them with the store's tools"
        )

    def ping(self, uri: str) -> None:
        """Request information about the parent folder. The answer that it doesn't exist also counts as a response."""
        with suppress(FileNotFoundError):
            self._fs.info(self._path(parent(uri)))

    def _path(self, uri: str) -> str:
        return str(self._fs._strip_protocol(uri))

    def _claims_exclusive_create(self) -> bool:
        from fsspec.asyn import AsyncFileSystem
        from fsspec.spec import AbstractFileSystem

        kind = type(self._fs)
        if isinstance(self._fs, AsyncFileSystem):
            return kind._pipe_file is not AsyncFileSystem._pipe_file
        return kind.pipe_file is not AbstractFileSystem.pipe_file


def _modified(info: dict[str, Any]) -> datetime:
    """Return an object's modification time in UTC, or `NO_TIME` if there is none.

    Times without a time zone are assumed to be in UTC.
    """
    for key in ("LastModified", "last_modified", "mtime", "updated", "created"):
        value = info.get(key)
        with suppress(ValueError, OverflowError, OSError):
            if isinstance(value, str):
                value = datetime.fromisoformat(value)
            if isinstance(value, datetime):
                return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
            if isinstance(value, int | float):
                return datetime.fromtimestamp(value, UTC)
    return NO_TIME
