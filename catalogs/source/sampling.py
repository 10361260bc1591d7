"""Counting the rows of a source catalog, and reading an evenly spread sample without keeping the other rows.

Reader of a source catalog with all its columns, including those that segmint doesn't use.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import pyarrow as pa

from segmint.catalogs.parquet import ADDED, JSON_TEXT, REQUIRED, SOURCE, STAGED, Row, together
from segmint.catalogs.source.files import CatalogFile, catalog_files, catalog_format, unchanged
from segmint.catalogs.source.normalize import number_rows
from segmint.catalogs.source.readers import (
    csv_batches,
    json_blocks,
    json_row,
    open_parquet,
    read_catalog,
    repeated,
    row_groups,
    split_lines,
)
from segmint.infra.errors import UsageError
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.location import Location

_THREADS = 16

COUNTED_BY = {
    "Parquet": "its footer",
    "JSON Lines": "its non-blank lines",
    "CSV": "its parsed records, because a quoted value may contain line breaks",
}
"""The part of a catalog that `count_rows` reads, by format. In each format, the count is exact."""


def count_rows(catalog: Location) -> int:
    """Return the exact number of rows in a catalog.

    For Parquet, this reads only the footers. For text, it reads the file once, in blocks, and doesn't check values.
    Raises `UsageError` if the file is not a catalog or lacks required columns.
    """
    kind = catalog_format(catalog.uri)
    if kind == "Parquet":
        return sum(map_ahead(_rows_of, catalog_files(catalog), _THREADS, 2 * _THREADS, "catalog"))
    if kind == "CSV":
        return sum(batch.num_rows for batch in csv_batches(catalog, only=REQUIRED[:1]))
    return sum(rows for _, rows in json_blocks(catalog))


def _rows_of(file: CatalogFile) -> int:
    with open_parquet(file) as opened:
        rows: int = opened.metadata.num_rows
        return rows


def has_prompts(catalog: Location) -> bool:
    """Return whether any row of a catalog has prompts, reading only up to the first one."""
    return any(batch.column("prompts").null_count < batch.num_rows for batch in read_catalog(catalog))


def spread_evenly(rows: int, wanted: int) -> list[int]:
    """Return `wanted` ascending positions, spread evenly over `rows` rows: the middle of each of `wanted` equal parts.

    The result is always the same for the same arguments. If `wanted` is `rows` or more, it contains all positions.
    """
    wanted = min(rows, wanted)
    return [(2 * index + 1) * rows // (2 * wanted) for index in range(wanted)]


def read_rows_at(catalog: Location, ordinals: Sequence[int], *, ignored: Collection[str] = ()) -> pa.Table:
    """Return the rows of a source catalog at these ordinals, in the form of a normalized catalog.

    `ordinals` start at 0 and must be ascending. In Parquet files, this reads only the row groups that contain these
    rows. A text file is parsed up to the last of these rows. Duplicates are not marked, because this would require
    reading all rows. `ignored` has the same meaning as in `stage_catalog`. Raises `UsageError` if one of the rows that
    it reads is invalid.
    """
    if catalog_format(catalog.uri) != "Parquet":
        return _pinned(_pick(_numbered(read_catalog(catalog, own=ignored), 0, ignored), ordinals))
    pieces = []
    for group in row_groups(catalog, own=ignored):
        inside = [ordinal for ordinal in ordinals if group.start <= ordinal < group.stop]
        if inside:
            pieces.append(_pick(_numbered(group.batches, group.start, ignored), inside))
    return _pinned(pa.concat_tables([STAGED.empty_table(), *pieces]))


def _pinned(rows: pa.Table) -> pa.Table:
    """Drop the added columns that are null in all rows."""
    return rows.select([name for name in STAGED.names if name not in ADDED.names or rows[name].null_count < len(rows)])


def _numbered(
    batches: Iterator[pa.RecordBatch], first: int, ignored: Collection[str]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    for batch in batches:
        yield first, number_rows(batch, first, ignored)
        first += batch.num_rows


def _pick(batches: Iterator[tuple[int, pa.RecordBatch]], ordinals: Sequence[int]) -> pa.Table:
    pieces = []
    for start, batch in batches:
        inside = [ordinal - start for ordinal in ordinals if start <= ordinal < start + batch.num_rows]
        if inside:
            pieces.append(pa.Table.from_batches([batch.take(pa.array(inside, pa.int64()))]))
        if not ordinals or start + batch.num_rows > ordinals[-1]:
            break
    return pa.concat_tables([STAGED.empty_table(), *pieces])


_ROWS = 1024
"""Number of rows that are read together. Columns that segmint doesn't use may be large."""

_TYPES = (
    (pa.string(), {str}),
    (pa.bool_(), {bool}),
    (pa.int64(), {int, object}),
    (pa.float64(), {int, float}),
)
"""Arrow types, each with the kinds of JSON values that it represents. A column without values gets the first type."""

Batches = Iterator[pa.RecordBatch]


