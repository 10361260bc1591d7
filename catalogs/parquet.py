"""Parquet files whose bytes depend only on the rows: fixed settings, whole row groups, one chunk per column."""

import io
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP_ROWS = 65_536
"""Number of rows in each row group of a catalog, except the last."""

PARQUET_OPTIONS: dict[str, Any] = {
    "version": "2.6",
    "data_page_version": "1.0",
    "compression": "zstd",
    "compression_level": 3,
    "use_dictionary": True,
    "write_statistics": True,
    "store_schema": True,
}
"""Settings of the writer for every Parquet file in a dataset."""


def table_bytes(table: pa.Table, schema: pa.Schema, row_group_rows: int = ROW_GROUP_ROWS) -> bytes:
    """Serialize a table to a Parquet file with exactly the columns of `schema`, which are selected by name.

    This first combines the table's chunks, so that the bytes don't depend on the batches in which the rows arrived.
    """
    sink = io.BytesIO()
    exact = table.select(schema.names).cast(schema).combine_chunks()
    with pq.ParquetWriter(sink, schema, **PARQUET_OPTIONS) as writer:
        writer.write_table(exact, row_group_size=row_group_rows)
    return sink.getvalue()


class RowGroupWriter(AbstractContextManager["RowGroupWriter"]):
    """Context manager that writes batches of any size to a local Parquet file, in row groups of equal size."""

    def __init__(self, path: Path, schema: pa.Schema, row_group_rows: int = ROW_GROUP_ROWS) -> None:
        self._schema = schema
        self._group = row_group_rows
        self._waiting: list[pa.RecordBatch] = []
        self._count = 0
        self._writer = pq.ParquetWriter(path, schema, **PARQUET_OPTIONS)
        self.rows = 0

    @property
    def waiting_bytes(self) -> int:
        """Size in bytes of the rows in memory. They wait until their row group is full."""
        return sum(batch.nbytes for batch in self._waiting)

    def add(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Add batches with the writer's schema. A row group is written as soon as it is full."""
        for batch in batches:
            self._waiting.append(batch)
            self._count += batch.num_rows
            self.rows += batch.num_rows
            if self._count >= self._group:
                self._flush(whole=True)

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._flush(whole=False)
        self._writer.close()

    def _flush(self, whole: bool) -> None:
        table = pa.Table.from_batches(self._waiting, schema=self._schema)
        ready = table.num_rows - table.num_rows % self._group if whole else table.num_rows
        for start in range(0, ready, self._group):
            group = table.slice(start, min(self._group, ready - start)).combine_chunks()
            self._writer.write_table(group, row_group_size=self._group)
        rest = table.slice(ready).combine_chunks()
        self._waiting = rest.to_batches()
        self._count = rest.num_rows


def together(
    ones: Iterable[pa.RecordBatch], others: Iterator[pa.RecordBatch]
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    """Yield the same rows from two streams, in batches of the same length."""
    other: pa.RecordBatch | None = None
    for one in ones:
        while one.num_rows:
            while other is None or not other.num_rows:
                other = next(others)
            rows = min(one.num_rows, other.num_rows)
            yield one.slice(0, rows), other.slice(0, rows)
            one, other = one.slice(rows), other.slice(rows)
