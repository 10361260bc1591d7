"""No row is lost in a stage, whatever the stage does with it."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from segmint.catalogs.findings import Reason, RejectedError
from segmint.operators.rows import VERDICT, Row, faulted, given_up, is_live, named, rejected, to_table, with_fields
from tests.support.stages import map_rows

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


def test_a_value_that_python_does_not_have_costs_its_own_row() -> None:
    """An infinite date of a database, in a column that every stage carries."""
    schema = with_fields(pa.schema([pa.field("number", pa.int64()), pa.field("until", pa.date32())]), [])
    days = pa.array([20_000, 2**31 - 1, None], pa.int32()).cast(pa.date32())
    nothing = [pa.nulls(3, pa.string())] * 4
    table = pa.Table.from_arrays([pa.array([0, 1, 2]), days, *nothing], schema=schema)
    out = map_rows(table, "looking", lambda row: row, schema).to_pylist()
    assert [row["number"] for row in out] == [0, 1, 2]
    assert [is_live(row) for row in out] == [True, False, True]
    assert out[1]["fault"].startswith("looking: UnreadableValueError: the column until of the catalog can't be read: ")


def test_a_value_that_arrow_does_not_take_costs_its_own_row() -> None:
    def enlarge(row: Row) -> Row:
        return {**row, "double": 2**70 if row["number"] == 1 else 0}

    out = map_rows(to_table([{"number": n} for n in range(3)], SCHEMA), "doubling", enlarge, SCHEMA).to_pylist()
    assert [is_live(row) for row in out] == [True, False, True]
    assert "doubling: OverflowError" in out[1]["fault"]


def test_a_message_with_a_lone_surrogate_can_be_stored() -> None:
    refused = rejected({"number": 3}, "read", RejectedError(Reason.NOT_FOUND, "caf\udce9.jpg"))
    broken = faulted({"number": 6}, "read", OSError("caf\udce9.jpg " + "x" * 100_000))
    rows = to_table([refused, broken], SCHEMA).to_pylist()
    assert rows[0]["detail"] == "caf?.jpg"
    assert rows[1]["fault"].startswith("read: OSError: caf?.jpg x")
    assert len(rows[1]["fault"]) < 6000


def test_a_row_is_named_without_credentials_and_not_at_length() -> None:
    row = {"ordinal": 7, "image_id": "x" * 9000, "uri": "https://user:hunter2@host/a\nb.jpg"}
    assert named(row) == f"row 7 (image_id {'x' * 200!r}, uri 'https://[redacted]@host/a\\nb.jpg')"


def test_verdict_columns_stay_last_and_dropped_columns_are_gone() -> None:
    schema = with_fields(SCHEMA, [pa.field("name", pa.string())], without=frozenset({"double"}))
    assert schema.names == ["number", "name", *VERDICT.names]


def test_a_persistent_fault_becomes_a_verdict_of_its_stage_in_one_short_line_without_credentials() -> None:
    cause = "cannot read s3://me:hunter2@a/b:\n  Forbidden" + "x" * 2000
    row = given_up(faulted({}, "stage_blur", OSError(cause))["fault"])
    assert (row["stage"], row["reason"], row["fault"]) == ("stage_blur", "persistent_fault", None)
    assert row["detail"].startswith("OSError: cannot read s3://[redacted]@a/b: Forbidden")
    assert len(row["detail"]) == 1000
