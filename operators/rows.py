"""Rows that flow between stages, and helpers that process them one by one without losing any.

Every stage carries four columns, which put a row in one of three states:

- *accepted*: `stage`, `reason`, and `fault` are null.
- *rejected*: there is a verdict on the image. `stage` and `reason` name it, and `detail` explains it in a sentence.
- *faulted*: `fault` describes a failure outside the image, such as an outage or a bug. This isn't a verdict. The row's
  shard isn't committed, the run continues with the other shards, and the next run retries this one.

Later stages pass rejected and faulted rows through, with nulls in their own columns.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from segmint.catalogs.reasons import Reason, RejectedError
from segmint.catalogs.schema import NORMALIZED
from segmint.catalogs.stages import STAGE_PREFIX
from segmint.infra.errors import SegmintError
from segmint.infra.uris import redact

Row = dict[str, Any]
"""A row of an Arrow table, as `pa.Table.to_pylist` returns it. Its keys are the columns of the stage's schema."""

_VERDICT = ("stage", "reason", "detail", "fault")
_LONGEST_FAULT = 5000  # maximum length of an error's message, or of a text that is searched for credentials
_LONGEST_NAME = 200
_LONGEST_CAUSE = 1000


class UnreadableValueError(SegmintError):
    """Raised when a row contains a value that Arrow supports but Python doesn't."""


def is_live(row: Mapping[str, Any]) -> bool:
    """Return whether the row is accepted so far, that is, neither rejected nor faulted."""
    return row["reason"] is None and row["fault"] is None


def rejected(row: Mapping[str, Any], stage: str, verdict: RejectedError) -> Row:
    """Return a copy of the row that is rejected with a verdict."""
    return {**row, "stage": stage, "reason": str(verdict.reason), "detail": _storable(verdict.detail), "fault": None}


def faulted(row: Mapping[str, Any], stage: str, error: BaseException) -> Row:
    """Return a copy of the row with a fault: the error's type and message, without credentials."""
    fault = redact(_storable(f"{stage}: {type(error).__name__}: {str(error)[:_LONGEST_FAULT]}"))
    return {**row, "stage": None, "reason": None, "detail": None, "fault": fault}


def given_up(fault: str) -> Row:
    """Return the verdict's columns for a row that is rejected because of a persistent fault, as `faulted` wrote it."""
    stage, _, cause = fault.partition(": ")
    detail = redact(" ".join(cause.split()))[:_LONGEST_CAUSE]
    return rejected({}, stage, RejectedError(Reason.PERSISTENT_FAULT, detail))


def named(row: Mapping[str, Any]) -> str:
    """Return a row's name for messages: its ordinal, image_id, and URI, without credentials."""
    names = (f"{name} {redact(str(row.get(name))[:_LONGEST_FAULT])[:_LONGEST_NAME]!r}" for name in ("image_id", "uri"))
    return f"row {row['ordinal']} ({', '.join(names)})"


def to_rows(table: pa.Table, stage: str) -> list[Row]:
    """Convert a table to rows. If the table lacks the columns of a verdict, add them as nulls.

    If Python can't represent a value, the value becomes None and the row becomes faulted.
    """
    unjudged: Row = dict.fromkeys(_VERDICT)
    try:
        return [{**unjudged, **row} for row in table.to_pylist()]
    except Exception:  # noqa: BLE001 - the row at fault is found below
        return [_to_row(table.slice(index, 1), stage) for index in range(table.num_rows)]


def _to_row(table: pa.Table, stage: str) -> Row:
    row: Row = dict.fromkeys(_VERDICT)
    problem: Exception | None = None
    for name in table.column_names:
        try:
            row[name] = table.column(name)[0].as_py()
        except Exception as error:  # noqa: BLE001 - one row's damage must not affect the other rows
            row[name] = None
            problem = UnreadableValueError(f"the column {name} of the catalog can't be read: {error}")
    return row if problem is None else faulted(row, stage, problem)


def to_table(rows: list[Row], schema: pa.Schema) -> pa.Table:
    """Convert rows to a table with exactly this schema. Missing columns become null, and extra columns are dropped."""
    names = schema.names
    return pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows], schema=schema)


def carried(table: pa.Table, result: pa.Table, *others: str) -> pa.Table:
    """Append the columns of earlier custom stages, and `others`, from a stage's input to its result.

    Both must have the same rows.
    """
    for name in table.column_names:
        if name.startswith(STAGE_PREFIX) or name in others:
            result = result.append_column(table.schema.field(name), table.column(name))
    return result


def gather(rows: list[Row], stage: str, schema: pa.Schema) -> pa.Table:
    """Convert a stage's rows to a table, like `to_table`. Rows that don't fit the schema become faulted."""
    try:
        return to_table(rows, schema)
    except Exception:  # noqa: BLE001 - the row at fault is found below
        return pa.concat_tables([_to_one(row, stage, schema) for row in rows])


def _to_one(row: Row, stage: str, schema: pa.Schema) -> pa.Table:
    try:
        return to_table([row], schema)
    except Exception as error:  # noqa: BLE001 - one row's damage must not affect the other rows
        return to_table([faulted({name: row[name] for name in NORMALIZED.names if name in row}, stage, error)], schema)


def _storable(text: str) -> str:
    """Replace lone surrogates, which occur in file names, with question marks, because Arrow can't store them."""
    return text.encode("utf-8", "replace").decode()


def judged(row: Row, stage: str, process: Callable[[], Row]) -> Row:
    """Call `process`, and return its result. If it raises an exception, return the row, rejected or faulted.

    A `RejectedError` rejects the row. Any other exception is a bug or a broken machine, never a verdict, so it makes
    the row faulted. A faulted row delays only its own shard, not the run.
    """
    try:
        return process()
    except RejectedError as verdict:
        return rejected(row, stage, verdict)
    except Exception as error:  # noqa: BLE001 - one row's failure must not affect the other rows
        return faulted(row, stage, error)
