"""Readers of source catalogs (Parquet, JSON Lines, or CSV) as a stream of `SOURCE` batches.

Only one block of a file is in memory at a time. Messages count rows from 1, without the header and blank lines.

Readers of CSV and JSON Lines catalogs, plain or gzip-compressed, block by block.

Reader of Parquet catalogs in small batches.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Collection, Container, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq

from segmint.catalogs.parquet import REQUIRED, SOURCE, Row
from segmint.catalogs.source.conform import (
    EXPECTED,
    InvalidValue,
    OnProblem,
    conform,
    is_text,
    json_object,
    refuse,
    require_columns,
    require_types,
    shown,
)
from segmint.catalogs.source.files import CatalogFile, catalog_files, catalog_format
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.storage.location import Location

_MOST_COLUMNS = 10_000  # Arrow's reader uses 2 KB per column before the first row

BLOCK_BYTES = 4 << 20
"""Number of bytes of a text catalog that are parsed at a time."""

ROW_BYTES = 4 << 20
"""Maximum size in bytes of a row in a text catalog. A longer row is not from a catalog, and could fill the memory."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_QUOTED = re.compile(rb'"[^"]*+(?:""[^"]*+)*+"')
_VALUES = re.compile(rb'[^"]*+(?:(?<![^,\r\n])' + _QUOTED.pattern + rb'(?=[,\r\n])[^"]*+)*+')

_OTHER_CASE = re.compile(rb'"(?!(?:%b)")(?i:%b)"\s*:' % (2 * ("|".join(SOURCE.names).encode(),)))
_SCHEMA = pa.schema([(f.name, f.type if pa.types.is_boolean(f.type) else pa.string()) for f in SOURCE])
_PROMPTS = b'"prompts"'  # its values are objects, which `_parse_fast` can't turn into text

_PARSED_BYTES = 1 << 20  # per thread; a block with a longer row is parsed the slow way


def open_text(file: Location) -> AbstractContextManager[BinaryIO]:
    """Open a stream of a catalog's bytes, which are decompressed if the file's name ends in `.gz`.

    Raises `UsageError` for invalid gzip.
    """
    return _unpacked(file) if file.uri.lower().endswith(".gz") else file.open()


