"""The operations of a store, and the store of local files."""

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
"""The time of an object in a listing whose store says none: unknown, and older than any age."""


@dataclass(frozen=True, order=True)
class ObjectInfo:
    """An object in a listing: name relative to what was listed, size in bytes, time of the last write in UTC."""

    name: str
    size: int
    modified: datetime


OnSkip = Callable[[str, str], None]
"""Called with the name of an entry that is left out of a listing, relative to what was listed, and why."""


def warn_of_skipped(name: str, why: str) -> None:
    """The default `OnSkip`: a line in the log."""
    get_logger("storage").warning("skipped", name=_text(name), why=why)


def _text(name: str) -> str:
    """A name for people: file systems take bytes that are not UTF-8."""
    return name.encode(errors="replace").decode()


class Store(Protocol):
    """The operations of a store, each tried once; errors are the store's own."""

    def read(self, uri: str, max_bytes: int | None) -> bytes:
        """The whole object; `ObjectTooLargeError` over `max_bytes`, `ShortBodyError` on a wrong length."""

    def read_range(self, uri: str, start: int, stop: int) -> bytes:
        """The bytes [start, stop), which must exist."""

    def create(self, uri: str, data: bytes) -> None:
        """Write an object that must not exist; `FileExistsError`, or S3's error code, if it does."""

    def create_file(self, uri: str, path: Path) -> None:
        """The same from a local file of any size."""

    def put(self, uri: str, data: bytes) -> None:
        """Write a whole object, replacing any old one."""

    def put_file(self, uri: str, path: Path) -> None:
        """The same from a local file."""

    def walk(self, uri: str, recursive: bool, on_skip: OnSkip, beginning: str = "") -> Iterator[ObjectInfo]:
        """The objects below a folder or prefix whose names begin so, by name in code point order."""

    def size(self, uri: str) -> int:
        """The size in bytes."""

    def delete(self, uri: str) -> None:
        """Remove the object; absent is fine."""

    def purge(self, uri: str) -> None:
        """Remove the object and every older version of it."""

    def versioned(self, uri: str) -> set[str]:
        """Names of the objects below a folder or prefix that have versions, including deleted ones."""

    def ping(self, uri: str) -> None:
        """Make a minimal request; returns if the store answers, raises if it does not."""


def check_size(uri: str, size: int, max_bytes: int | None) -> None:
    """Raise `ObjectTooLargeError` when `size` is over `max_bytes`."""
    if max_bytes is not None and size > max_bytes:
        raise ObjectTooLargeError(f"{redact(uri)} has {size} bytes, over {max_bytes}", size, max_bytes)


def check_length(got: int, expected: int) -> None:
    """Raise `ShortBodyError` when a body is not as long as the store announced."""
    if got != expected:
        raise ShortBodyError(errno.EIO, f"{got} bytes came where {expected} were announced")


def open_file(uri: str) -> BinaryIO:
    """Open a local file for reading. Raises `FileNotFoundError` for a pipe, a device or a socket."""
    path = local_path(uri)
    _regular(path)
    return path.open("rb")


def _regular(path: Path) -> os.stat_result:
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(errno.ENOENT, "is no regular file", str(path))
    return status


class _NoLinksError(UsageError):
    """A local file system has no hard links."""


