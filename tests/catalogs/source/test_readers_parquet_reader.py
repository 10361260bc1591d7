"""Parquet catalogs: errors say what is wrong with a file or a column."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segmint.catalogs.source.conform import InvalidValue
from segmint.catalogs.source.readers import read_catalog
from segmint.catalogs.source.sampling import count_rows, read_rows_at
from segmint.infra.errors import UsageError
from tests.support.locations import location_of


def read(path: Path) -> pa.Table:
    return pa.Table.from_batches(list(read_catalog(location_of(path))))


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


@pytest.mark.parametrize("seed", range(40))
def test_any_damage_to_a_file_is_an_error_that_names_it(tmp_path: Path, seed: int) -> None:
    """Arrow raises its own errors, `OSError`, `IndexError` and others for a junk footer."""
    path = tmp_path / "c.parquet"
    rows = {"uri": [f"{i}.jpg" for i in range(50)], "license": ["CC0-1.0"] * 50, "redistributable": [True] * 50}
    pq.write_table(pa.table(rows), path, row_group_size=20)
    random = np.random.default_rng(seed)
    data = bytearray(path.read_bytes())
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    if seed % 4 == 0:
        data[footer:-8] = random.bytes(len(data) - 8 - footer)
    else:
        for place in random.integers(footer if seed % 4 < 3 else 0, len(data) - 8, size=5):
            data[place] = random.integers(256)
    path.write_bytes(bytes(data))
    for use in (read, lambda path: count_rows(location_of(path)), lambda path: read_rows_at(location_of(path), [30])):
        try:
            use(path)
        except UsageError as error:
            assert str(path) in str(error)  # noqa: PT017 - damage may also go unseen


def test_a_date_outside_of_the_calendar_is_named(tmp_path: Path) -> None:
    """Databases write infinity so; Python has no such date."""
    path = tmp_path / "c.parquet"
    for days, kind, found in (
        ([0, 2**31 - 1], pa.int32(), "5881580-07-11"),
        ([None, -(2**31)], pa.int32(), "-5877641-06-23"),
        ([2932896, 2932897], pa.int32(), "10000-01-01"),
        ([86_400_000, 86_400_000 * 3_000_000], pa.int64(), "10183-09-21"),
    ):
        dates = pa.array(days, kind).view(pa.date32() if kind == pa.int32() else pa.date64())
        pq.write_table(pa.table({"uri": ["a", "b"], "license": ["x", "x"], "valid_until": dates}), path)
        said = rf"c\.parquet, row 2, column valid_until: found the date {found}; expected a date from"
        with pytest.raises(UsageError, match=said):
            read(path)
        problems: list[InvalidValue] = []
        (batch,) = read_catalog(location_of(path), problems.append)
        assert [problem.row for problem in problems] == [2]
        assert batch.column("valid_until")[1].as_py() is None


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
    message = r"c\.parquet: the file is damaged: its footer says 8191 rows, but 1000 were read"
    with pytest.raises(UsageError, match=message):
        read(path)
