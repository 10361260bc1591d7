"""Random access to the rows of a normalized catalog by ordinal."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import accumulate, pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from segmint.catalogs.schema import normalized_schema
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location


class NormalizedRows(AbstractContextManager["NormalizedRows"]):
    """Context manager for an open normalized catalog. It reads the footer once, and row groups when they are needed."""

    def __init__(self, file: Location) -> None:
        self._location = file
        self._stream = file.open()
        try:
            self._starts = self._open()
        except BaseException:
            self._stream.close()
            raise

    def _open(self) -> list[int]:
        """Open the file. Returns the ordinal of the first row in each row group, and the ordinal after the last row."""
        with self._damage():
            self._file = pq.ParquetFile(self._stream)
            self._schema = normalized_schema(self._file.schema_arrow.names)
            if not self._file.schema_arrow.equals(self._schema):
                raise UsageError(f"{self._location} is not a normalized catalog: its columns are different")
            metadata = self._file.metadata
            counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            first = self._file.read_row_group(0, columns=["ordinal"]).column(0)[0].as_py() if counts else 0
        return list(accumulate(counts, initial=first))

    @property
    def ordinals(self) -> tuple[int, int]:
        """The first ordinal, and the ordinal after the last row."""
        return self._starts[0], self._starts[-1]

    @property
    def names(self) -> list[str]:
        """Names of the catalog's columns."""
        names: list[str] = self._schema.names
        return names

    def read(self, start: int, stop: int) -> pa.Table:
        """Return the rows with ordinals in [start, stop), in order.

        Ordinals that the catalog doesn't contain are skipped.
        """
        low, high = max(start, self._starts[0]), min(stop, self._starts[-1])
        return self.take(np.arange(low, high))

    def take(self, ordinals: Sequence[int] | NDArray[np.int64], columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows with these ascending ordinals. Ordinals that the catalog doesn't contain are skipped.

        If `columns` is given, only these columns are read.
        """
        names = self._schema.names if columns is None else list(columns)
        pieces = [self._schema.empty_table().select(names)]
        wanted = np.asarray(ordinals, np.int64)
        borders = np.searchsorted(wanted, self._starts)
        for group, (low, high) in enumerate(pairwise(borders.tolist())):
            if low < high:
                with self._damage():
                    rows = self._file.read_row_group(group, columns=names)
                    pieces.append(rows.take(wanted[low:high] - self._starts[group]))
        return pa.concat_tables(pieces)

    def batches(self, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """Yield all rows in order, with only these columns, in batches of up to `rows` rows."""
        batches = self._file.iter_batches(batch_size=rows, columns=list(columns))
        while True:
            with self._damage():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def close(self) -> None:
        self._file.close()
        self._stream.close()

    @contextmanager
    def _damage(self) -> Iterator[None]:
        """Convert errors that Arrow raises for a damaged file to `UsageError`."""
        try:
            yield
        except (pa.ArrowException, OSError, IndexError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # raised by the stream; Arrow's errors, such as for a corrupt footer, have no errno
            why = " ".join(str(error).split())
            raise UsageError(f"{self._location} is not a normalized catalog: {why}") from error

    def __exit__(self, *_: object) -> None:
        self.close()


def read_rows(file: Location, start: int, stop: int) -> pa.Table:
    """Return the rows of a normalized catalog with ordinals in [start, stop), in order, with all of its columns.

    Row groups without any of these rows are skipped. To read repeatedly, open a `NormalizedRows` instead.
    """
    with NormalizedRows(file) as rows:
        return rows.read(start, stop)


def take_rows(
    file: Location, ordinals: Sequence[int] | NDArray[np.int64], columns: Sequence[str] | None = None
) -> pa.Table:
    """Return the rows of a normalized catalog with these ordinals, like `NormalizedRows.take`."""
    with NormalizedRows(file) as rows:
        return rows.take(ordinals, columns)


def joined(tables: Iterable[pa.Table]) -> pa.Table:
    """Concatenate tables of normalized rows. If some tables lack a column, it is null in their rows."""
    return pa.concat_tables(tables, promote_options="default")
