"""Readers of source catalogs (Parquet, JSON Lines, or CSV) as a stream of `SOURCE` batches.

At most one block of the file is in memory at a time. Row numbers in messages start at 1 and skip the header and blank
lines.
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
"""Formats of a catalog, with their file extensions."""

_TEXT_READERS: dict[str, Callable[[Location, OnProblem], Iterator[pa.RecordBatch]]] = {
    "JSON Lines": read_json_lines,
    "CSV": read_csv,
}


def catalog_format(uri: str) -> str:
    """Return a catalog's format by its extension, a key of `FORMATS`; raises `UsageError` for an unknown one."""
    for name, endings in FORMATS.items():
        if uri.lower().endswith(endings):
            return name
    known = ", ".join(ending for endings in FORMATS.values() for ending in endings)
    raise UsageError(f"{uri}: a catalog's name must end in one of {known}")


def read_catalog(
    catalog: Location, on_problem: OnProblem = refuse, own: Collection[str] = ()
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a catalog in order, as batches of `SOURCE`.

    Raises `UsageError`, which names the file, column, and row, for a missing required column, a column with a wrong
    type, an invalid value, or a file that does not match its extension. `on_problem` receives an invalid value first;
    if it returns, the value is read as absent. Invalid values in the columns `own`, which may be the user's custom
    columns, are read as absent without a report.
    """

    report = except_in(own, on_problem)
    kind = catalog_format(catalog.uri)
    return read_parquet(catalog, report, own) if kind == "Parquet" else _TEXT_READERS[kind](catalog, report)


def except_in(own: Collection[str], on_problem: OnProblem = refuse) -> OnProblem:
    """Pass problems to `on_problem`, except those in the columns `own`, whose invalid values are read as absent."""

    def report(problem: InvalidValue) -> None:
        if problem.column not in own:
            on_problem(problem)

    return report
