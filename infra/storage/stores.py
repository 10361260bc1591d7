"""The interface of a store, and its implementation for local files."""

import errno
import io
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

from segmint.infra.errors import UsageError
from segmint.infra.log import get_logger
from segmint.infra.storage.errors import ObjectChangedError, ObjectTooLargeError, ShortBodyError, StorageFaultError
from segmint.infra.uris import local_path, redact

TEMPORARY_PREFIX = ".tmp-"
"""Start of the names of temporary files. Most continue with the target's name, `-`, and 32 random digits."""

_RANDOM_DIGITS = 32
_LONGEST_NAME = 255  # bytes, on most file systems
_LOCAL_BUFFER = 1 << 16  # bytes
_NO_LINK = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK}


NO_TIME = datetime.fromtimestamp(0, UTC)
"""Modification time of a listed object whose store doesn't report one. It counts as older than any age."""


@dataclass(frozen=True, order=True, slots=True)
class ObjectInfo:
    """Entry of a listing. The name is relative to the listed folder, the size is in bytes, and the time is in UTC."""

    name: str
    size: int
    modified: datetime


class ObjectVersion(NamedTuple):
    """Version of an object, as a response describes it. None means that the response doesn't say."""

    size: int | None = None  # bytes
    etag: str | None = None
    modified: object = None


OnSkip = Callable[[str, str], None]
"""Callback for entries that a listing skips. It receives the name relative to the listed folder, and the reason."""


def warn_of_skipped(name: str, why: str) -> None:
    """Log a skipped entry. This is the default `OnSkip`."""
    get_logger("storage").warning("skipped", name=_text(name), why=why)


def _text(name: str) -> str:
    """Make a file name printable. File systems allow bytes that aren't valid UTF-8."""
    return name.encode(errors="replace").decode()


