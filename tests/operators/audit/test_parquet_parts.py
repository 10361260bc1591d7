"""Bytes of a Parquet file that its rows don't need, in files of this pyarrow and of another one."""

import hashlib
import io
from pathlib import Path
from typing import BinaryIO

import pytest

from segmint.operators.audit import parquet_parts
from segmint.operators.audit.parquet_parts import ParquetCheck, check_parquet
from segmint.operators.rows import Row
from segmint.operators.schemas import SCHEMAS
from segmint.operators.shards.files import ROW_GROUP_ROWS, shard_table_bytes
from tests.support import planted
from tests.support.planted import by_another_pyarrow

HIDDEN = [value for name, value in vars(planted).items() if name.startswith("parquet_")]


def check(data: bytes, kind: str, sha256: str | None = None) -> ParquetCheck:
    digest = hashlib.sha256(data).hexdigest() if sha256 is None else sha256
    return check_parquet(io.BytesIO(data), digest, SCHEMAS[kind], ROW_GROUP_ROWS)


@pytest.fixture(scope="module")
def long_table() -> bytes:
    """Three row groups, with chunks of several pages."""
    same: Row = {"image_id": "", "uri": None, "stage": "ingest", "reason": "truncated"}
    rows = [
        {
            **same,
            "ordinal": n,
            "id": n + 1,
            "image_id": "",
            "stage": "ingest",
            "reason": "truncated",
            "detail": f"{n:0200}",
        }
        for n in range(2 * ROW_GROUP_ROWS + 5)
    ]
    return shard_table_bytes(rows, SCHEMAS["rejects"])


def test_tables_of_a_build_are_what_their_rows_produce(small_dataset: Path, long_table: bytes) -> None:
    tables = [(path.read_bytes(), kind) for kind in SCHEMAS for path in (small_dataset / kind).iterdir()]
    for data, kind in [*tables, (long_table, "rejects")]:
        assert check(data, kind) == ParquetCheck(alike=True, by_other=False)
        assert check(data, kind, "0" * 64) == ParquetCheck(alike=False, by_other=False), "its structure is intact"
        assert check(by_another_pyarrow(data), kind) == ParquetCheck(alike=False, by_other=True)


def test_a_boolean_column_without_pages_may_have_no_position(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_positions(stream: BinaryIO) -> tuple[parquet_parts.Struct, int]:
        footer, end = read_footer(stream)
        empty = [chunk[3] for chunk in footer[4][0][1] if not chunk[3][7]]
        assert empty
        for column in empty:
            column[9] = 0
        return footer, end

    read_footer = parquet_parts._read_footer
    monkeypatch.setattr(parquet_parts, "_read_footer", without_positions)
    empty_table = by_another_pyarrow(shard_table_bytes([], SCHEMAS["images"]))
    assert check(empty_table, "images") == ParquetCheck(alike=False, by_other=True)


def test_other_row_groups_are_found(long_table: bytes) -> None:
    digest = hashlib.sha256(long_table).hexdigest()
    problem = check_parquet(io.BytesIO(long_table), digest, SCHEMAS["rejects"], 65_536).problem
    assert problem == "row groups that do not have 65,536 rows each"


@pytest.mark.parametrize("hide", HIDDEN, ids=[each.__name__ for each in HIDDEN])
def test_hidden_bytes_are_found_whichever_pyarrow_wrote_the_file(small_dataset: Path, hide: planted.Edit) -> None:
    data = hide(sorted((small_dataset / "masks").iterdir())[0].read_bytes())
    ours, others = check(data, "masks"), check(by_another_pyarrow(data), "masks")
    assert ours.problem is not None
    assert others.problem == (None if hide is planted.parquet_after_the_values else ours.problem)
    assert (ours.by_other, others.by_other) == (False, True)
