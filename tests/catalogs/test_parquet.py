"""Parquet bytes depend on the rows alone."""

from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segmint.catalogs.parquet import RowGroupWriter, table_bytes

SCHEMA = pa.schema([("n", pa.int64()), ("s", pa.string())])
TABLE = pa.table({"s": [f"text {i % 11}" for i in range(300)], "n": range(300), "other": range(300)})


@given(cuts=st.lists(st.integers(0, 300), max_size=5))
@settings(max_examples=30)
def test_how_rows_arrive_does_not_matter(cuts: list[int]) -> None:
    borders = [0, *sorted(cuts), 300]
    pieces = pa.concat_tables([TABLE.slice(a, b - a) for a, b in pairwise(borders)])
    data = table_bytes(pieces, SCHEMA, row_group_rows=128)
    assert data == table_bytes(TABLE, SCHEMA, row_group_rows=128)
    table = pq.read_table(pa.BufferReader(data))
    assert table.schema.names == ["n", "s"]
    assert table.column("n").to_pylist() == list(range(300))


@given(cuts=st.lists(st.integers(0, 300), max_size=5), group=st.integers(1, 400))
@settings(max_examples=30)
def test_row_groups_are_whole_however_batches_arrive(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], group: int
) -> None:
    folder = tmp_path_factory.mktemp("groups")
    borders = [0, *sorted(cuts), 300]
    rows = TABLE.select(["n", "s"])
    with RowGroupWriter(folder / "a.parquet", SCHEMA, group) as writer:
        for a, b in pairwise(borders):
            writer.add(rows.slice(a, b - a).to_batches())
    assert writer.rows == 300
    with RowGroupWriter(folder / "b.parquet", SCHEMA, group) as writer:
        writer.add(rows.to_batches())
    assert (folder / "a.parquet").read_bytes() == (folder / "b.parquet").read_bytes()
    metadata = pq.read_metadata(folder / "a.parquet")
    counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert counts == [group] * (300 // group) + ([300 % group] if 300 % group else [])
    assert pq.read_table(folder / "a.parquet").equals(rows.cast(SCHEMA))
