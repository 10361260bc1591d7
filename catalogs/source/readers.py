"""Readers of source catalogs (Parquet, JSON Lines, or CSV) as a stream of `SOURCE` batches.

Only one block of a file is in memory at a time. Messages count rows from 1, without the header and blank lines.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from segmint.catalogs.source.conform import InvalidValue, OnProblem, refuse
from segmint.catalogs.source.files import CatalogFile, catalog_files, catalog_format
from segmint.catalogs.source.parquet_reader import open_parquet, parquet_batches, read_parquet
from segmint.catalogs.source.text_readers import read_csv, read_json_lines
from segmint.infra.storage.location import Location

_TEXT_READERS: dict[str, Callable[[Location, OnProblem, Collection[str]], Iterator[pa.RecordBatch]]] = {
    "JSON Lines": read_json_lines,
    "CSV": read_csv,
}


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
    return _TEXT_READERS[kind](catalog, on_problem, own)


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
