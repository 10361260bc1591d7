"""Parquet catalogs: errors say what is wrong with a file or a column."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segmint.catalogs.source.parquet_reader import read_parquet
from segmint.infra.errors import UsageError
from tests.support.locations import location_of


def read(path: Path) -> pa.Table:
    return pa.Table.from_batches(list(read_parquet(location_of(path))))


def test_a_column_of_a_wrong_type_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"uri": ["a"], "license": [4]}), path)
    with pytest.raises(UsageError, match=r"c\.parquet, column license, from row 1: .*int64; expected string"):
        read(path)
    pq.write_table(pa.table({"uri": ["a"], "license": ["x"], "redistributable": ["true"]}), path)
    with pytest.raises(UsageError, match=r"column redistributable.*expected bool"):
        read(path)


def test_a_damaged_parquet_file_says_how_far_it_went(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    rows = 40_000
    uris = [f"{i * 2654435761 % 2**32}.jpg" for i in range(rows)]
    pq.write_table(pa.table({"uri": uris, "license": ["CC0-1.0"] * rows}), path, row_group_size=20_000)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    path.write_bytes(bytes(data))
    with pytest.raises(UsageError, match=r"c\.parquet: the file is damaged after row \d+"):
        read(path)


def test_a_footer_with_a_wrong_row_count_is_detected(tmp_path: Path) -> None:
    def compact(number: int) -> bytes:  # two bytes of Thrift's zigzag encoding
        return bytes([(2 * number) & 0x7F | 0x80, 2 * number >> 7])

    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"uri": [f"{i}.jpg" for i in range(1000)], "license": ["x"] * 1000}), path)
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    lies = data[footer:].replace(compact(1000), compact(8191))
    assert lies != data[footer:]
    path.write_bytes(data[:footer] + lies)
    with pytest.raises(UsageError, match=r"c\.parquet: the file is damaged: its footer says 8191 rows, 1000 were read"):
        read(path)
