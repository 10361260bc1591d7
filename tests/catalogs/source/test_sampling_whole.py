"""Catalogs read with all their columns."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segmint.catalogs.source.sampling import WholeCatalog
from segmint.infra.errors import UsageError
from tests.support.locations import location_of

ROWS = [
    {"shoot": {"day": 1}, "license": " CC0-1.0 ", "uri": "a.jpg", "note": "é"},
    {"uri": "b.jpg", "license": "MIT", "valid_until": "2030-01-02", "note": None},
]


def rows_of(path: Path) -> list[dict[str, object]]:
    whole = WholeCatalog(location_of(path))
    table = pa.Table.from_batches(list(whole.batches()), schema=whole.schema)
    assert table.schema.names[:3] == ["uri", "license", "valid_until"]
    found: list[dict[str, object]] = table.drop_columns("valid_until").to_pylist()
    return found


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("uri,license,,\na.jpg,MIT,,\n")
    with pytest.raises(UsageError, match="has several columns named ''"):
        WholeCatalog(location_of(tmp_path / "c.csv"))


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_columns_that_segmint_does_not_know_are_kept(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"c.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in ROWS))
    elif kind == "csv":
        path.write_text('shoot,license,uri,note,valid_until\n"{""day"": 1}",CC0-1.0,a.jpg,é,\n,MIT,b.jpg,,2030-01-02\n')
    else:
        table = pa.Table.from_pylist([{"valid_until": None, **row} for row in ROWS])
        pq.write_table(table.set_column(4, "note", table["note"].dictionary_encode()), path)
    shoot = {"day": 1} if kind == "parquet" else '{"day": 1}'
    assert rows_of(path) == [
        {"uri": "a.jpg", "license": "CC0-1.0", "shoot": shoot, "note": "é"},
        {"uri": "b.jpg", "license": "MIT", "shoot": None, "note": None},
    ]


def test_batches_of_both_readers_are_joined_by_row(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text("".join(f'{{"uri": "{n}.jpg", "license": "MIT", "n": {n}}}\n' for n in range(9_000)))
    whole = WholeCatalog(location_of(path))
    rows = [row for batch in whole.batches() for row in batch.to_pylist()]
    assert [row["uri"] for row in rows] == [f"{row['n']}.jpg" for row in rows]
    assert len(rows) == 9_000