class Store(Protocol):
    """Operations of a store. Each call makes a single attempt and raises the store's own errors."""

    def read(self, uri: str, max_bytes: int | None) -> bytes:
        """Read a whole object.

        Raises `ObjectTooLargeError` if the object exceeds `max_bytes`, and `ShortBodyError` if the body's length is
        wrong.
        """

    def read_range(self, uri: str, start: int, stop: int, first: ObjectVersion) -> tuple[bytes, ObjectVersion]:
        """Read the bytes [start, stop), and return them with the version from the response.

        `first` is the version that earlier requests read. If the object has another version now, raises an error with
        the status 412 or 416, or returns that version.
        """

    def create(self, uri: str, data: bytes) -> None:
        """Create an object. If it already exists, raises `FileExistsError` or an error with S3's code."""

    def create_file(self, uri: str, path: Path) -> None:
        """Create an object from a local file of any size. Raises the same errors as `create`."""

    def put(self, uri: str, data: bytes) -> None:
        """Write a whole object, replacing any existing one."""

    def put_file(self, uri: str, path: Path) -> None:
        """Upload a local file as a whole object, replacing any existing one."""

    def walk(self, uri: str, recursive: bool, on_skip: OnSkip, beginning: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects below a folder or prefix in code point order, if their names start with `beginning`."""

    def version(self, uri: str) -> ObjectVersion:
        """Return the version of the object, with its size."""

    def delete(self, uri: str) -> None:
        """Delete the object if it exists."""

    def purge(self, uri: str) -> None:
        """Delete the object and all its older versions."""

    def versioned(self, uri: str, beginning: str = "") -> set[str]:
        """Return the names of objects below a folder or prefix with older versions. This includes deleted objects.

        Only names that start with `beginning` are returned.
        """

    def ping(self, uri: str) -> None:
        """Make a minimal request, and raise an error if the store doesn't respond."""


def check_size(uri: str, size: int, max_bytes: int | None) -> None:
    """Raise `ObjectTooLargeError` if `size` exceeds `max_bytes`."""
    if max_bytes is not None and size > max_bytes:
        raise ObjectTooLargeError(f"{redact(uri)} has {size} bytes, over {max_bytes}", size, max_bytes)


def check_length(got: int, expected: int) -> None:
    """Raise `ShortBodyError` if a body doesn't have the length that the store announced."""
    if got != expected:
        raise ShortBodyError(errno.EIO, f"received {got} bytes instead of {expected}")


def check_version(uri: str, first: ObjectVersion, now: ObjectVersion) -> ObjectVersion:
    """Raise `ObjectChangedError` if two responses describe different versions of an object.

    A store may omit ETags or times, and proxies mark ETags as weak. Only what both responses contain is compared.
    Returns what the responses say together.
    """
    size = now.size if first.size is None else first.size
    modified = first.modified or now.modified
    if first.etag and now.etag:
        changed = first.etag.removeprefix("W/") != now.etag.removeprefix("W/")
    else:
        changed = now.modified not in (None, modified)
    if changed or now.size not in (None, size):
        raise changed_error(uri)
    return ObjectVersion(size, first.etag or now.etag, modified)


def changed_error(uri: str) -> ObjectChangedError:
    """Return the error for an object of which a later response or look gave another ETag, time, or size."""
    return ObjectChangedError(
        f"cannot read {redact(uri)}: it was changed while it was read. Run the command again when the new version is "
        "complete. If nothing changed it, its store or file system sent another ETag, time, or size for the same object"
    )


def endless_error(uri: str) -> StorageFaultError:
    """Return the error for a listing whose pages don't advance."""
    return StorageFaultError(
        f"cannot list {redact(uri)}: the store repeats its pages, so the listing would never end. Check the endpoint "
        "and the proxies in front of it"
    )


def open_file(uri: str) -> BinaryIO:
    """Open a local file for reading.

    Raises `FileNotFoundError` for a pipe, device, or socket. If someone writes to the file, later reads raise
    `ObjectChangedError`. If the file is replaced by another one, the stream still reads the old file.
    """
    path = local_path(uri)
    _regular(path)
    return cast(BinaryIO, io.BufferedReader(_UnchangedFile(path), _LOCAL_BUFFER))


class _UnchangedFile(io.FileIO):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._uri = str(path)
        self._first = _file_version(os.fstat(self.fileno()))

    def readinto(self, buffer: Any) -> int | None:
        count = super().readinto(buffer)
        self._check()
        return count

    def readall(self) -> bytes:
        data = super().readall()
        self._check()
        return data

    def _check(self) -> None:
        check_version(self._uri, self._first, _file_version(os.fstat(self.fileno())))


def _file_version(status: os.stat_result) -> ObjectVersion:
    return ObjectVersion(status.st_size, f"{status.st_ino}-{status.st_mtime_ns}")


def _regular(path: Path) -> os.stat_result:
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(errno.ENOENT, "is not a regular file", str(path))
    return status


class _NoLinksError(UsageError):
    """Raised when a file system doesn't support hard links."""


class LocalStore:
    """Store of local files. If a process crashes during a write, either the whole file exists or nothing does."""

    def read(self, uri: str, max_bytes: int | None) -> bytes:
        """Read the whole file, but no more than its reported size, because some special files never end."""
        with open_file(uri) as file:
            size = os.fstat(file.fileno()).st_size
            check_size(uri, size, max_bytes)
            try:
                data = file.read(size + 1)
            except ObjectChangedError as error:  # another attempt reads the new version from its start
                raise ShortBodyError(errno.EIO, "the file was changed while it was read") from error
        check_length(len(data), size)
        return data

    def read_range(self, uri: str, start: int, stop: int, first: ObjectVersion) -> tuple[bytes, ObjectVersion]:
        """Read the bytes [start, stop)."""
        with open_file(uri) as file:
            file.seek(start)
            return file.read(stop - start), _file_version(os.fstat(file.fileno()))

    def create(self, uri: str, data: bytes) -> None:
        """Create a file such that exactly one of several writers succeeds.

        The method syncs a temporary file and then creates a hard link to it. `open(…, "x")` would let readers see a
        partially written file, and `rename` would overwrite an existing one.
        """
        path = local_path(uri)
        if path.exists():
            raise FileExistsError(errno.EEXIST, "an object is already there", uri)
        _unless_swept(lambda: self._link(path, data))

    def create_file(self, uri: str, path: Path) -> None:
        """Create a file by copying `path` in chunks. Without hard links, a killed process may leave an empty file."""
        target = local_path(uri)

        def copy() -> None:
            with path.open("rb") as stream:
                self._link(target, stream)

        try:
            _unless_swept(copy)
        except _NoLinksError:
            target.open("xb").close()  # exactly one of several writers passes this line
            try:
                self.put_file(uri, path)
            except BaseException:
                with suppress(OSError):
                    target.unlink()  # the empty file would make the next attempt fail
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
        """Write and sync a temporary file, then rename it over the old file."""
        path = local_path(uri)
        _unless_swept(lambda: _rename(_write_temporary(path, data), path))

    def put_file(self, uri: str, path: Path) -> None:
        """Write a file by copying `path` in chunks, with the same guarantees as `put`."""

        def copy() -> None:
            with path.open("rb") as stream:
                self.put_stream(local_path(uri), stream)

        _unless_swept(copy)

    def put_stream(self, path: Path, stream: BinaryIO) -> None:
        """Write a stream to a local path, with the same guarantees as `put`."""
        _rename(_write_temporary(path, stream), path)

    def walk(
        self, uri: str, recursive: bool, on_skip: OnSkip = warn_of_skipped, beginning: str = ""
    ) -> Iterator[ObjectInfo]:
        """Yield the files below a folder. The walk skips links to folders and circular links."""
        root = local_path(uri)
        if root.is_dir():
            yield from _walk(root, "", recursive, on_skip, beginning)

    def version(self, uri: str) -> ObjectVersion:
        """Return the file's size in bytes, and its inode and time of modification."""
        return _file_version(_regular(local_path(uri)))

    def delete(self, uri: str) -> None:
        """Delete the file, but not its folder."""
        path = local_path(uri)
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
            _sync_folder(path.parent)

    def purge(self, uri: str) -> None:
        """Delete the file. Local files don't have older versions."""
        self.delete(uri)

    def versioned(self, uri: str, beginning: str = "") -> set[str]:
        """Return the names of symbolic links and special files, because local files don't have older versions."""
        return {name for name in _links(local_path(uri), "") if name.startswith(beginning)}

    def ping(self, uri: str) -> None:
        """List the nearest parent folder that exists."""
        folder = local_path(uri).absolute().parent
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        with os.scandir(folder) as entries:
            next(entries, None)


def _unless_swept(put: Callable[[], None]) -> None:
    """Call `put`, and retry once if its temporary file has disappeared.

    A takedown deletes the temporary files of dead writers of the same shard, and it can delete this one by mistake.
    """
    try:
        put()
    except FileNotFoundError:
        put()


def target_of(temporary: str) -> str:
    """Return the name of the file that a temporary file becomes, or "" if the temporary file's name doesn't tell."""
    return temporary.removeprefix(TEMPORARY_PREFIX)[: -_RANDOM_DIGITS - 1]


def _write_temporary(target: Path, source: bytes | BinaryIO) -> Path:
    _make_folder(target.parent)
    digits = uuid.uuid4().hex
    name = f"{TEMPORARY_PREFIX}{target.name}-{digits}"  # the digits last, so that no reader's `*.parquet` matches
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = f"{TEMPORARY_PREFIX}{digits}"
    temporary = target.parent / name
    try:
        # `tempfile` creates files that only this user can read, but other users need to read these objects.
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
    """Yield the names of symbolic links and special files below a folder, without following any links."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _links(Path(entry.path), f"{prefix}{entry.name}/")
                continue
            with suppress(FileNotFoundError):  # the entry may have been deleted or renamed after the listing
                if not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
                    yield prefix + entry.name


def _walk(folder: Path, prefix: str, recursive: bool, on_skip: OnSkip, beginning: str = "") -> Iterator[ObjectInfo]:
    with os.scandir(folder) as found:
        # Sort a folder as "name/" so that files are in the order of their full names, as in a bucket.
        entries = sorted(
            (entry for entry in found if entry.name.startswith(beginning)),
            key=lambda entry: entry.name + "/" * entry.is_dir(follow_symlinks=False),
            reverse=True,
        )
    while entries:
        entry = entries.pop()  # pop, because an entry caches its `stat`, which takes more memory than an `ObjectInfo`
        if entry.is_dir(follow_symlinks=False):
            if recursive:
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", recursive, on_skip)
            continue
        try:
            status = entry.stat()
        except FileNotFoundError:  # the file may disappear between the listing and `stat`
            continue
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            on_skip(prefix + entry.name, "a circular link")
            continue
        if stat.S_ISREG(status.st_mode):
            modified = datetime.fromtimestamp(status.st_mtime, UTC)
            yield ObjectInfo(prefix + entry.name, status.st_size, modified)
        elif stat.S_ISDIR(status.st_mode) and recursive:
            on_skip(prefix + entry.name, "a link to a folder")
