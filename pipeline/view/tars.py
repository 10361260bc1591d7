"""Where a file stands in a tar: found by the headers of its members, which are read by ranges and once."""

import tarfile
import threading
from collections.abc import Callable

from segmint.catalogs.layout import DamagedDatasetError

_BLOCK = 512
_WINDOW = 64 << 10  # a range holds an image's JSON and the header after it, as a rule: a request an image
_LARGEST = 256 << 20
_PASSED_OVER = frozenset({tarfile.DIRTYPE, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME})

ReadRange = Callable[[int, int], bytes]
"""The bytes [start, stop) of a file."""


class TarIndex:
    """Where the files of one tar stand; its headers are walked as far as somebody asked. Safe to use from threads.

    Everything is kept under the first name that it has. What is no plain file, or ends behind the tar's end, is damage.
    """

    def __init__(self, where: str, size: int, read_range: ReadRange) -> None:
        self._where = where
        self._size = size
        self._read_range = read_range
        self._places: dict[str, tuple[int, int]] = {}  # start and stop of the data
        self._next = 0
        self._lock = threading.Lock()

    def find(self, name: str) -> tuple[int, int] | None:
        """Start and stop of a file's bytes in the tar; None where there is no such file.

        Raises `DamagedDatasetError` for a header on the way that is none.
        """
        with self._lock:
            while name not in self._places and self._next < self._size:
                self._walk()
            return self._places.get(name)

    def read(self, name: str) -> bytes | None:
        """A file's bytes; None where there is no such file. Raises `DamagedDatasetError` for one of over 256 MiB."""
        place = self.find(name)
        if place is None:
            return None
        start, stop = place
        if stop - start > _LARGEST:
            raise DamagedDatasetError(f"{self._where}: {name} has {stop - start:,} bytes; expected a picture")
        return self._read(start, stop)

    def _walk(self) -> None:
        """Reads one window and takes the headers in it; the tar's end is the first block without a header."""
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
                raise DamagedDatasetError(f"{self._where} is no tar that can be read: {error}") from error
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
            raise DamagedDatasetError(f"{self._where}: {member.name} ends behind the tar's end")
        if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
            self._places.setdefault(member.name, (data, data + member.size))
        elif member.type not in _PASSED_OVER:
            raise DamagedDatasetError(f"{self._where}: {member.name} is no plain file")
        self._next = data + -(-member.size // _BLOCK) * _BLOCK
