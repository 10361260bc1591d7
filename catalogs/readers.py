"""Catalogs as people have them, Parquet, JSON Lines or CSV, read as a stream of `SOURCE` batches.

No more than one block of the file is in memory at a time. A row number in a message counts rows from 1,
without a header and without blank lines.
"""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq

from catalogs.conform import (
    EXPECTED,
    OnProblem,
    Problem,
    conform,
    refuse,
    require_columns,
    require_types,
    shown,
)
from catalogs.schema import REQUIRED, SOURCE
from infra.errors import UsageError
from infra.storage import Storage

BLOCK_BYTES = 4 << 20
"""How much of a text catalog is parsed at a time."""

BATCH_ROWS = 16_384
"""How many rows of a Parquet catalog are read at a time."""

FORMATS = {
    "Parquet": (".parquet",),
    "JSON Lines": (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"),
    "CSV": (".csv", ".csv.gz"),
}
"""The formats of a catalog, each with the endings that say so."""

_JSON_SCHEMA = pa.schema([pa.field(f.name, f.type if pa.types.is_boolean(f.type) else pa.string()) for f in SOURCE])


def catalog_format(uri: str) -> str:
    """The format that a catalog's ending stands for, a key of `FORMATS`; raises `UsageError` for another."""
    for name, endings in FORMATS.items():
        if uri.lower().endswith(endings):
            return name
    known = ", ".join(ending for endings in FORMATS.values() for ending in endings)
    raise UsageError(f"{uri}: a catalog's name must end in one of {known}")


def read_catalog(uri: str, storage: Storage, on_problem: OnProblem = refuse) -> Iterator[pa.RecordBatch]:
    """The rows of the catalog at `uri`, in order, as batches of `SOURCE`.

    A missing required column, a column of a wrong type, a value that cannot be used and a file that is not
    what its ending says raise `UsageError`, which names the file, column and row. A value that cannot be used
    goes to `on_problem` first: when that returns, the value is read as absent.
    """
    read: Callable[[str, Storage, OnProblem], Iterator[pa.RecordBatch]]
    read = {"Parquet": _read_parquet, "JSON Lines": _read_json_lines, "CSV": _read_csv}[catalog_format(uri)]
    return read(uri, storage, on_problem)


def _read_parquet(uri: str, storage: Storage, on_problem: OnProblem) -> Iterator[pa.RecordBatch]:
    with open_parquet(uri, storage) as file:
        yield from parquet_batches(uri, file, range(file.metadata.num_row_groups), on_problem)


@contextmanager
def open_parquet(uri: str, storage: Storage) -> Iterator[pq.ParquetFile]:
    """A Parquet catalog of which only the footer has been read.

    Raises `UsageError` where it is no Parquet, or its columns are not a catalog's.
    """
    with storage.open(uri) as stream:
        try:
            # Without pre-buffering and with a small buffer, a row group of any size is read piece by piece.
            file = pq.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False)
        except pa.ArrowInvalid as error:
            raise UsageError(f"{uri} is no Parquet file that can be read: {error}") from error
        require_columns(uri, list(file.schema_arrow.names))
        require_types(uri, file.schema_arrow)
        yield file


def parquet_batches(
    uri: str, file: pq.ParquetFile, groups: Sequence[int], on_problem: OnProblem = refuse, first_row: int = 1
) -> Iterator[pa.RecordBatch]:
    """The rows of some row groups, in order, as batches of `SOURCE`; `first_row` is the number of their first row."""
    row = first_row
    names = [name for name in file.schema_arrow.names if name in SOURCE.names]
    batches = file.iter_batches(batch_size=BATCH_ROWS, row_groups=list(groups), columns=names)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowInvalid, OSError) as error:
            raise UsageError(f"{uri}: the file is damaged after row {row - 1}: {error}") from error
        if batch is None:
            return
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        yield conform(uri, columns, batch.num_rows, row, on_problem)
        row += batch.num_rows


def _read_json_lines(uri: str, storage: Storage, on_problem: OnProblem) -> Iterator[pa.RecordBatch]:
    row = 1
    for block, lines in json_blocks(uri, storage):
        if row == 1:
            require_keys(uri, lines)
        columns = _parse_json_fast(block, len(lines))
        if columns is None:
            columns = _parse_json_slowly(uri, lines, row, on_problem)
        yield conform(uri, columns, len(lines), row, on_problem)
        row += len(lines)


def json_blocks(uri: str, storage: Storage) -> Iterator[tuple[bytes, list[bytes]]]:
    """A JSON Lines catalog in blocks of whole lines, each with its lines but for blank ones: a row each."""
    with _open_text(uri, storage) as stream:
        for block in _lines(stream):
            lines = [line for line in block.splitlines() if line.strip()]
            if lines:
                yield block, lines


