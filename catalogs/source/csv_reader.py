"""Reader of CSV catalogs, block by block: a header, then one record per row."""

import csv
import io
import threading
import weakref
from collections.abc import Container, Generator, Iterator, Sequence
from contextlib import closing
from typing import BinaryIO

import pyarrow as pa
import pyarrow.csv as pacsv

from segmint.catalogs.schema import SOURCE
from segmint.catalogs.source.conform import OnProblem, conform, refuse, require_columns, shown
from segmint.catalogs.source.text_blocks import BLOCK_BYTES, ROW_BYTES, open_text
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location

_MOST_COLUMNS = 10_000  # Arrow's reader uses 2 KB per column before the first row
_LONGEST_READ_S = 60.0  # maximum wait for a block that is being read when the reader is closed


def read_csv(catalog: Location, on_problem: OnProblem = refuse) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a CSV catalog in order; see `segmint.catalogs.source.readers.read_catalog`."""
    row = 1
    with closing(csv_batches(catalog)) as batches:
        for batch in batches:
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            yield conform(catalog.uri, columns, batch.num_rows, row, on_problem)
            row += batch.num_rows


def csv_batches(catalog: Location, only: Container[str] = SOURCE.names) -> Generator[pa.RecordBatch, None, None]:
    """Yield the rows of a CSV catalog as text, with only the columns in `only`, which don't affect the batching."""
    with open_text(catalog) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            names = next((line for line in csv.reader(_header_lines(catalog.uri, text)) if line), [])
        except (UnicodeDecodeError, csv.Error) as error:
            raise UsageError(f"{catalog}: the header is not CSV in UTF-8: {error}") from error
    if len(names) > _MOST_COLUMNS:
        raise UsageError(f"{catalog}: the header has {len(names):,} columns; expected at most {_MOST_COLUMNS:,}")
    require_columns(catalog.uri, names)
    bad: list[pacsv.InvalidRow] = []
    rows = 0
    with open_text(catalog) as stream, closing(_batches(stream, names, only, bad)) as batches:
        try:
            for batch in batches:
                yield batch
                rows += batch.num_rows
        except pa.ArrowInvalid as error:
            if bad:
                raise UsageError(
                    f"{catalog}, line {bad[0].number}: found {bad[0].actual_columns} values; "
                    f"expected {bad[0].expected_columns}, as in the header: {shown(bad[0].text)}"
                ) from error
            if "Empty CSV" in str(error):
                return
            why = str(error)
            if "straddling" in why:
                why = f"a row is longer than {BLOCK_BYTES:,} bytes, or a quote is never closed"
            raise UsageError(f"{catalog}: cannot be read as CSV after row {rows}: {why}") from error


def _batches(
    stream: BinaryIO, names: Sequence[str], only: Container[str], bad: list[pacsv.InvalidRow]
) -> Generator[pa.RecordBatch, None, None]:
    """Yield the rows of an open CSV; add a row with a wrong number of values to `bad` before raising the error."""
    left, returned = threading.Event(), threading.Event()
    lent = _ArrowStream(stream, bad, left)
    weakref.finalize(lent, returned.set)
    try:
        yield from pacsv.open_csv(
            lent,
            read_options=pacsv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
            parse_options=pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=lent.remember),
            convert_options=pacsv.ConvertOptions(
                column_types={name: pa.string() for name in names},
                include_columns=[name for name in names if name in only],
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
    finally:
        left.set()
        del lent
        returned.wait(_LONGEST_READ_S)


class _ArrowStream:
    """Stream and handler of bad rows for Arrow's threads.

    These threads read ahead even after the last batch was taken, and a process that exits while one of them is about to
    enter Python is aborted. Both uses refer to this object, so after its deletion they no longer call Python.
    """

    closed = False

    def __init__(self, stream: BinaryIO, bad: list[pacsv.InvalidRow], left: threading.Event) -> None:
        # Not a method, because a failed method's frame would stay in the error's traceback and keep this object alive.
        self.read = lambda size: b"" if left.is_set() else stream.read(size)
        self._bad = bad

    def remember(self, invalid: pacsv.InvalidRow) -> str:
        self._bad.append(invalid)
        return "error"

    def close(self) -> None:
        """Do nothing; the caller that opened the stream closes it."""


def _header_lines(uri: str, text: io.TextIOWrapper) -> Iterator[str]:
    taken = 0
    while line := text.readline(ROW_BYTES):
        taken += len(line)
        if taken >= ROW_BYTES:
            raise UsageError(f"{uri}: no CSV header in its first {ROW_BYTES:,} bytes")
        yield line
