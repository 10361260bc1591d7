"""Readers of CSV and JSON Lines catalogs, plain or gzip-compressed, block by block."""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Collection, Container, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.json as pajson

from segmint.catalogs.schema import REQUIRED, SOURCE
from segmint.catalogs.source.conform import (
    EXPECTED,
    InvalidValue,
    OnProblem,
    conform,
    json_object,
    refuse,
    require_columns,
    shown,
)
from segmint.infra.errors import UsageError
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
_SCHEMA = pa.schema([pa.field(f.name, f.type if pa.types.is_boolean(f.type) else pa.string()) for f in SOURCE])
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


def read_csv(catalog: Location, on_problem: OnProblem = refuse, own: Collection[str] = ()) -> Iterator[pa.RecordBatch]:
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


def read_json_lines(
    catalog: Location, on_problem: OnProblem = refuse, own: Collection[str] = ()
) -> Iterator[pa.RecordBatch]:
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


def json_row(uri: str, line: bytes, row: int) -> dict[str, Any]:
    """Parse a line. Raises `UsageError` with the number of the row if the line isn't exactly one JSON object."""
    return json_object(line, f"{uri}, row {row}", "one JSON object per line")


def _is_unicode(value: object) -> bool:
    try:
        return not isinstance(value, str) or bool(value.encode()) or not value
    except UnicodeEncodeError:  # a lone surrogate, which UTF-8 can't encode
        return False
