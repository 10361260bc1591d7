"""No row is lost in a stage, whatever the stage does with it."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from segmint.catalogs.reasons import Reason, RejectedError
from segmint.operators.rows import Row, faulted, is_live, map_rows, rejected, to_table
from segmint.operators.schemas import VERDICT, with_fields

SCHEMA = with_fields(pa.schema([pa.field("number", pa.int64())]), [pa.field("double", pa.int64())])


def double(row: Row) -> Row:
    if row["number"] % 3 == 1:
        raise RejectedError(Reason.TOO_SMALL, f"{row['number']} leaves 1")
    if row["number"] % 3 == 2:
        raise ZeroDivisionError("a bug")
    return {**row, "double": 2 * row["number"]}


@given(st.lists(st.integers(0, 100)))
def test_every_row_comes_out_in_order_with_its_result(numbers: list[int]) -> None:
    out = map_rows(to_table([{"number": n} for n in numbers], SCHEMA), "doubling", double, SCHEMA)
    assert out.schema == SCHEMA
    rows = out.to_pylist()
    assert [row["number"] for row in rows] == numbers
    for row in rows:
        fate = row["number"] % 3
        assert row["double"] == (2 * row["number"] if fate == 0 else None)
        assert row["reason"] == ("too_small" if fate == 1 else None)
        assert row["stage"] == ("doubling" if fate == 1 else None)
        assert row["fault"] == ("doubling: ZeroDivisionError: a bug" if fate == 2 else None)
        assert is_live(row) == (fate == 0)


def test_rejected_and_faulted_rows_pass_through_untouched() -> None:
    refused = rejected({"number": 3}, "read", RejectedError(Reason.NOT_FOUND, "no such object"))
    broken = faulted({"number": 6}, "read", OSError("down"))
    before = to_table([refused, broken], SCHEMA)
    assert map_rows(before, "doubling", double, SCHEMA).equals(before)


def test_verdict_columns_stay_last_and_dropped_columns_are_gone() -> None:
    schema = with_fields(SCHEMA, [pa.field("name", pa.string())], without=frozenset({"double"}))
    assert schema.names == ["number", "name", *VERDICT.names]
