"""Access to objects in local folders, S3 buckets, and other fsspec stores: read, put if absent, list, delete."""

import hashlib
import io
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.storage.connections import check_options, connect
from segmint.infra.storage.errors import (
    NotFoundError,
    ObjectTooLargeError,
    PassingFaultError,
    StorageFaultError,
    wait_out,
)
from segmint.infra.storage.retry import RetryPolicy, with_retries
from segmint.infra.storage.stores import (
    TEMPORARY_PREFIX,
    LocalStore,
    ObjectInfo,
    ObjectVersion,
    OnSkip,
    Store,
    changed_error,
    check_length,
    check_version,
    open_file,
    warn_of_skipped,
)
from segmint.infra.uris import LOCAL, base_name, is_below, local_path, redact, scheme, store_name

T = TypeVar("T")

_HEALTH_POLICY = RetryPolicy(attempts=2, first_wait_s=0.2, max_wait_s=1.0, deadline_s=10)
READ_AHEAD = 4 << 20


class Storage:
    """Access to objects by URI, with retries. Instances are thread-safe, and cheap to create and pickle.

    `options` maps URI prefixes to options, as in `{"s3://bucket": {"endpoint_url": …}}`. The longest prefix that
    matches a URI applies. For S3 and Azure, the `OPTIONS` in `segmint.infra.storage.s3` and `azure` list the valid
    keys. Other schemes accept the options of their fsspec implementation. Credentials come from the standard chain;
    passing one as an option raises `UsageError`.

    Each method makes the attempts that `retry` allows. If the store is still unreachable, the method waits up to
    `outage_s` seconds for it to respond; see `segmint.infra.storage.errors`.

    Methods that need an object raise `NotFoundError` if it doesn't exist. Every method raises `StorageFaultError` for a
    fault that persists, and `UriNotAllowedError` for a URI that isn't on the allow-list.
    """

    def __init__(
        self,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 (a frozen value)
        outage_s: float = 0.0,
    ) -> None:
        self._options = {prefix: dict(values) for prefix, values in (options or {}).items()}
        self._retry = retry
        self._outage_s = outage_s
        for prefix, values in self._options.items():
            check_options(prefix, values)

    def __reduce__(self) -> tuple[Any, ...]:
        return Storage, (self._options, self._retry, self._outage_s)

    def read(self, uri: str, max_bytes: int | None = None) -> bytes:
        """Read an object. If it exceeds `max_bytes`, raise `ObjectTooLargeError` before reading it."""
        store = self._store(uri)
        return self._try("read", uri, lambda: store.read(uri, max_bytes))

    def read_part(self, uri: str, start: int, stop: int) -> bytes:
        """Read the bytes [start, stop) of an object in one request. If the object ends earlier, return fewer bytes."""
        store = self._store(uri)

        def attempt() -> bytes:
            data, version = store.read_range(uri, start, stop, ObjectVersion())
            _check_range(uri, len(data), stop - start)
            if version.size is not None and version.size >= stop:
                check_length(len(data), stop - start)
            return data

        try:
            return self._try("read", uri, attempt)
        except FileExistsError:  # the status 416: the object ends before `start`
            return b""

    def open(self, uri: str) -> BinaryIO:
        """Open an object as a seekable stream. If reading a chunk fails, the stream retries that chunk.

        The stream reads one version of the object. If the object changes, reading raises `ObjectChangedError`. To
        notice a change, the store must send an ETag or a time of modification.
        """
        if scheme(uri) == LOCAL:
            return self._try("open", uri, lambda: open_file(uri))
        raw = cast(io.RawIOBase, self.open_ranges(uri))
        return cast(BinaryIO, io.BufferedReader(raw, READ_AHEAD))

    def open_ranges(self, uri: str, size: int | None = None) -> BinaryIO:
        """Open a stream for readers that seek to known ranges. Each read is one request, without read-ahead.

        Pass the `size` in bytes if you know it, which saves a request. All reads are from one version, as in `open`,
        except that stores other than S3 and Azure don't notice a change if you pass the size.
        """
        if scheme(uri) == LOCAL:
            return self.open(uri)
        version = ObjectVersion()
        if size is None:
            size, version = self._look_at(uri)
        return cast(BinaryIO, _RangeReader(self._read_range, uri, size, version))

    def get_file(self, uri: str, path: Path) -> None:
        """Copy an object to a local file. The file appears only once it is complete."""
        with self.open(uri) as stream:
            LocalStore().put_stream(path, stream)

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        """Write an object unless one already exists. Exactly one of several concurrent writers wins.

        Returns True if the object now contains these bytes. It's also True if another writer wrote the same bytes, or
        if an earlier attempt did and its response was lost. Returns False if a different object exists, and leaves that
        object unchanged. Raises `UsageError` if the store supports neither hard links nor conditional puts.
        """
        store = self._store(uri)
        return self._create(uri, lambda: store.create(uri, data), lambda: self.read(uri, max_bytes=len(data)) == data)

    def put_file_if_absent(self, uri: str, path: Path) -> bool:
        """Upload a local file of any size unless the object exists. The object appears as a whole or not at all.

        This also works on file systems without hard links, but there, a killed process may leave an empty or truncated
        file. Raises `UsageError` if the store has no conditional puts.
        """
        store = self._store(uri)

        def is_there() -> bool:
            return self.size(uri) == path.stat().st_size and self.sha256(uri) == self.sha256(str(path))

        return self._create(uri, lambda: store.create_file(uri, path), is_there)

    def _create(self, uri: str, create: Callable[[], None], is_there: Callable[[], bool]) -> bool:
        for _ in range(self._retry.attempts):
            try:
                self._try("put", uri, create)
            except FileExistsError:
                try:
                    return is_there()
                except ObjectTooLargeError:
                    return False
                except NotFoundError:
                    continue  # another process deleted the object in the meantime
            return True
        raise StorageFaultError(f"cannot put {redact(uri)}: an object keeps appearing and disappearing there")

    def put(self, uri: str, data: bytes) -> None:
        """Write a whole object, replacing any existing one. Readers see either the old object or the new one."""
        store = self._store(uri)
        self._try("put", uri, lambda: store.put(uri, data))

    def put_file(self, uri: str, path: Path) -> None:
        """Upload a local file as a whole object, replacing any existing one."""
        if not path.is_file():
            raise UsageError(f"{path} is not a file, so it cannot be put to {redact(uri)}")
        store = self._store(uri)
        self._try("put", uri, lambda: store.put_file(uri, path))

    def list(self, uri: str, include_temporary: bool = False, beginning: str = "") -> list[ObjectInfo]:
        """List the objects directly in a folder or prefix, sorted by name. If it doesn't exist, the list is empty.

        If you set `beginning`, the list contains only names that start with it. In a bucket of any size, this takes one
        short request. The list omits folders. It also omits the temporary files of dead writers (`.tmp-…`) unless you
        set `include_temporary`.
        """
        store = self._store(uri)
        found = self._try("list", uri, lambda: list(store.walk(uri, False, warn_of_skipped, beginning)))
        return [entry for entry in found if include_temporary or not _is_temporary(entry.name)]

    def walk(
        self, uri: str, include_temporary: bool = False, on_skip: OnSkip = warn_of_skipped, beginning: str = ""
    ) -> Iterator[ObjectInfo]:
        """Yield the objects at any depth below a folder or prefix, in the store's order.

        Names are relative to `uri` and start with `beginning`. Set `include_temporary` to include temporary files, for
        example to sweep them. If a fault interrupts the listing, it starts over and skips the names that it already
        yielded; it can't continue after the last name because not every store lists in name order. For entries that
        can't be listed, such as circular links, the method calls `on_skip`.
        """
        store = self._store(uri)
        given: set[str] = set()

        def skip(name: str, why: str) -> None:
            if name not in given:
                given.add(name)
                on_skip(name, why)

        entries = iter(store.walk(uri, recursive=True, on_skip=skip, beginning=beginning))

        def advance() -> ObjectInfo | None:
            nonlocal entries
            try:
                for entry in entries:
                    if entry.name not in given:
                        return entry
            except BaseException:
                entries = iter(store.walk(uri, recursive=True, on_skip=skip, beginning=beginning))
                raise
            return None

        while (found := self._try("list", uri, advance)) is not None:
            given.add(found.name)
            if include_temporary or not _is_temporary(found.name):
                yield found

    def size(self, uri: str) -> int:
        """Return the size of an object in bytes."""
        size, _ = self._look_at(uri)
        return size

    @contextmanager
    def unchanged(self, uri: str) -> Iterator[None]:
        """Raise `ObjectChangedError` after the block if an object changed in the meantime.

        Use it around code that opens an object several times.
        """
        _, before = self._look_at(uri)
        yield
        _, after = self._look_at(uri)
        check_version(uri, before, after)

    def sha256(self, uri: str) -> str:
        """Stream an object, and return its SHA-256 in hexadecimal."""
        return self.size_and_sha256(uri)[1]

    def size_and_sha256(self, uri: str) -> tuple[int, str]:
        """Stream an object, and return its size in bytes and its SHA-256 in hexadecimal."""
        with self.open(uri) as stream:
            # `BinaryIO` doesn't declare `readinto`, but all of our streams have it.
            digest = hashlib.file_digest(cast("hashlib._BytesIOLike", stream), "sha256").hexdigest()
            return stream.tell(), digest

    def exists(self, uri: str) -> bool:
        """Return whether an object exists. Folders don't count as objects."""
        try:
            self.size(uri)
        except NotFoundError:
            return False
        return True

    def link_target(self, uri: str) -> str | None:
        """Return the target of a local symbolic link, as the link contains it, or None if `uri` isn't a link."""
        path = local_path(uri) if scheme(uri) == LOCAL else None
        return str(path.readlink()) if path is not None and path.is_symlink() else None

    def links(self, uri: str) -> set[str]:
        """Return the names of all symbolic links below a local folder, relative to it. Stores don't have links."""
        return self.versioned(uri) if scheme(uri) == LOCAL else set()

    def versioned(self, uri: str, beginning: str = "") -> set[str]:
        """Return the names of objects below a folder or prefix that have older versions and start with `beginning`.

        Local files have none. In a local folder, these are the names of links and special files instead.

        Raises `UsageError` if the store can't list versions.
        """
        store = self._store(uri)
        return self._try("list versions of", uri, lambda: store.versioned(uri, beginning))

    def refuse_link(self, uri: str) -> None:
        """Raise `UsageError` for a local symbolic link, because the link's target isn't ours to delete."""
        target = self.link_target(uri)
        if target is not None:
            raise UsageError(
                f"{redact(uri)} is a link to {target}: nothing is removed through a link. Replace the link with the "
                "folder, or pass the dataset's real path"
            )

    def walk_ever(self, uri: str, beginning: str = "") -> tuple[str, ...]:
        """List the names of everything below a folder or prefix that could be removed, including temporary objects.

        The names are sorted, relative to `uri`, and start with `beginning`. They include deleted objects if the bucket
        keeps older versions of them. They also include local links, but nothing behind those links. Raises `UsageError`
        if the store can't list versions.
        """
        there = {entry.name for entry in self.walk(uri, include_temporary=True, beginning=beginning)}
        return tuple(sorted(self.versioned(uri, beginning) | there))

    def delete(self, uri: str) -> None:
        """Delete an object if it exists."""
        store = self._store(uri)
        with suppress(NotFoundError):
            self._try("delete", uri, lambda: store.delete(uri))

    def purge(self, uri: str) -> None:
        """Delete an object if it exists, along with all older versions that the bucket keeps.

        Raises `UsageError` if the store can't list versions.
        """
        store = self._store(uri)
        with suppress(NotFoundError):
            self._try("purge", uri, lambda: store.purge(uri))

    def answers(self, uri: str) -> bool:
        """Check quickly whether the store responds at all, even if it refuses access.

        Callers use this to distinguish an outage from other faults. This method never raises, because the URI may come
        from a catalog.
        """
        try:
            store = self._store(uri)
            with_retries(_HEALTH_POLICY, "reach", uri, lambda: store.ping(uri))
        except PassingFaultError:
            return False
        except SegmintError:
            return True
        return True

    def _try(self, action: str, uri: str, attempt: Callable[[], T]) -> T:
        def all_attempts() -> T:
            return with_retries(self._retry, action, uri, attempt)

        if self._outage_s <= 0:
            return all_attempts()
        return wait_out(all_attempts, store_name(uri), lambda: self.answers(uri), self._outage_s)

    def _look_at(self, uri: str) -> tuple[int, ObjectVersion]:
        """Return an object's size in bytes, and its version."""
        store = self._store(uri)
        version = self._try("look at", uri, lambda: store.version(uri))
        if version.size is None:
            raise StorageFaultError(f"cannot look at {redact(uri)}: the store doesn't say how many bytes it has")
        return version.size, version

    def _read_range(self, uri: str, start: int, stop: int, first: ObjectVersion) -> tuple[bytes, ObjectVersion]:
        store = self._store(uri)

        def attempt() -> tuple[bytes, ObjectVersion]:
            data, found = store.read_range(uri, start, stop, first)
            _check_range(uri, len(data), stop - start)
            version = check_version(uri, first, found)
            check_length(len(data), stop - start)
            return data, version

        try:
            return self._try("read", uri, attempt)
        except FileExistsError as error:
            raise changed_error(uri) from error

    def _store(self, uri: str) -> Store:
        return connect(scheme(uri), self._options_of(uri))

    def _options_of(self, uri: str) -> dict[str, Any]:
        protocol = scheme(uri)
        if protocol == LOCAL:
            return {}
        fitting = [prefix for prefix in self._options if scheme(prefix) == protocol and is_below(uri, prefix)]
        return self._options[max(fitting, key=len)] if fitting else {}