class WholeCatalog:
    """Catalog with all its columns: first the columns of `SOURCE`, then all other columns in their original order.

    Columns of `SOURCE` are read as in `read_catalog`. If the catalog has several files, every row has the columns of
    all of them. In CSV, the other columns are text. In the other formats, they keep their types. If a JSON Lines column
    contains objects, lists, or values of several types, it becomes text that contains JSON, and `JSON_TEXT` is its
    metadata.
    """

    def __init__(self, catalog: Location) -> None:
        """Determine the columns.

        For JSON Lines, this reads the whole catalog. For other formats, it reads only the start of each file. Raises
        `UsageError` if two columns have the same name, or if a column has another type in another file.
        """
        self._catalog = catalog
        self._kind = catalog_format(catalog.uri)
        fields = self._fields()
        _refuse_repeated(catalog, fields)
        known = {field.name for field in fields}
        self.schema = pa.schema(
            [*(field for field in SOURCE if field.name in known), *(f for f in fields if f.name not in SOURCE.names)]
        )

    def __str__(self) -> str:
        return str(self._catalog)

    def batches(self) -> Batches:
        """Yield all rows in order. Raises the errors of `read_catalog`."""
        names = [name for name in self.schema.names if name in SOURCE.names]
        others = [name for name in self.schema.names if name not in SOURCE.names]
        if not others:
            for batch in read_catalog(self._catalog):
                yield batch.select(names)
            return
        with unchanged(self._catalog):
            for ours, theirs in together(read_catalog(self._catalog), self._raw_batches()):
                arrays = [*map(ours.column, names), *map(theirs.column, others)]
                yield pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _fields(self) -> list[pa.Field]:
        if self._kind == "Parquet":
            schemas = [_schema_of(self._catalog, file) for file in catalog_files(self._catalog)]
            try:
                self._raw_fields = list(pa.unify_schemas(schemas))
            except pa.ArrowException as error:  # names the column and both types
                raise UsageError(f"the files of {self._catalog} have different types: {error}") from error
        elif self._kind == "CSV":
            first = next(csv_batches(self._catalog, only=None), None)
            names = SOURCE.names
            if first is not None:
                names = first.schema.names
            self._raw_fields = [pa.field(name, pa.string()) for name in names]
        else:
            seen: dict[str, set[type]] = {}
            for row in self._json_rows():
                for name, value in row.items():
                    seen.setdefault(name, set()).add(_kind_of(value))
            self._raw_fields = [_json_field(name, kinds) for name, kinds in seen.items()]
        return self._raw_fields

    def _raw_batches(self) -> Batches:
        if self._kind == "Parquet":
            schema = pa.schema(field for field in self._raw_fields if field.name not in SOURCE.names)
            for file in catalog_files(self._catalog):
                with open_parquet(file) as opened:
                    for batch in opened.iter_batches(batch_size=_ROWS):
                        arrays = [_column(batch, field, file) for field in schema]
                        yield pa.RecordBatch.from_arrays(arrays, schema=schema)
        elif self._kind == "CSV":
            yield from csv_batches(self._catalog, only=None)
        else:
            waiting: list[dict[str, Any]] = []
            schema = pa.schema(self._raw_fields)
            for row in self._json_rows():
                waiting.append({name: _typed(value, schema.field(name)) for name, value in row.items()})
                if len(waiting) == _ROWS:
                    yield pa.RecordBatch.from_pylist(waiting, schema=schema)
                    waiting = []
            yield pa.RecordBatch.from_pylist(waiting, schema=schema)

    def _json_rows(self) -> Iterator[Row]:
        number = 1
        for block, _ in json_blocks(self._catalog):
            for line in split_lines(block):
                yield json_row(self._catalog.uri, line, number)
                number += 1


def _refuse_repeated(catalog: Location, fields: list[pa.Field]) -> None:
    repeated = sorted(name for name, times in Counter(field.name for field in fields).items() if times > 1)
    if repeated:
        raise UsageError(
            f"{catalog} has several columns named {repeated[0]!r}: rename them, or remove those that are not needed"
        )


def _schema_of(catalog: Location, file: CatalogFile) -> pa.Schema:
    """Return the columns of a Parquet file and of its folders. Those of `SOURCE` have the types of `SOURCE`."""
    with open_parquet(file) as opened:
        fields = list(opened.schema_arrow)
    _refuse_repeated(catalog, fields)
    known = {field.name for field in fields}
    for name in file.columns:
        if name not in known:
            fields.append(pa.field(name, pa.string()))
    found = []
    for field in fields:
        if field.name in SOURCE.names:
            field = SOURCE.field(field.name)
        elif pa.types.is_dictionary(field.type):  # the encoding isn't part of the column's type
            field = field.with_type(field.type.value_type)
        found.append(field)
    return pa.schema(found)


def _column(batch: pa.RecordBatch, field: pa.Field, file: CatalogFile) -> pa.Array:
    """Return a column of a file's batch, or its folder's value. It is null if the file doesn't have the column."""
    place = batch.schema.get_field_index(field.name)
    if place < 0:
        return repeated(file.columns.get(field.name), batch.num_rows).cast(field.type)
    column = batch.column(place)
    if column.type == field.type:
        return column
    return column.cast(field.type)


def _kind_of(value: Any) -> type:
    """Return the type of a JSON value.

    For integers that a double can't represent, this returns `object` if they fit into int64, and `dict` otherwise.
    """
    if type(value) is int and abs(value) > 2**53:
        return object if abs(value) < 2**63 else dict
    return type(value)


def _json_field(name: str, kinds: set[type]) -> pa.Field:
    kinds = kinds - {type(None)}
    for kind, fit in _TYPES:
        if kinds <= fit or name in SOURCE.names:
            return pa.field(name, kind)
    return pa.field(name, pa.string(), metadata=JSON_TEXT)


def _typed(value: Any, field: pa.Field) -> Any:
    if value is None or not pa.types.is_string(field.type):
        return value
    text = value
    if not isinstance(value, str) or field.metadata is not None:
        text = json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode()  # replaces lone surrogates, which UTF-8 can't encode
