"""Read source catalogs (Parquet, JSON Lines or CSV) as a stream of `SOURCE` batches.

At most one block of the file is in memory at a time. A row number in a message counts rows from 1, without a header and
without blank lines.
"""

from collections.abc import Callable, Collection, Iterator

import pyarrow as pa

from segmint.catalogs.source.conform import InvalidValue, OnProblem, refuse
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
"""The formats of a catalog, with their file endings."""

_TEXT_READERS: dict[str, Callable[[Location, OnProblem], Iterator[pa.RecordBatch]]] = {
    "JSON Lines": read_json_lines,
    "CSV": read_csv,
}


def catalog_format(uri: str) -> str:
    """Return the format by a catalog's ending, a key of `FORMATS`; raises `UsageError` for an unknown ending."""
    for name, endings in FORMATS.items():
        if uri.lower().endswith(endings):
            return name
    known = ", ".join(ending for endings in FORMATS.values() for ending in endings)
    raise UsageError(f"{uri}: a catalog's name must end in one of {known}")


def read_catalog(
    catalog: Location, on_problem: OnProblem = refuse, own: Collection[str] = ()
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a catalog in order, as batches of `SOURCE`.

    Raises `UsageError`, which names file, column and row, for a missing required column, a column of the wrong type, an
    invalid value, or a file that does not match its ending. An invalid value is passed to `on_problem` first: if that
    returns, the value is read as absent. In the columns `own`, which may be the user's own, whatever does not fit is
    read as absent and is no problem.
    """

    report = except_in(own, on_problem)
    kind = catalog_format(catalog.uri)
    return read_parquet(catalog, report, own) if kind == "Parquet" else _TEXT_READERS[kind](catalog, report)


def except_in(own: Collection[str], on_problem: OnProblem = refuse) -> OnProblem:
    """Pass problems to `on_problem`, but those in the columns `own`: what does not fit there is read as absent."""

    def report(problem: InvalidValue) -> None:
        if problem.column not in own:
            on_problem(problem)

    return report
