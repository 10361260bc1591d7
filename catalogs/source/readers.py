"""Readers of source catalogs (Parquet, JSON Lines, or CSV) as a stream of `SOURCE` batches.

Only one block of the file is in memory at a time. Messages count rows from 1, without the header and blank lines.
"""

from collections.abc import Callable, Collection, Iterator

import pyarrow as pa

from segmint.catalogs.source.conform import InvalidValue, OnProblem, refuse
from segmint.catalogs.source.parquet_reader import read_parquet
from segmint.catalogs.source.text_readers import read_csv, read_json_lines
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location

FORMATS = {
    "Parquet": (".parquet",),
    "JSON Lines": (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"),
    "CSV": (".csv", ".csv.gz"),
}
"""Formats of a catalog, and the file extensions of each format."""

_TEXT_READERS: dict[str, Callable[[Location, OnProblem], Iterator[pa.RecordBatch]]] = {
    "JSON Lines": read_json_lines,
    "CSV": read_csv,
}


def catalog_format(uri: str) -> str:
    """Return a catalog's format, which is a key of `FORMATS`. Raises `UsageError` if its extension is unknown."""
    for name, endings in FORMATS.items():
        if uri.lower().endswith(endings):
            return name
    known = ", ".join(ending for endings in FORMATS.values() for ending in endings)
    raise UsageError(f"{uri}: a catalog's name must end in one of {known}")


def read_catalog(
    catalog: Location, on_problem: OnProblem = refuse, own: Collection[str] = ()
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a catalog in order, as batches of `SOURCE`.

    Raises `UsageError` if a required column is missing, if a column has the wrong type, if a value is invalid, or if
    the file's content doesn't match its extension. The message names the file, column, and row. If you pass
    `on_problem`, it receives each invalid value instead. If `on_problem` returns, the value counts as missing. `own`
    contains columns that may be the user's custom columns. Their invalid values always count as missing, without a
    report.
    """

    report = except_in(own, on_problem)
    kind = catalog_format(catalog.uri)
    return read_parquet(catalog, report, own) if kind == "Parquet" else _TEXT_READERS[kind](catalog, report)


def except_in(own: Collection[str], on_problem: OnProblem = refuse) -> OnProblem:
    """Return a callback that passes problems to `on_problem`, but ignores problems in the columns in `own`."""

    def report(problem: InvalidValue) -> None:
        if problem.column not in own:
            on_problem(problem)

    return report
