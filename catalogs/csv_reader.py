"""CSV catalogs: a header and a record a row, read block by block."""

import csv
import io
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.csv as pacsv

from catalogs.conform import OnProblem, conform, refuse, require_columns, shown
from catalogs.schema import SOURCE
from catalogs.text_blocks import BLOCK_BYTES, ROW_BYTES, open_text
from infra.errors import UsageError
from infra.storage import Storage

_MOST_COLUMNS = 10_000  # whose reader takes 2 KB a column before the first row


def read_csv(uri: str, storage: Storage, on_problem: OnProblem = refuse) -> Iterator[pa.RecordBatch]:
    """The rows of the CSV catalog at `uri`, in order; see `catalogs.readers.read_catalog`."""
    row = 1
    for batch in csv_batches(uri, storage):
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        yield conform(uri, columns, batch.num_rows, row, on_problem)
        row += batch.num_rows


def csv_batches(uri: str, storage: Storage, only: Sequence[str] = SOURCE.names) -> Iterator[pa.RecordBatch]:
    """The rows of a CSV catalog as text, those columns alone that are named in `only`, which decide no row's end."""
    with open_text(uri, storage) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            names = next((line for line in csv.reader(_header_lines(uri, text)) if line), [])
        except (UnicodeDecodeError, csv.Error) as error:
            raise UsageError(f"{uri}: the header is no CSV in UTF-8: {error}") from error
    if len(names) > _MOST_COLUMNS:
        raise UsageError(f"{uri}: the header has {len(names):,} columns; expected at most {_MOST_COLUMNS:,}")
    require_columns(uri, names)
    bad: list[pacsv.InvalidRow] = []

    def remember(invalid: pacsv.InvalidRow) -> str:
        bad.append(invalid)
        return "error"

    rows = 0
    with open_text(uri, storage) as stream:
        try:
            reader = pacsv.open_csv(
                stream,
                read_options=pacsv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
                parse_options=pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=remember),
                convert_options=pacsv.ConvertOptions(
                    column_types={name: pa.string() for name in names},
                    include_columns=[name for name in names if name in only],
                    null_values=[""],
                    strings_can_be_null=True,
                ),
            )
            for batch in reader:
                yield batch
                rows += batch.num_rows
        except pa.ArrowInvalid as error:
            if bad:
                raise UsageError(
                    f"{uri}, line {bad[0].number}: found {bad[0].actual_columns} values; "
                    f"expected {bad[0].expected_columns}, as in the header: {shown(bad[0].text)}"
                ) from error
            if "Empty CSV" in str(error):
                return
            why = str(error)
            if "straddling" in why:
                why = f"a row is longer than {BLOCK_BYTES:,} bytes, or a quote is never closed"
            raise UsageError(f"{uri}: no CSV that can be read after row {rows}: {why}") from error


def _header_lines(uri: str, text: io.TextIOWrapper) -> Iterator[str]:
    taken = 0
    while line := text.readline(ROW_BYTES):
        taken += len(line)
        if taken >= ROW_BYTES:
            raise UsageError(f"{uri}: its first {ROW_BYTES:,} bytes hold no header of a CSV")
        yield line
