"""Reader of untrusted tars, which yields the members in one pass and limits the size of their headers.

`tarfile` itself has no such limit, and malformed headers can make it raise anything from KeyError to RecursionError.
"""

import tarfile
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol, TypeVar, cast

from segmint.infra.errors import SegmintError

T = TypeVar("T")

MOST_HEADER_BYTES = 1 << 20
"""Maximum size in bytes of one member's headers. A plain header has 512 bytes; long names and pax records take a few
kilobytes."""

_PIECE = 4 << 20


class SupportsRead(Protocol):
    """Stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """Read at most `size` bytes. At the end of the stream, return no bytes."""
        ...


class BadTarError(tarfile.TarError):
    """Raised when a tar can't be read any further. The message gives the reason."""


class TarReader:
    """Iterator over the members of a tar, in order. The stream doesn't have to be seekable.

    If the stream is seekable, you may move its position between two members.
    """

    def __init__(self, stream: SupportsRead) -> None:
        self._stream = _ForwardStream(stream)
        self.end = 0  # position after the last member, once all members have been yielded

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        """Yield the members. Raises `BadTarError`, and any errors of the stream itself."""
        archive = self._guarded(lambda: tarfile.TarFile(fileobj=cast(BinaryIO, self._stream)))
        while (member := self._guarded(archive.next)) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # the list would keep every member
            yield member
        self.end = archive.offset

    def read(self, member: tarfile.TarInfo) -> bytes:
        """Return the content of the plain file that was yielded last. Raises `BadTarError` if the tar ends early."""
        self._stream.allowed = member.size
        self._stream.seek(member.offset_data)
        data = self._stream.read(member.size)
        if len(data) != member.size:
            raise BadTarError("unexpected end of data")
        return data

    def _guarded(self, step: Callable[[], T]) -> T:
        """Run a step of `tarfile` that reads the headers of one member, and limit how much it reads."""
        self._stream.allowed = MOST_HEADER_BYTES
        try:
            return step()
        except (SegmintError, OSError, BadTarError):
            raise  # raised by the store or by us
        except tarfile.TarError as error:
            raise BadTarError(str(error)) from error
        except Exception as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            raise BadTarError(f"a header that cannot be read ({why})") from error


def is_plain_file(member: tarfile.TarInfo) -> bool:
    """Return whether a member is a file that the tar stores in full.

    Links aren't, and neither are sparse files, which could expand to terabytes.
    """
    return member.isfile() and not member.issparse() and member.size >= 0


def starts_file(header: bytes, size: int) -> bool:
    """Return whether bytes are the header of a plain file of `size` bytes, which begins right after it."""
    try:
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    plain = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
    return member.type in plain and member.size == size


class _ForwardStream:
    """Forward-only stream for `tarfile`. After `allowed` bytes, reading fails until `allowed` is set again."""

    def __init__(self, stream: SupportsRead) -> None:
        self._stream = stream
        self._position = 0
        seekable = getattr(stream, "seekable", None)
        self._seek = getattr(stream, "seek", None) if seekable is not None and seekable() else None
        self.allowed = 0

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        if position < self._position:
            raise BadTarError("a header that leads back to what was read")
        while self._seek is None and self._position < position:
            if not self._take(min(_PIECE, position - self._position)):
                return
        self._position = position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.allowed:
            raise BadTarError(f"headers of a member of over {MOST_HEADER_BYTES:,} bytes")
        self.allowed -= size
        if self._seek is not None:
            try:
                self._seek(self._position)
            except (OSError, ValueError, OverflowError) as error:  # the position is beyond any possible file size
                raise BadTarError("unexpected end of data") from error
        return self._take(size)

    def _take(self, size: int) -> bytes:
        """Read up to `size` bytes in chunks of `_PIECE`, because a stream may allocate all the memory that it's asked
        for."""
        pieces: list[bytes] = []
        while size > 0 and (piece := self._stream.read(min(size, _PIECE))):
            pieces.append(piece)
            size -= len(piece)
            self._position += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
