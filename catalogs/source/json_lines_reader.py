"""JSON Lines catalogs: a JSON object a line, read block by block."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as pajson

from segmint.catalogs.schema import REQUIRED, SOURCE
from segmint.catalogs.source.conform import (
    EXPECTED,
    OnProblem,
    Problem,
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

_PARSED_BYTES = 1 << 20  # by one thread at a time; a block with a longer row takes the slow way


def read_json_lines(catalog: Location, on_problem: OnProblem = refuse) -> Iterator[pa.RecordBatch]:
    """The rows of the JSON Lines catalog at `catalog`, in order; see `segmint.catalogs.source.readers.read_catalog`."""
    row = 1
    for block, rows in json_blocks(catalog):
        columns = _parse_fast(block, rows)
        if columns is None:
            columns = _parse_slowly(catalog.uri, split_lines(block), row, on_problem)
        yield conform(catalog.uri, columns, rows, row, on_problem)
        row += rows


def json_blocks(catalog: Location) -> Iterator[tuple[bytes, int]]:
    """A JSON Lines catalog in blocks of whole lines, each with its number of rows: lines that are not blank.

    Raises `UsageError` where the first rows have no required columns, or a row is too long.
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
    """The lines of a block but for blank ones: a row each."""
    return [line for line in block.splitlines() if line.strip()]


def _measure_lines(block: bytes) -> tuple[int, int]:
    """How many lines a block has that are not blank, and the bytes of the longest, its end included or not."""
    if b"\r" not in block:
        data = np.frombuffer(block, np.uint8)
        ends = np.flatnonzero(data == ord("\n"))
        borders = np.concatenate([[0], ends + 1] if block.endswith(b"\n") else [[0], ends + 1, [len(block)]])
        # Where each line begins as an object does, none is blank, and no line has to be looked at by itself.
        if (data[borders[:-1]] == ord("{")).all():
            return len(borders) - 1, int(np.diff(borders).max())
    lines = split_lines(block)
    return len(lines), max(map(len, lines), default=0)


def _require_keys(uri: str, lines: list[bytes]) -> None:
    """A row may leave a key out; a required one that no row of the first block has is a missing column."""
    seen: dict[str, None] = {}
    for row, line in enumerate(lines, 1):
        seen |= dict.fromkeys(_object(uri, line, row))
        if all(name in seen for name in REQUIRED):
            return
    require_columns(uri, list(seen))


def _parse_fast(block: bytes, rows: int) -> dict[str, pa.Array] | None:
    """Columns of a block of whole lines; None when something in it needs to be named."""
    try:
        table = pajson.read_json(
            pa.BufferReader(block),
            read_options=pajson.ReadOptions(use_threads=True, block_size=min(len(block) + 1, _PARSED_BYTES)),
            parse_options=pajson.ParseOptions(explicit_schema=_SCHEMA, unexpected_field_behavior="ignore"),
        )
    except pa.ArrowInvalid:
        return None
    if table.num_rows != rows:  # several objects in a line
        return None
    return {name: table.column(name).combine_chunks() for name in table.column_names}


def _parse_slowly(uri: str, lines: list[bytes], row: int, on_problem: OnProblem) -> dict[str, pa.Array]:
    columns: dict[str, list[Any]] = {field.name: [] for field in _SCHEMA}
    for offset, line in enumerate(lines):
        record = _object(uri, line, row + offset)
        for field in _SCHEMA:
            value = record.get(field.name)
            kind = bool if pa.types.is_boolean(field.type) else str
            if value is not None and not (isinstance(value, kind) and _is_unicode(value)):
                expected = EXPECTED.get(field.name, "text")
                on_problem(Problem(uri, row + offset, field.name, shown(value), expected))
                value = None
            columns[field.name].append(value)
    return {field.name: pa.array(columns[field.name], field.type) for field in _SCHEMA}


def _object(uri: str, line: bytes, row: int) -> dict[str, Any]:
    return json_object(line, f"{uri}, row {row}", "a JSON object a line")


def _is_unicode(value: object) -> bool:
    try:
        return not isinstance(value, str) or bool(value.encode()) or not value
    except UnicodeEncodeError:  # half of a surrogate pair, which no file may hold
        return False
