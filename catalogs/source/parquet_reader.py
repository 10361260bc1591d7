"""Reader of Parquet catalogs in small batches."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segmint.catalogs.schema import SOURCE
from segmint.catalogs.source.conform import OnProblem, conform, is_text, require_columns, require_types
from segmint.catalogs.source.files import CatalogFile
from segmint.infra.errors import SegmintError, UsageError

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
