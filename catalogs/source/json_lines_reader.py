"""Reader of JSON Lines catalogs, block by block: one JSON object per line."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
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
from segmint.catalogs.source.text_blocks import BLOCK_BYTES, ROW_BYTES, line_blocks, open_text
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location

_SCHEMA = pa.schema([pa.field(f.name, f.type if pa.types.is_boolean(f.type) else pa.string()) for f in SOURCE])

_PARSED_BYTES = 1 << 20  # per thread; a block with a longer row is parsed the slow way


def read_json_lines(catalog: Location, on_problem: OnProblem = refuse) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a JSON Lines catalog in order; see `segmint.catalogs.source.readers.read_catalog`."""
    row = 1
    for block, rows in json_blocks(catalog):
        columns = _parse_fast(block, rows)
        if columns is None:
            columns = _parse_slowly(catalog.uri, split_lines(block), row, on_problem)
        yield conform(catalog.uri, columns, rows, row, on_problem)
        row += rows


def json_blocks(catalog: Location) -> Iterator[tuple[bytes, int]]:
    """Yield a JSON Lines catalog in blocks of whole lines, each with its number of rows (nonblank lines).

    Raises `UsageError` if the first rows lack a required column, or a row is too long.
    """
    rows = 0
    with open_text(catalog) as stream:
        for block in line_blocks(stream):
            count, longest = _measure_lines(block)
            if len(block) > BLOCK_BYTES + ROW_BYTES or longest > ROW_BYTES:
                raise UsageError(f"{catalog}: one of the rows up to {rows + count} is longer than {ROW_BYTES:,} bytes")
            if count:
                if rows == 0:
                    _require_keys(catalog.uri, split_lines(block))
                yield block, count
            rows += count


def split_lines(block: bytes) -> list[bytes]:
    """Split a block into its nonblank lines, one row each."""
    return [line for line in block.splitlines() if line.strip()]


def _measure_lines(block: bytes) -> tuple[int, int]:
    """Return the number of a block's nonblank lines, and the bytes of the longest, with or without its line end."""
    if b"\r" not in block:
        data = np.frombuffer(block, np.uint8)
        ends = np.flatnonzero(data == ord("\n"))
        borders = np.concatenate([[0], ends + 1] if block.endswith(b"\n") else [[0], ends + 1, [len(block)]])
        # If every line starts like an object, none is blank, and there is no need to split the lines.
        if (data[borders[:-1]] == ord("{")).all():
            return len(borders) - 1, int(np.diff(borders).max())
    lines = split_lines(block)
    return len(lines), max(map(len, lines), default=0)


def _require_keys(uri: str, lines: list[bytes]) -> None:
    """Check required columns; a row may omit a key, but one in no row of the first block is a missing column."""
    seen: dict[str, None] = {}
    for row, line in enumerate(lines, 1):
        seen |= dict.fromkeys(json_row(uri, line, row))
        if all(name in seen for name in REQUIRED):
            return
    require_columns(uri, list(seen))


def _parse_fast(block: bytes, rows: int) -> dict[str, pa.Array] | None:
    """Parse a block of whole lines into columns; None if something in it must be reported."""
    try:
        table = pajson.read_json(
            pa.BufferReader(block),
            read_options=pajson.ReadOptions(use_threads=True, block_size=min(len(block) + 1, _PARSED_BYTES)),
            parse_options=pajson.ParseOptions(explicit_schema=_SCHEMA, unexpected_field_behavior="ignore"),
        )
    except pa.ArrowInvalid:
        return None
    if table.num_rows != rows:  # several objects on one line
        return None
    return {name: table.column(name).combine_chunks() for name in table.column_names}


def _parse_slowly(uri: str, lines: list[bytes], row: int, on_problem: OnProblem) -> dict[str, pa.Array]:
    columns: dict[str, list[Any]] = {field.name: [] for field in _SCHEMA}
    for offset, line in enumerate(lines):
        record = json_row(uri, line, row + offset)
        for field in _SCHEMA:
            value = record.get(field.name)
            kind = bool if pa.types.is_boolean(field.type) else str
            if value is not None and not (isinstance(value, kind) and _is_unicode(value)):
                expected = EXPECTED.get(field.name, "text")
                on_problem(InvalidValue(uri, row + offset, field.name, shown(value), expected))
                value = None
            columns[field.name].append(value)
    return {field.name: pa.array(columns[field.name], field.type) for field in _SCHEMA}


def json_row(uri: str, line: bytes, row: int) -> dict[str, Any]:
    """Parse a line; raises `UsageError`, with the number of its row, if it is not one JSON object."""
    return json_object(line, f"{uri}, row {row}", "one JSON object per line")


def _is_unicode(value: object) -> bool:
    try:
        return not isinstance(value, str) or bool(value.encode()) or not value
    except UnicodeEncodeError:  # a lone surrogate, which UTF-8 can't encode
        return False
