"""Catalogs of lines of text, packed by gzip or not, as blocks of whole lines."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import BinaryIO, cast

from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location

BLOCK_BYTES = 4 << 20
"""How much of a text catalog is parsed at a time."""

ROW_BYTES = 4 << 20
"""How long one row of a text catalog may be. Whatever is longer is no catalog, and would fill the memory."""


def open_text(file: Location) -> AbstractContextManager[BinaryIO]:
    """A stream of the catalog's bytes, unpacked where its name ends in `.gz`; raises `UsageError` for a bad gzip."""
    return _unpacked(file) if file.uri.lower().endswith(".gz") else file.open()


def line_blocks(stream: BinaryIO) -> Iterator[bytes]:
    """The stream in blocks of about `BLOCK_BYTES` that end where a line ends; without a byte-order mark.

    A line without an end is cut where its block is too long for any row.
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
            raise UsageError(f"{file} is no gzip file that can be read: {error}") from error
