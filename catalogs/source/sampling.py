"""Counting the rows of a source catalog, and reading an evenly spread sample without keeping the other rows."""

from collections.abc import Collection, Iterator, Sequence

import pyarrow as pa

from segmint.catalogs.schema import ADDED, REQUIRED, STAGED
from segmint.catalogs.source.files import CatalogFile, catalog_files, catalog_format
from segmint.catalogs.source.normalize import number_rows
from segmint.catalogs.source.parquet_reader import open_parquet
from segmint.catalogs.source.readers import read_catalog, row_groups
from segmint.catalogs.source.text_readers import csv_batches, json_blocks
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead

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