class LocalStore:
    """Local files, written so that a crash leaves either the whole file or none."""

    def read(self, uri: str, max_bytes: int | None) -> bytes:
        """The whole file, but no byte more than its size: some files have no end."""
        with open_file(uri) as file:
            size = os.fstat(file.fileno()).st_size
            check_size(uri, size, max_bytes)
            data = file.read(size + 1)
        check_length(len(data), size)
        return data

    def read_range(self, uri: str, start: int, stop: int) -> bytes:
        """The bytes [start, stop)."""
        with open_file(uri) as file:
            file.seek(start)
            data = file.read(stop - start)
        check_length(len(data), stop - start)
        return data

    def create(self, uri: str, data: bytes) -> None:
        """A temporary file, synced, then a hard link: of any number of writers exactly one succeeds.

        `open(…, "x")` would show readers a half-written file, and `rename` overwrites.
        """
        path = local_path(uri)
        if path.exists():
            raise FileExistsError(errno.EEXIST, "an object is already there", uri)
        _unless_swept(lambda: self._link(path, data))

    def create_file(self, uri: str, path: Path) -> None:
        """`create` of a local file, copied in pieces; where there are no hard links, a kill may leave an empty one."""
        target = local_path(uri)

        def copy() -> None:
            with path.open("rb") as stream:
                self._link(target, stream)

        try:
            _unless_swept(copy)
        except _NoLinksError:
            target.open("xb").close()  # of several writers one gets past this
            try:
                self.put_file(uri, path)
            except BaseException:
                with suppress(OSError):
                    target.unlink()  # it would refuse the next attempt
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
        """A temporary file, synced, then renamed over the old one."""
        path = local_path(uri)
        _unless_swept(lambda: _rename(_write_temporary(path, data), path))

    def put_file(self, uri: str, path: Path) -> None:
        """`put` of a local file, copied in pieces."""

        def copy() -> None:
            with path.open("rb") as stream:
                self.put_stream(local_path(uri), stream)

        _unless_swept(copy)

    def put_stream(self, path: Path, stream: BinaryIO) -> None:
        """`put` of an open stream to a local path."""
        _rename(_write_temporary(path, stream), path)

    def walk(
        self, uri: str, recursive: bool, on_skip: OnSkip = warn_of_skipped, beginning: str = ""
    ) -> Iterator[ObjectInfo]:
        """Files below a folder; links to folders are not followed, and links in a circle are skipped."""
        root = local_path(uri)
        if root.is_dir():
            yield from _walk(root, "", recursive, on_skip, beginning)

    def size(self, uri: str) -> int:
        """The size in bytes."""
        return _regular(local_path(uri)).st_size

    def delete(self, uri: str) -> None:
        """Remove the file; its folder stays."""
        path = local_path(uri)
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
            _sync_folder(path.parent)

    def purge(self, uri: str) -> None:
        """Local files have no older versions."""
        self.delete(uri)

    def versioned(self, uri: str) -> set[str]:
        """Local files have no older versions; links that `walk` passes over, to folders or to nothing, are named."""
        return set(_links(local_path(uri), ""))

    def ping(self, uri: str) -> None:
        """List the nearest parent folder that exists."""
        folder = local_path(uri).absolute().parent
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        with os.scandir(folder) as entries:
            next(entries, None)


def _unless_swept(put: Callable[[], None]) -> None:
    """Put a file; once more if its temporary file is gone: a takedown removes those that dead writers may have left."""
    try:
        put()
    except FileNotFoundError:
        put()


def _write_temporary(target: Path, source: bytes | BinaryIO) -> Path:
    _make_folder(target.parent)
    temporary = target.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        # Not `tempfile`: its files are readable by the user only, and these become objects that others read.
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
        raise UsageError(f"{folder} cannot be a folder: it, or a parent, is a file") from error
    for path in missing:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _links(folder: Path, prefix: str) -> Iterator[str]:
    """Yield the links below a folder that lead to no regular file, and follow none; a walk names the others."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _links(Path(entry.path), f"{prefix}{entry.name}/")
            elif entry.is_symlink() and not Path(entry.path).is_file():
                yield prefix + entry.name


def _walk(folder: Path, prefix: str, recursive: bool, on_skip: OnSkip, beginning: str = "") -> Iterator[ObjectInfo]:
    with os.scandir(folder) as found:
        # A folder sorts as "name/", so that the order is by full names, as in a bucket.
        entries = sorted(
            (entry for entry in found if entry.name.startswith(beginning)),
            key=lambda entry: entry.name + "/" * entry.is_dir(follow_symlinks=False),
        )
    for entry in entries:
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
            on_skip(prefix + entry.name, "a link that leads in a circle")
            continue
        if stat.S_ISREG(status.st_mode):
            modified = datetime.fromtimestamp(status.st_mtime, UTC)
            yield ObjectInfo(prefix + entry.name, status.st_size, modified)
