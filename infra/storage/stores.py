"""The interface of a store, and its implementation for local files."""

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Protocol

from segmint.infra.errors import UsageError
from segmint.infra.log import get_logger
from segmint.infra.storage.errors import ObjectTooLargeError, ShortBodyError
from segmint.infra.uris import local_path, redact

TEMPORARY_PREFIX = ".tmp-"

_NO_LINK = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK}


NO_TIME = datetime.fromtimestamp(0, UTC)
"""Modification time of a listed object if its store doesn't report one. It counts as older than any age."""


@dataclass(frozen=True, order=True, slots=True)
class ObjectInfo:
    """Listed object: its name relative to the listed folder, size in bytes, and modification time in UTC."""

    name: str
    size: int
    modified: datetime


OnSkip = Callable[[str, str], None]
"""Callback for an entry that a listing skips: its name, relative to the listed folder, and the reason."""


def warn_of_skipped(name: str, why: str) -> None:
    """Log a skipped entry; the default `OnSkip`."""
    get_logger("storage").warning("skipped", name=_text(name), why=why)


def _text(name: str) -> str:
    """Return a printable name, because file systems allow bytes that aren't UTF-8."""
    return name.encode(errors="replace").decode()


class Store(Protocol):
    """Operations of a store. Each call makes one attempt and raises the store's own errors."""

    def read(self, uri: str, max_bytes: int | None) -> bytes:
        """Read a whole object. Raises `ObjectTooLargeError` over `max_bytes`, `ShortBodyError` for a wrong length."""

    def read_range(self, uri: str, start: int, stop: int) -> bytes:
        """Read the bytes [start, stop), which must exist."""

    def create(self, uri: str, data: bytes) -> None:
        """Create an object. Raises `FileExistsError`, or an error with S3's code, if it already exists."""

    def create_file(self, uri: str, path: Path) -> None:
        """Create an object from a local file of any size, with the same errors as `create`."""

    def put(self, uri: str, data: bytes) -> None:
        """Write a whole object, replacing an existing one."""

    def put_file(self, uri: str, path: Path) -> None:
        """Write a whole object from a local file, replacing an existing one."""

    def walk(self, uri: str, recursive: bool, on_skip: OnSkip, beginning: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects below a folder or prefix whose names start with `beginning`, in code point order."""

    def size(self, uri: str) -> int:
        """Return the size in bytes."""

    def delete(self, uri: str) -> None:
        """Delete the object if it exists."""

    def purge(self, uri: str) -> None:
        """Delete the object and all its older versions."""

    def versioned(self, uri: str) -> set[str]:
        """Return the names of the objects below a folder or prefix that have older versions, such as deleted ones."""

    def ping(self, uri: str) -> None:
        """Make a minimal request. Raises if the store doesn't respond."""


def check_size(uri: str, size: int, max_bytes: int | None) -> None:
    """Raise `ObjectTooLargeError` if `size` exceeds `max_bytes`."""
    if max_bytes is not None and size > max_bytes:
        raise ObjectTooLargeError(f"{redact(uri)} has {size} bytes, over {max_bytes}", size, max_bytes)


def check_length(got: int, expected: int) -> None:
    """Raise `ShortBodyError` if a body's length differs from the announced one."""
    if got != expected:
        raise ShortBodyError(errno.EIO, f"received {got} bytes instead of {expected}")


def open_file(uri: str) -> BinaryIO:
    """Open a local file for reading. Raises `FileNotFoundError` for a pipe, device, or socket."""
    path = local_path(uri)
    _regular(path)
    return path.open("rb")


def _regular(path: Path) -> os.stat_result:
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(errno.ENOENT, "is not a regular file", str(path))
    return status


class _NoLinksError(UsageError):
    """The local file system doesn't support hard links."""


class LocalStore:
    """Local files, which are written such that a crash leaves either the whole file or nothing."""

    def read(self, uri: str, max_bytes: int | None) -> bytes:
        """Read the whole file, limited to its size, because some files are endless."""
        with open_file(uri) as file:
            size = os.fstat(file.fileno()).st_size
            check_size(uri, size, max_bytes)
            data = file.read(size + 1)
        check_length(len(data), size)
        return data

    def read_range(self, uri: str, start: int, stop: int) -> bytes:
        """Read the bytes [start, stop)."""
        with open_file(uri) as file:
            file.seek(start)
            data = file.read(stop - start)
        check_length(len(data), stop - start)
        return data

    def create(self, uri: str, data: bytes) -> None:
        """Create a file from a synced temporary file and a hard link, so that exactly one of several writers succeeds.

        `open(…, "x")` would expose a half-written file to readers, and `rename` overwrites.
        """
        path = local_path(uri)
        if path.exists():
            raise FileExistsError(errno.EEXIST, "an object is already there", uri)
        _unless_swept(lambda: self._link(path, data))

    def create_file(self, uri: str, path: Path) -> None:
        """Create a file by copying in chunks. Without hard links, a killed process may leave an empty file."""
        target = local_path(uri)

        def copy() -> None:
            with path.open("rb") as stream:
                self._link(target, stream)

        try:
            _unless_swept(copy)
        except _NoLinksError:
            target.open("xb").close()  # only one of several writers gets past this
            try:
                self.put_file(uri, path)
            except BaseException:
                with suppress(OSError):
                    target.unlink()  # it would make the next attempt fail
                raise

    def _link(self, path: Path, source: bytes | BinaryIO) -> None:
        temporary = _write_temporary(path, source)
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno in _NO_LINK:
                raise _NoLinksError(
                    f"the file system of {path.parent} has no hard links ({error.strerror}), so nothing can "
                    "be put there exactly once: choose a local disk, NFS, or an S3 bucket"
                ) from error
            raise
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)

    def put(self, uri: str, data: bytes) -> None:
        """Write a synced temporary file and rename it over the old one."""
        path = local_path(uri)
        _unless_swept(lambda: _rename(_write_temporary(path, data), path))

    def put_file(self, uri: str, path: Path) -> None:
        """Write a local file by copying in chunks, with the same guarantees as `put`."""

        def copy() -> None:
            with path.open("rb") as stream:
                self.put_stream(local_path(uri), stream)

        _unless_swept(copy)

    def put_stream(self, path: Path, stream: BinaryIO) -> None:
        """Write an open stream to a local path, with the same guarantees as `put`."""
        _rename(_write_temporary(path, stream), path)

    def walk(
        self, uri: str, recursive: bool, on_skip: OnSkip = warn_of_skipped, beginning: str = ""
    ) -> Iterator[ObjectInfo]:
        """Yield the files below a folder. Links to folders aren't followed, and circular links are skipped."""
        root = local_path(uri)
        if root.is_dir():
            yield from _walk(root, "", recursive, on_skip, beginning)

    def size(self, uri: str) -> int:
        """Return the size in bytes."""
        return _regular(local_path(uri)).st_size

    def delete(self, uri: str) -> None:
        """Delete the file but keep its folder."""
        path = local_path(uri)
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
            _sync_folder(path.parent)

    def purge(self, uri: str) -> None:
        """Delete the file; local files have no older versions."""
        self.delete(uri)

    def versioned(self, uri: str) -> set[str]:
        """Return the symbolic links and special files. Local files have no older versions."""
        return set(_links(local_path(uri), ""))

    def ping(self, uri: str) -> None:
        """List the nearest existing parent folder."""
        folder = local_path(uri).absolute().parent
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        with os.scandir(folder) as entries:
            next(entries, None)


