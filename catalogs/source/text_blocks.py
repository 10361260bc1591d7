"""Reading text catalogs, plain or gzip-compressed, in blocks of whole lines."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import BinaryIO, cast

from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location

BLOCK_BYTES = 4 << 20
"""Number of bytes of a text catalog that are parsed at a time."""

ROW_BYTES = 4 << 20
"""Maximum size in bytes of one row of a text catalog. A longer one isn't from a catalog, and would fill the memory."""


def open_text(file: Location) -> AbstractContextManager[BinaryIO]:
    """Open a stream of the catalog's bytes, decompressed if its name ends in `.gz`; `UsageError` for invalid gzip."""
    return _unpacked(file) if file.uri.lower().endswith(".gz") else file.open()


def line_blocks(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the stream in blocks of about `BLOCK_BYTES` that end at the end of a line, without a byte-order mark.

    Stops at a line that is too long for any row; the last block then ends inside it.
    """
    rest = stream.read(3)
    rest = b"" if rest == b"\xef\xbb\xbf" else rest
    while True:
        block = stream.read(BLOCK_BYTES)
        if not block:
            break
        head, newline, tail = block.rpartition(b"\n")
        if newline:
            yield rest + head + newline
            rest = tail
        else:
            rest += block
            if len(rest) > BLOCK_BYTES + ROW_BYTES:
                break
    if rest:
        yield rest


@contextmanager
def _unpacked(file: Location) -> Iterator[BinaryIO]:
    with file.open() as packed, gzip.open(packed) as stream:
        try:
            yield cast(BinaryIO, stream)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UsageError(f"{file} cannot be read as gzip: {error}") from error
