"""Index of the files in a tar, built from the members' headers. Each header is read only once, by range."""

import tarfile
import threading
from collections.abc import Callable

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.layout import MOST_MEMBER_BYTES, DamagedDatasetError
from segmint.infra.storage.location import Location

_BLOCK = 512
_WINDOW = 64 << 10  # usually covers an image's JSON and the next header, so an image takes one request
_SKIPPED = frozenset({tarfile.DIRTYPE, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME})

ReadRange = Callable[[int, int], bytes]
"""Function that returns the bytes [start, stop) of a file."""


class TarIndex:
    """Index of the files' positions in a tar. Headers are read only when they are needed. Thread-safe.

    If several files have the same name, the first one counts. A member that isn't a plain file, or that extends beyond
    the end of the tar, is treated as damage.
    """

    def __init__(self, where: str, size: int, read_range: ReadRange) -> None:
        self._where = where
        self._size = size
        self._read_range = read_range
        self._places: dict[str, tuple[int, int]] = {}  # start and stop of the file's data
        self._next = 0
        self._lock = threading.Lock()

    def find(self, name: str) -> tuple[int, int] | None:
        """Return the start and stop of a file's bytes in the tar, or None if there is no such file.

        Raises `DamagedDatasetError` if a header before the file is damaged.
        """
        with self._lock:
            while name not in self._places and self._next < self._size:
                self._walk()
            return self._places.get(name)

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, or None if it doesn't exist. Raises `DamagedDatasetError` if it is over 256 MiB."""
        place = self.find(name)
        if place is None:
            return None
        start, stop = place
        if stop - start > MOST_MEMBER_BYTES:
            raise DamagedDatasetError(f"{self._where}: {name} has {stop - start:,} bytes; expected an image")
        return self._read(start, stop)

    def _walk(self) -> None:
        """Read one window and index its headers. The tar ends at the first empty block."""
        start = self._next
        window = self._read(start, min(start + _WINDOW, self._size))
        while self._next + _BLOCK <= start + len(window):
            block = window[self._next - start : self._next - start + _BLOCK]
            if not any(block):
                self._next = self._size
                return
            try:
                member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                raise DamagedDatasetError(f"{self._where} can't be read as a tar: {error}") from error
            self._take(member)
        if self._next + _BLOCK > self._size:
            self._next = self._size

    def _read(self, start: int, stop: int) -> bytes:
        data = self._read_range(start, stop) if stop > start else b""
        if len(data) != stop - start:
            raise DamagedDatasetError(f"{self._where} ends at byte {start + len(data)} of {self._size}")
        return data

    def _take(self, member: tarfile.TarInfo) -> None:
        data = self._next + _BLOCK
        if member.size < 0 or data + member.size > self._size:
            raise DamagedDatasetError(f"{self._where}: {member.name} extends past the end of the tar")
        if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
            self._places.setdefault(member.name, (data, data + member.size))
        elif member.type not in _SKIPPED:
            raise DamagedDatasetError(f"{self._where}: {member.name} is not a plain file")
        self._next = data + -(-member.size // _BLOCK) * _BLOCK


def index_tar(dataset: Location, commit: Commit) -> TarIndex:
    """Return the index of a committed shard's tar, which is read by range. Raises the same errors as `Commit.file`."""
    entry = commit.file("shards")
    tar = dataset / entry.path

    def read_range(start: int, stop: int) -> bytes:
        with tar.open_ranges(entry.size) as stream:
            stream.seek(start)
            return stream.read(stop - start)

    return TarIndex(tar.uri, entry.size, read_range)