def _unless_swept(put: Callable[[], None]) -> None:
    """Put a file. Retry once if its temporary file is gone, because a takedown deletes the files of dead writers."""
    try:
        put()
    except FileNotFoundError:
        put()


def _write_temporary(target: Path, source: bytes | BinaryIO) -> Path:
    _make_folder(target.parent)
    temporary = target.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        # `tempfile` would create files that only their user can read, but these become objects that others read.
        with temporary.open("xb") as file:
            if isinstance(source, bytes | bytearray | memoryview):
                file.write(source)
            else:
                shutil.copyfileobj(source, file, 1 << 22)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _rename(temporary: Path, target: Path) -> None:
    try:
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _make_folder(folder: Path) -> None:
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{folder} cannot be a folder, because it or a parent is a file") from error
    for path in missing:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):  # Windows can't open folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _links(folder: Path, prefix: str) -> Iterator[str]:
    """Yield the symbolic links and special files below a folder, without following links."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _links(Path(entry.path), f"{prefix}{entry.name}/")
                continue
            with suppress(FileNotFoundError):  # it was deleted or renamed after the listing
                if not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
                    yield prefix + entry.name


def _walk(folder: Path, prefix: str, recursive: bool, on_skip: OnSkip, beginning: str = "") -> Iterator[ObjectInfo]:
    with os.scandir(folder) as found:
        # A folder is sorted as "name/", so that the order is by full names, as in a bucket.
        entries = sorted(
            (entry for entry in found if entry.name.startswith(beginning)),
            key=lambda entry: entry.name + "/" * entry.is_dir(follow_symlinks=False),
            reverse=True,
        )
    while entries:
        entry = entries.pop()  # an entry keeps its `stat`, which takes more memory than what is yielded
        if entry.is_dir(follow_symlinks=False):
            if recursive:
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", recursive, on_skip)
            continue
        try:
            status = entry.stat()
        except FileNotFoundError:  # a file may vanish between the listing and `stat`
            continue
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            on_skip(prefix + entry.name, "a circular link")
            continue
        if stat.S_ISREG(status.st_mode):
            modified = datetime.fromtimestamp(status.st_mtime, UTC)
            yield ObjectInfo(prefix + entry.name, status.st_size, modified)
