"""Counting a catalog's rows without reading them, and taking an evenly spread sample."""

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segmint.catalogs.source.files import read_rows
from segmint.catalogs.source.normalize import normalize
from segmint.catalogs.source.readers import read_catalog
from segmint.catalogs.source.sampling import count_rows, read_rows_at, spread_evenly
from segmint.infra.errors import UsageError
from tests.support.locations import location_of


def counted_by_reading(path: Path) -> int:
    return sum(batch.num_rows for batch in read_catalog(location_of(path)))


def parquet(path: Path, rows: int, group: int) -> Path:
    table = pa.table({"uri": [f"{i}.jpg" for i in range(rows)], "license": ["CC0-1.0"] * rows})
    pq.write_table(table, path, row_group_size=group)
    return path


def without_data(path: Path) -> None:
    """Overwrite a Parquet file's pages, but not its footer."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size - 8)
        footer = int.from_bytes(file.read(4), "little")
        file.seek(4)
        file.write(b"\0" * (size - 8 - footer - 4))


def test_a_parquet_catalog_of_10_million_rows_is_counted_by_its_footer_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    rows = 1_000_000
    same = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int8()), pa.array(["CC0-1.0"]))
    table = pa.table({"uri": same, "license": same})
    with pq.ParquetWriter(path, table.schema) as writer:
        for _ in range(10):
            writer.write_table(table, row_group_size=100_000)
    assert pq.ParquetFile(path).num_row_groups == 100
    without_data(path)
    before = pa.default_memory_pool().max_memory()
    assert count_rows(location_of(path)) == 10_000_000
    assert pa.default_memory_pool().max_memory() - before < 10_000_000
    with pytest.raises(UsageError):
        read_rows_at(location_of(path), [5])


def test_a_text_catalog_is_counted_as_it_is_read(tmp_path: Path) -> None:
    row = json.dumps({"uri": "a.jpg", "license": "CC0-1.0"})
    lines = tmp_path / "c.jsonl"
    lines.write_text(f"\ufeff{row}\n\n  \n{row}\r\n{row}")
    assert count_rows(location_of(lines)) == counted_by_reading(lines) == 3
    packed = tmp_path / "c.jsonl.gz"
    packed.write_bytes(gzip.compress(lines.read_bytes()))
    assert count_rows(location_of(packed)) == 3


def test_a_line_break_in_quotes_is_not_a_row(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text('caption,uri,license\n"two\nlines\n\n",a.jpg,CC0-1.0\n\n"say ""so""\n",b.jpg,CC0-1.0\nc,c.jpg,\n')
    assert path.read_text().count("\n") == 9
    assert count_rows(location_of(path)) == counted_by_reading(path) == 3
    table = read_rows_at(location_of(path), [1, 2])
    assert table.column("uri").to_pylist() == ["b.jpg", "c.jpg"]


def test_text_of_many_blocks_is_counted_completely(tmp_path: Path) -> None:
    rows = 60_000
    name = "x" * 200
    texts = tmp_path / "c.csv"
    texts.write_text("uri,license\n" + "".join(f'"{name}\n{i}",CC0-1.0\n' for i in range(rows)))
    assert texts.stat().st_size > 12 << 20
    assert count_rows(location_of(texts)) == rows
    lines = tmp_path / "c.jsonl"
    lines.write_text("".join(f'{{"uri": "{name}{i}", "license": "CC0-1.0"}}\n' for i in range(rows)))
    assert count_rows(location_of(lines)) == rows


@pytest.mark.parametrize("name", ["c.csv", "c.jsonl", "c.parquet"])
def test_counting_refuses_the_files_that_reading_refuses(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text('{"uri": 3\n' if name == "c.jsonl" else "uri,caption\na.jpg,x\n")
    with pytest.raises(UsageError) as counting:
        count_rows(location_of(path))
    with pytest.raises(UsageError) as reading:
        counted_by_reading(path)
    assert str(counting.value) == str(reading.value)


def test_an_empty_catalog_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("uri,license\n")
    (tmp_path / "c.jsonl").write_text("\n")
    assert count_rows(location_of(tmp_path / "c.csv")) == 0
    assert count_rows(location_of(tmp_path / "c.jsonl")) == 0
    assert count_rows(location_of(parquet(tmp_path / "c.parquet", 0, 1))) == 0


@pytest.mark.parametrize("name", ["c.csv", "c.jsonl", "c.parquet"])
def test_rows_are_those_that_a_normalized_catalog_has(name: str, tmp_path: Path) -> None:
    path = parquet(tmp_path / "c.parquet", 100, 7)
    if name != "c.parquet":
        rows = pq.read_table(path).to_pylist()
        path = tmp_path / name
        text = "uri,license\n" + "".join(f"{row['uri']},{row['license']}\n" for row in rows)
        path.write_text(text if name == "c.csv" else "".join(json.dumps(row) + "\n" for row in rows))
    ordinals = [0, 6, 7, 50, 99]
    normalize(location_of(path), tmp_path / "part.parquet")
    whole = read_rows(location_of(tmp_path / "part.parquet"), 0, 100)
    assert read_rows_at(location_of(path), ordinals).equals(whole.take(ordinals).combine_chunks())
    assert read_rows_at(location_of(path), []).num_rows == 0


@pytest.mark.parametrize("name", ["c.csv", "c.parquet"])
def test_a_column_that_a_build_ignores_may_hold_anything(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    row = {"uri": "a.jpg", "license": "CC0-1.0", "opt_out": "maybe"}
    if name == "c.csv":
        path.write_text(f"{','.join(row)}\n{','.join(row.values())}\n")
    else:
        pq.write_table(pa.Table.from_pylist([row]), path)
    with pytest.raises(UsageError, match="opt_out"):
        read_rows_at(location_of(path), [0])
    normalize(location_of(path), tmp_path / "part.parquet", ignored=["opt_out"])
    part = read_rows(location_of(tmp_path / "part.parquet"), 0, 1)
    assert read_rows_at(location_of(path), [0], ignored=["opt_out"]).equals(part.combine_chunks())


def test_only_the_row_groups_with_wanted_rows_are_read(tmp_path: Path) -> None:
    path = parquet(tmp_path / "c.parquet", 100, 10)
    group = pq.ParquetFile(path).metadata.row_group(5).column(0)
    with _overwritten(path, group.data_page_offset, 20):
        assert read_rows_at(location_of(path), [49, 60]).column("ordinal").to_pylist() == [49, 60]
        with pytest.raises(UsageError, match="damaged"):
            read_rows_at(location_of(path), [49, 50])


@contextmanager
def _overwritten(path: Path, offset: int, count: int) -> Iterator[None]:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * count)
    yield


@given(st.integers(1, 10**9), st.integers(1, 300))
def test_positions_are_spread_over_all_rows(rows: int, wanted: int) -> None:
    positions = spread_evenly(rows, wanted)
    assert len(positions) == min(rows, wanted)
    assert len(set(positions)) == len(positions)
    assert positions == sorted(positions)
    parts = len(positions)
    for index, position in enumerate(positions):
        assert index * rows // parts <= position < -(-(index + 1) * rows // parts)