class MeteredStorage(Storage):
    """Storage that measures reads of objects and ranges since the last reset.

    Reads through `open` and `open_ranges`, and reads in a child process, aren't measured.
    """

    def __init__(self, options: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(options)
        self.reset()

    def reset(self) -> None:
        self.bytes_read = 0
        self.read_s = 0.0

    def read(self, uri: str, max_bytes: int | None = None) -> bytes:
        return self._measured(lambda: Storage.read(self, uri, max_bytes))

    def read_part(self, uri: str, start: int, stop: int) -> bytes:
        return self._measured(lambda: Storage.read_part(self, uri, start, stop))

    def _measured(self, read: Callable[[], bytes]) -> bytes:
        started = time.perf_counter()
        data = read()
        self.read_s += time.perf_counter() - started
        self.bytes_read += len(data)
        return data


class _RangeReader(io.RawIOBase):
    def __init__(
        self,
        read_range: Callable[[str, int, int, ObjectVersion], tuple[bytes, ObjectVersion]],
        uri: str,
        size: int,
        version: ObjectVersion,
    ) -> None:
        self._read_range = read_range
        self._uri = uri
        self._size = size
        self._version = version
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}, before the start")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        start, stop = self._position, min(self._position + len(buffer), self._size)
        if stop <= start:
            return 0
        data, self._version = self._read_range(self._uri, start, stop, self._version)
        buffer[: stop - start] = data
        self._position = stop
        return stop - start


def _check_range(uri: str, got: int, asked: int) -> None:
    if got > asked:
        raise StorageFaultError(f"cannot read {redact(uri)}: the store ignored the requested range of bytes")


def _is_temporary(name: str) -> bool:
    return base_name(name).startswith(TEMPORARY_PREFIX)
