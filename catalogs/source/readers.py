"""Catalogs as people have them, Parquet, JSON Lines or CSV, read as a stream of `SOURCE` batches.

No more than one block of the file is in memory at a time. A row number in a message counts rows from 1,
without a header and without blank lines.
"""

from collections.abc import Callable, Iterator

import pyarrow as pa

from segmint.catalogs.source.conform import OnProblem, refuse
from segmint.catalogs.source.csv_reader import read_csv
from segmint.catalogs.source.json_lines_reader import read_json_lines
from segmint.catalogs.source.parquet_reader import read_parquet
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location

FORMATS = {
    "Parquet": (".parquet",),
    "JSON Lines": (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"),
    "CSV": (".csv", ".csv.gz"),
}
"""The formats of a catalog, each with the endings that say so."""

_READERS: dict[str, Callable[[Location, OnProblem], Iterator[pa.RecordBatch]]] = {
    "Parquet": read_parquet,
    "JSON Lines": read_json_lines,
    "CSV": read_csv,
}


def catalog_format(uri: str) -> str:
    """The format that a catalog's ending stands for, a key of `FORMATS`; raises `UsageError` for another."""
    for name, endings in FORMATS.items():
        if uri.lower().endswith(endings):
            return name
    known = ", ".join(ending for endings in FORMATS.values() for ending in endings)
    raise UsageError(f"{uri}: a catalog's name must end in one of {known}")


def read_catalog(catalog: Location, on_problem: OnProblem = refuse) -> Iterator[pa.RecordBatch]:
    """The rows of the catalog at `catalog`, in order, as batches of `SOURCE`.

    A missing required column, a column of a wrong type, a value that cannot be used and a file that is not
    what its ending says raise `UsageError`, which names the file, column and row. A value that cannot be used
    goes to `on_problem` first: when that returns, the value is read as absent.
    """
    return _READERS[catalog_format(catalog.uri)](catalog, on_problem)