def require_keys(uri: str, lines: list[bytes]) -> None:
    """A row may leave a key out; a required one that no row of the first block has is a missing column."""
    seen: dict[str, None] = {}
    for row, line in enumerate(lines, 1):
        seen |= dict.fromkeys(_json_object(uri, line, row))
        if all(name in seen for name in REQUIRED):
            return
    require_columns(uri, list(seen))


def _parse_json_fast(block: bytes, rows: int) -> dict[str, pa.Array] | None:
    """Columns of a block of whole lines; None when something in it needs to be named."""
    try:
        table = pajson.read_json(
            io.BytesIO(block),
            read_options=pajson.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=pajson.ParseOptions(explicit_schema=_JSON_SCHEMA, unexpected_field_behavior="ignore"),
        )
    except pa.ArrowInvalid:
        return None
    if table.num_rows != rows:  # several objects in a line
        return None
    return {name: table.column(name).combine_chunks() for name in table.column_names}


def _parse_json_slowly(uri: str, lines: list[bytes], row: int, on_problem: OnProblem) -> dict[str, pa.Array]:
    columns: dict[str, list[Any]] = {field.name: [] for field in _JSON_SCHEMA}
    for offset, line in enumerate(lines):
        record = _json_object(uri, line, row + offset)
        for field in _JSON_SCHEMA:
            value = record.get(field.name)
            kind = bool if pa.types.is_boolean(field.type) else str
            if value is not None and not (isinstance(value, kind) and _is_unicode(value)):
                expected = EXPECTED.get(field.name, "text")
                on_problem(Problem(uri, row + offset, field.name, shown(value), expected))
                value = None
            columns[field.name].append(value)
    return {field.name: pa.array(columns[field.name], field.type) for field in _JSON_SCHEMA}


def _json_object(uri: str, line: bytes, row: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{uri}, row {row}: the line is no JSON ({error}): {shown(line[:60])}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{uri}, row {row}: found {shown(value)}; expected a JSON object a line")
    return value


def _is_unicode(value: object) -> bool:
    try:
        return not isinstance(value, str) or bool(value.encode()) or not value
    except UnicodeEncodeError:  # half of a surrogate pair, which no file may hold
        return False


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """The stream in blocks of about `BLOCK_BYTES` that end where a line ends; without a byte-order mark."""
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
    if rest:
        yield rest


def _read_csv(uri: str, storage: Storage, on_problem: OnProblem) -> Iterator[pa.RecordBatch]:
    row = 1
    for batch in csv_batches(uri, storage):
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        yield conform(uri, columns, batch.num_rows, row, on_problem)
        row += batch.num_rows


def csv_batches(uri: str, storage: Storage, only: Sequence[str] = SOURCE.names) -> Iterator[pa.RecordBatch]:
    """The rows of a CSV catalog as text, those columns alone that are named in `only`, which decide no row's end."""
    with _open_text(uri, storage) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            names = next((line for line in csv.reader(text) if line), [])
        except (UnicodeDecodeError, csv.Error) as error:
            raise UsageError(f"{uri}: the header is no CSV in UTF-8: {error}") from error
    require_columns(uri, names)
    bad: list[pacsv.InvalidRow] = []

    def remember(invalid: pacsv.InvalidRow) -> str:
        bad.append(invalid)
        return "error"

    rows = 0
    with _open_text(uri, storage) as stream:
        try:
            reader = pacsv.open_csv(
                stream,
                read_options=pacsv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
                parse_options=pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=remember),
                convert_options=pacsv.ConvertOptions(
                    column_types={name: pa.string() for name in names},
                    include_columns=[name for name in names if name in only],
                    null_values=[""],
                    strings_can_be_null=True,
                ),
            )
            for batch in reader:
                yield batch
                rows += batch.num_rows
        except pa.ArrowInvalid as error:
            if bad:
                raise UsageError(
                    f"{uri}, line {bad[0].number}: found {bad[0].actual_columns} values; "
                    f"expected {bad[0].expected_columns}, as in the header: {shown(bad[0].text)}"
                ) from error
            if "Empty CSV" in str(error):
                return
            raise UsageError(f"{uri}: no CSV that can be read after row {rows}: {error}") from error


def _open_text(uri: str, storage: Storage) -> AbstractContextManager[BinaryIO]:
    return _unpacked(uri, storage) if uri.lower().endswith(".gz") else storage.open(uri)


@contextmanager
def _unpacked(uri: str, storage: Storage) -> Iterator[BinaryIO]:
    with storage.open(uri) as packed, gzip.open(packed) as stream:
        try:
            yield cast(BinaryIO, stream)
        except (gzip.BadGzipFile, EOFError) as error:
            raise UsageError(f"{uri} is no gzip file that can be read: {error}") from error
