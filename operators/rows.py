"""Rows as they flow between stages: how a stage maps a table row by row without losing any.

A row is in one of three states, given by four columns that every stage carries:

- *accepted*: `stage`, `reason` and `fault` are null;
- *rejected*: `stage` and `reason` name the verdict on the image, `detail` explains it in a sentence;
- *faulted*: `fault` says what failed outside the image (an outage, a bug of ours). This is not a verdict: the shard of
  such a row is not committed, the run goes on with the others, and the next run tries again.

Later stages pass rejected and faulted rows through with nulls in the columns that they add.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from segmint.catalogs.reasons import RejectedError
from segmint.infra.uris import redact

Row = dict[str, Any]
"""One row of an Arrow table, as `pa.Table.to_pylist` returns it; its keys are those of the stage's schema."""


def is_live(row: Mapping[str, Any]) -> bool:
    """Whether the row is accepted so far, neither rejected nor faulted."""
    return row["reason"] is None and row["fault"] is None


def rejected(row: Mapping[str, Any], stage: str, verdict: RejectedError) -> Row:
    """The row with a verdict about its image."""
    return {**row, "stage": stage, "reason": str(verdict.reason), "detail": verdict.detail, "fault": None}


def faulted(row: Mapping[str, Any], stage: str, error: BaseException) -> Row:
    """The row with a fault, named by the error's type and message, without credentials."""
    fault = redact(f"{stage}: {type(error).__name__}: {error}")
    return {**row, "stage": None, "reason": None, "detail": None, "fault": fault}


def to_table(rows: list[Row], schema: pa.Schema) -> pa.Table:
    """Convert rows to a table of exactly this schema; missing columns become null, others are left out."""
    names = schema.names
    return pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows], schema=schema)


def map_rows(table: pa.Table, stage: str, operator: Callable[[Row], Row], schema: pa.Schema) -> pa.Table:
    """Apply `operator` to each live row, in order; return every row, with exactly `schema`.

    A `RejectedError` becomes a rejected row. Any other exception is a bug or a broken machine, never a verdict: it
    becomes a faulted row, which costs its own shard and not the run.
    """
    rows: list[Row] = []
    for row in table.to_pylist():
        if is_live(row):
            try:
                row = operator(row)
            except RejectedError as verdict:
                row = rejected(row, stage, verdict)
            except Exception as error:  # noqa: BLE001 - one row's failure must not affect the other rows
                row = faulted(row, stage, error)
        rows.append(row)
    return to_table(rows, schema)
