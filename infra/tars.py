"""Reader of untrusted tars, which yields the members in one pass and limits the size of their headers.

`tarfile` reads headers of any size, and malformed ones can raise anything from KeyError to RecursionError.
"""

import tarfile
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol, TypeVar, cast

from segmint.infra.errors import SegmintError

T = TypeVar("T")

MOST_HEADER_BYTES = 1 << 20
"""Maximum size in bytes of one member's headers; a plain header has 512, long names and pax records a few kilobytes."""

_PIECE = 4 << 20


class SupportsRead(Protocol):
    """Stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes; empty at the end."""
        ...


class BadTarError(tarfile.TarError):
    """The tar can't be read any further. The message gives the reason."""


class TarReader:
    """Iterator over the members of a tar, in order. The stream needn't be seekable.

    A seekable stream may be repositioned between two members.
    """

    def __init__(self, stream: SupportsRead) -> None:
        self._stream = _ForwardStream(stream)

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        """Yield the members. Raises `BadTarError` and the stream's own errors."""
        archive = self._guarded(lambda: tarfile.TarFile(fileobj=cast(BinaryIO, self._stream)))
        while (member := self._guarded(archive.next)) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # it keeps all of them
            yield member

    def read(self, member: tarfile.TarInfo) -> bytes:
        """Return the content of the plain file that was yielded last. Raises `BadTarError` if the tar ends early."""
        self._stream.allowed = member.size
        self._stream.seek(member.offset_data)
        data = self._stream.read(member.size)
        if len(data) != member.size:
            raise BadTarError("unexpected end of data")
        return data

    def _guarded(self, step: Callable[[], T]) -> T:
        """Call a step of `tarfile` that reads one member's headers."""
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
    """Return whether a member is a file stored in the tar: not a link, and not sparse, which could be terabytes."""
    return member.isfile() and not member.issparse() and member.size >= 0


class _ForwardStream:
    """Forward-only stream with `tarfile`'s interface; at most `allowed` bytes can be read until that is set again."""

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
            except (OSError, ValueError, OverflowError) as error:  # beyond any possible file size
                raise BadTarError("unexpected end of data") from error
        return self._take(size)

    def _take(self, size: int) -> bytes:
        """Read up to `size` bytes in chunks of `_PIECE`, because a stream may allocate the requested size."""
        pieces: list[bytes] = []
        while size > 0 and (piece := self._stream.read(min(size, _PIECE))):
            pieces.append(piece)
            size -= len(piece)
            self._position += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