def line_blocks(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the stream without a byte-order mark, in blocks of whole lines that contain about `BLOCK_BYTES` bytes.

    If a line is too long for a row, reading stops within the line.
    """
    rest = stream.read(3)
    rest = b"" if rest == _BYTE_ORDER_MARK else rest
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


def read_csv(catalog: Location, on_problem: OnProblem, own: Collection[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a CSV catalog in order, like `segmint.catalogs.source.readers.read_catalog`."""
    row = 1
    for batch in csv_batches(catalog, [name for name in SOURCE.names if name not in own]):
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        yield conform(catalog.uri, columns, batch.num_rows, row, on_problem)
        row += batch.num_rows


def csv_batches(catalog: Location, only: Container[str] | None = SOURCE.names) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a CSV catalog as text, with only the columns in `only`, or with all columns if that is None.

    Batch sizes don't depend on these columns.
    """
    names: list[str] | None = None
    with open_text(catalog) as stream:
        for block, line in row_blocks(catalog, stream):
            has_header = names is None
            if not block.strip(b"\r\n"):
                if has_header and len(block) >= BLOCK_BYTES:
                    break
                continue
            if names is None:
                names = _header(catalog, block)
            options = pacsv.ConvertOptions(
                column_types={name: pa.string() for name in names},
                include_columns=[name for name in names if only is None or name in only],
                null_values=[""],
                strings_can_be_null=True,
            )
            yield _parse_csv(catalog, block, line, None if has_header else names, options)
    if names is None:
        require_columns(catalog.uri, [])


def _header(catalog: Location, block: bytes) -> list[str]:
    text = io.TextIOWrapper(io.BytesIO(block), encoding="utf-8", newline="")
    try:
        names = next((line for line in csv.reader(text) if line), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{catalog}: the header is not CSV in UTF-8: {error}") from error
    if len(names) > _MOST_COLUMNS:
        raise UsageError(f"{catalog}: the header has {len(names):,} columns; expected at most {_MOST_COLUMNS:,}")
    require_columns(catalog.uri, names)
    return names


def _parse_csv(
    catalog: Location, block: bytes, line: int, header: Sequence[str] | None, options: pacsv.ConvertOptions
) -> pa.RecordBatch:
    """Parse whole rows that begin in a line, counted from 1. If `header` is None, the first of them is the header."""
    bad: list[pacsv.InvalidRow] = []

    def remember(row: pacsv.InvalidRow) -> str:
        bad.append(row)
        return "error"

    try:
        table = pacsv.read_csv(
            pa.BufferReader(block),
            read_options=pacsv.ReadOptions(use_threads=False, block_size=len(block), column_names=header),
            parse_options=pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=remember),
            convert_options=options,
        )
    except pa.ArrowInvalid as error:
        if bad:
            raise UsageError(
                f"{catalog}, line {line - 1 + bad[0].number}: found {bad[0].actual_columns} values; "
                f"expected {bad[0].expected_columns}, as in the header: {shown(bad[0].text)}"
            ) from error
        raise UsageError(f"{catalog}: cannot be read as CSV from line {line}: {error}") from error
    columns = [column.combine_chunks() for column in table.columns]
    return pa.RecordBatch.from_arrays(columns, schema=table.schema)


def row_blocks(catalog: Location, stream: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield an open CSV file in blocks of whole rows, each with the line in which it begins, counted from 1.

    Raises `UsageError` for a quote that breaks the rules of RFC 4180. Arrow would accept it, and rows might disappear
    into a value.
    """
    rest, line, block = b"", 1, stream.read(BLOCK_BYTES).removeprefix(_BYTE_ORDER_MARK)
    while block or rest:
        text = rest + (block or b"\n")
        values = _VALUES.match(text)
        place = values.end() if values else 0
        end = _last_row_end(text, place)
        if end:
            yield text[:end], line
        line += _line_ends(text[:end])
        rest = text[end:]
        if place < len(text):
            _check_quote(catalog, line + _line_ends(text[end:place]), text, place, is_last=not block)
        if len(rest) > ROW_BYTES:
            why = f"a row is longer than {ROW_BYTES:,} bytes, or a quote is never closed"
            raise UsageError(f"{catalog}, line {line}: {why}")
        block = stream.read(BLOCK_BYTES)


def _last_row_end(text: bytes, place: int) -> int:
    """Return the end of the last row before `place`, which is outside of all quotes, or 0."""
    line_end = b"\n"
    if line_end not in text:
        line_end = b"\r"
    end = text.rfind(line_end, 0, place) + 1
    quotes = text.count(b'"', end, place)
    while quotes % 2:  # inside a value
        start = text.rfind(line_end, 0, end - 1) + 1
        quotes += text.count(b'"', start, end)
        end = start
    return end


def _check_quote(catalog: Location, line: int, text: bytes, place: int, is_last: bool) -> None:
    """Raise `UsageError` if the quote at a place in `text`, which isn't part of a whole value, breaks the rules."""
    rest = text[place:]
    value = _QUOTED.match(rest)
    is_inside = place > 0 and text[place - 1] not in b",\r\n"
    if is_inside or (value is not None and value[0] != rest):
        why = f"a quote is inside a value, near {shown(rest[:20].decode(errors='replace'))}"
    elif is_last:
        why = "a quote is never closed"
    else:
        return
    raise UsageError(
        f"{catalog}, line {line}: {why}. Put quotes around each value that contains a quote, comma, or line break, and "
        "double each quote inside it"
    )


def _line_ends(text: bytes) -> int:
    return text.count(b"\n") + text.count(b"\r") - text.count(b"\r\n")


def read_json_lines(catalog: Location, on_problem: OnProblem, own: Collection[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a JSON Lines catalog in order, like `segmint.catalogs.source.readers.read_catalog`."""
    row = 1
    schema = pa.schema(field for field in _SCHEMA if field.name not in own)
    for block, rows in json_blocks(catalog):
        has_prompts = "prompts" not in own and _PROMPTS in block
        columns = None if has_prompts else _parse_fast(block, rows, schema)
        if columns is None:
            columns = _parse_slowly(catalog.uri, split_lines(block), row, schema, on_problem)
        yield conform(catalog.uri, columns, rows, row, on_problem)
        row += rows


def json_blocks(catalog: Location) -> Iterator[tuple[bytes, int]]:
    """Yield a JSON Lines catalog in blocks of whole lines, each with its number of rows.

    Blank lines don't count as rows. Raises `UsageError` if no row in the first block has a required column, or if a row
    is too long.
    """
    rows = 0
    with open_text(catalog) as stream:
        for block in line_blocks(stream):
            lines = split_lines(block)
            count = len(lines)
            if len(block) > BLOCK_BYTES + ROW_BYTES or any(len(line) > ROW_BYTES for line in lines):
                raise UsageError(f"{catalog}: one of the rows up to {rows + count} is longer than {ROW_BYTES:,} bytes")
            if count:
                if rows == 0:
                    _require_keys(catalog.uri, lines)
                yield block, count
            rows += count


def split_lines(block: bytes) -> list[bytes]:
    """Split a block into its nonblank lines. Each of them is a row."""
    return [line for line in block.splitlines() if line.strip()]


def _require_keys(uri: str, lines: list[bytes]) -> None:
    """Check that required columns exist.

    A single row may omit a key, but at least one row of the first block must have it.
    """
    seen: dict[str, None] = {}
    for row, line in enumerate(lines, 1):
        seen |= dict.fromkeys(json_row(uri, line, row))
        if all(name in seen for name in REQUIRED):
            return
    require_columns(uri, list(seen))


def _parse_fast(block: bytes, rows: int, schema: pa.Schema) -> dict[str, pa.Array] | None:
    """Parse a block of whole lines into columns. Returns None if the block contains something to report."""
    if _OTHER_CASE.search(block):
        return None
    try:
        table = pajson.read_json(
            pa.BufferReader(block),
            read_options=pajson.ReadOptions(use_threads=True, block_size=min(len(block) + 1, _PARSED_BYTES)),
            parse_options=pajson.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    except pa.ArrowInvalid:
        return None
    if table.num_rows != rows:  # several objects on one line
        return None
    return {name: table.column(name).combine_chunks() for name in table.column_names}


def _parse_slowly(
    uri: str, lines: list[bytes], row: int, schema: pa.Schema, on_problem: OnProblem
) -> dict[str, pa.Array]:
    columns: dict[str, list[Any]] = {field.name: [] for field in schema}
    for offset, line in enumerate(lines):
        record = json_row(uri, line, row + offset)
        for field in schema:
            value = record.get(field.name)
            if field.name == "prompts" and not isinstance(value, str | None):
                value = json.dumps(value)
            kind = bool if pa.types.is_boolean(field.type) else str
            if value is not None and not (isinstance(value, kind) and _is_unicode(value)):
                expected = EXPECTED.get(field.name, "text")
                on_problem(InvalidValue(uri, row + offset, field.name, shown(value), expected))
                value = None
            columns[field.name].append(value)
    return {field.name: pa.array(columns[field.name], field.type) for field in schema}


def json_row(uri: str, line: bytes, row: int) -> Row:
    """Parse a line. Raises `UsageError` with the number of the row if the line isn't exactly one JSON object."""
    return json_object(line, f"{uri}, row {row}", "one JSON object per line")


def _is_unicode(value: object) -> bool:
    try:
        return not isinstance(value, str) or bool(value.encode()) or not value
    except UnicodeEncodeError:  # a lone surrogate, which UTF-8 can't encode
        return False


BATCH_ROWS = 131_072
"""Number of rows that are read at a time. Each read copies all texts that have been read from the row group so far."""

_PROMPTED_ROWS = 8192  # their prompts may be a hundred times as large as all other values

_PIECE_BYTES = 64 << 20


def read_parquet(file: CatalogFile, on_problem: OnProblem, own: Collection[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a Parquet file in order, like `segmint.catalogs.source.readers.read_catalog`."""
    rows = 0
    with open_parquet(file) as opened:
        groups = range(opened.metadata.num_row_groups)
        for batch in parquet_batches(file, opened, groups, on_problem, own=own):
            rows += batch.num_rows
            yield batch
        if rows != opened.metadata.num_rows:
            raise UsageError(
                f"{file.location}: the file is damaged: its footer says {opened.metadata.num_rows} rows, but {rows} "
                "were read"
            )


@contextmanager
def open_parquet(catalog_file: CatalogFile) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file of a catalog and read its footer.

    Raises `UsageError` if the file is not a Parquet catalog, or if it contains a column of its folders.
    """
    catalog = catalog_file.location
    with catalog.open() as stream:
        with _damage(f"{catalog} cannot be read as Parquet"):
            # A small buffer without prebuffering makes Arrow read even a large row group in pieces.
            file = pq.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False)
            schema, metadata = file.schema_arrow, file.metadata
            groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            if min(groups, default=0) < 0 or sum(groups) != metadata.num_rows:
                raise ValueError(f"its footer says {metadata.num_rows} rows, but its row groups {sum(groups)}")
        require_columns(catalog.uri, [*schema.names, *catalog_file.columns])
        # A few bytes of the file can repeat a long text many times. Dictionaries keep such a text in memory only once.
        texts = [field.name for field in schema if field.name in SOURCE.names and is_text(field.type)]
        with _damage(f"{catalog} cannot be read as Parquet"):
            file = pq.ParquetFile(
                stream,
                metadata=metadata,
                read_dictionary=texts,
                buffer_size=1 << 20,
                pre_buffer=False,
                coerce_int96_timestamp_unit="us",  # with nanoseconds, the year 9999 would become another one
            )
        yield file


@contextmanager
def _damage(what: str) -> Iterator[None]:
    """Convert any error that Arrow raises for a damaged file to `UsageError`."""
    try:
        yield
    except SegmintError:
        raise  # raised by the store
    except Exception as error:
        raise UsageError(f"{what}: {' '.join(str(error).split())}. Write the catalog again") from error


def parquet_batches(
    file: CatalogFile,
    opened: pq.ParquetFile,
    groups: Sequence[int],
    on_problem: OnProblem,
    first_row: int = 1,
    own: Collection[str] = (),
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of some row groups in order, as batches of `SOURCE`. `first_row` is the number of the first row.

    `own` is as in `read_catalog`. Raises `UsageError` if a column has the wrong type.
    """
    uri, row = file.location.uri, first_row
    names = require_types(uri, opened.schema_arrow, own)
    batch_rows = _PROMPTED_ROWS if "prompts" in names else BATCH_ROWS
    batches = opened.iter_batches(batch_size=batch_rows, row_groups=list(groups), columns=names)
    while True:
        with _damage(f"{uri}: the file is damaged after row {row - 1}"):
            batch = next(batches, None)
            pieces = [] if batch is None else list(_pieces(batch))
        if batch is None:
            return
        for piece in pieces:
            columns = dict(zip(piece.schema.names, piece.columns, strict=True))
            for name, value in file.columns.items():
                if name not in own:
                    columns[name] = repeated(value, piece.num_rows)
            yield conform(uri, columns, piece.num_rows, row, on_problem)
            row += piece.num_rows


def repeated(value: str | None, rows: int) -> pa.Array:
    """Return a text column with the same value in all rows."""
    return pa.repeat(pa.scalar(value, pa.string()), rows)


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Split a batch so that no slice exceeds `_PIECE_BYTES` when its dictionaries are decoded.

    A single row can be larger.
    """
    ends = np.zeros(batch.num_rows, np.int64)
    for column in batch.columns:
        if pa.types.is_dictionary(column.type):
            lengths = pc.binary_length(column.dictionary).take(column.indices).fill_null(0)
            ends += lengths.to_numpy(zero_copy_only=False)
    ends = np.cumsum(ends)
    start, taken = 0, 0
    while start < batch.num_rows:
        stop = max(start + 1, int(np.searchsorted(ends, taken + _PIECE_BYTES, side="right")))
        yield batch.slice(start, stop - start)
        start, taken = stop, int(ends[stop - 1])


def read_catalog(
    catalog: Location, on_problem: OnProblem = refuse, own: Collection[str] = ()
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a catalog in order, as batches of `SOURCE`.

    Raises `UsageError` if a required column is missing, if a column has the wrong type, if a value is invalid, or if
    the file's content doesn't match its extension. The message names the file, column, and row. If you pass
    `on_problem`, it receives each invalid value instead. If `on_problem` returns, the value counts as missing. Columns
    in `own` may be the user's custom columns, so they aren't read, and their values count as missing.
    """
    kind = catalog_format(catalog.uri)
    if kind == "Parquet":
        return _read_files(catalog, on_problem, own)
    if kind == "CSV":
        return read_csv(catalog, on_problem, own)
    return read_json_lines(catalog, on_problem, own)


def _read_files(catalog: Location, on_problem: OnProblem, own: Collection[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of all Parquet files of a catalog."""
    rows = 0
    for file in catalog_files(catalog):
        for batch in read_parquet(file, _in_catalog(catalog, file, rows, on_problem), own):
            rows += batch.num_rows
            yield batch


class RowGroup(NamedTuple):
    """Row group of a Parquet catalog, whose rows have the ordinals [start, stop)."""

    file: CatalogFile
    opened: pq.ParquetFile
    number: int  # in its file
    start: int
    stop: int
    batches: Iterator[pa.RecordBatch]  # of `SOURCE`, read when you iterate over them


def row_groups(catalog: Location, own: Collection[str] = ()) -> Iterator[RowGroup]:
    """Yield the row groups of all Parquet files of a catalog. Raises the errors of `read_catalog`."""
    start = 0
    for file in catalog_files(catalog):
        before = start
        with open_parquet(file) as opened:
            for index in range(opened.metadata.num_row_groups):
                stop = start + opened.metadata.row_group(index).num_rows
                on_problem = _in_catalog(catalog, file, before, refuse)
                batches = parquet_batches(file, opened, [index], on_problem, start - before + 1, own)
                yield RowGroup(file, opened, index, start, stop, batches)
                start = stop


def _in_catalog(catalog: Location, file: CatalogFile, before: int, on_problem: OnProblem) -> OnProblem:
    """Return a callback for a file's problems that counts rows in the whole catalog, `before` of them in other files.

    The message also contains the row in the file.
    """

    def report(problem: InvalidValue) -> None:
        where = f"{catalog} (row {problem.row} of {file.name})"
        on_problem(replace(problem, catalog=where, row=before + problem.row))

    return report if file.name else on_problem
