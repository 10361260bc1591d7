"""Rows by ordinals: concatenated ranges are the whole, and row groups that are not needed are not read."""

from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segmint.catalogs.parquet import NORMALIZED, RowGroupWriter
from segmint.catalogs.source.files import NormalizedRows, read_rows
from segmint.catalogs.source.normalize import stage_catalog, write_marked
from segmint.catalogs.source.scan import write_catalog
from segmint.infra.errors import UsageError
from tests.support.locations import location_of

ROWS = 1000


@pytest.fixture(scope="module", params=[0, 1500])
def part(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    """A normalized catalog in row groups of 64, and its first ordinal."""
    folder = tmp_path_factory.mktemp("rows")
    source = ({"uri": f"{i}.jpg", "license": "CC0-1.0"} for i in range(ROWS))
    write_catalog(source, location_of(folder / "c.parquet"))
    staged, _ = stage_catalog(location_of(folder / "c.parquet"), folder)
    whole = write_marked(staged, folder / "n.parquet", folder, first_ordinal=request.param)
    with RowGroupWriter(folder / "small-groups.parquet", NORMALIZED, row_group_rows=64) as writer:
        writer.add(pq.read_table(whole.path).to_batches())
    return str(folder / "small-groups.parquet"), request.param


@given(cuts=st.lists(st.integers(0, ROWS), max_size=6))
@settings(max_examples=20)
def test_concatenated_ranges_are_the_whole(part: tuple[str, int], cuts: list[int]) -> None:
    uri, first = part
    borders = [first, *(first + cut for cut in sorted(cuts)), first + ROWS]
    pieces = [read_rows(location_of(uri), a, b) for a, b in pairwise(borders)]
    assert [p.num_rows for p in pieces] == [b - a for a, b in pairwise(borders)]
    whole = pa.concat_tables(pieces)
    assert whole.schema.equals(NORMALIZED)
    assert whole.column("ordinal").to_pylist() == list(range(first, first + ROWS))
    assert whole.equals(pq.read_table(uri))


def test_single_rows_are_taken_from_anywhere(part: tuple[str, int]) -> None:
    uri, first = part
    with NormalizedRows(location_of(uri)) as rows:
        wanted = [first - 1, first, first + 63, first + 64, first + 65, first + ROWS - 1, first + ROWS]
        taken = rows.take(wanted)
        assert taken.column("ordinal").to_pylist() == wanted[1:-1]
        assert taken.slice(2, 1).equals(rows.read(first + 64, first + 65))
        assert rows.take([]).equals(NORMALIZED.empty_table())
        assert rows.take(wanted, ["uri"]).equals(taken.select(["uri"]))


def test_ordinals_outside_the_part_give_nothing(part: tuple[str, int]) -> None:
    uri, first = part
    assert read_rows(location_of(uri), first + ROWS, first + ROWS + 5).num_rows == 0
    assert read_rows(location_of(uri), first + ROWS - 2, first + ROWS + 5).num_rows == 2
    assert read_rows(location_of(uri), 7, 7).equals(NORMALIZED.empty_table())


def test_damage_in_other_row_groups_goes_unnoticed(part: tuple[str, int], tmp_path: Path) -> None:
    """This shows that they were not read."""
    uri, first = part
    metadata = pq.read_metadata(uri)
    data = bytearray(Path(uri).read_bytes())
    for group in range(metadata.num_row_groups):
        if group not in (0, 5):  # the first one's ordinal says where the part begins
            for index in range(metadata.num_columns):
                column = metadata.row_group(group).column(index)
                start = column.dictionary_page_offset or column.data_page_offset
                data[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(bytes(data))
    with NormalizedRows(location_of(damaged)) as rows:
        start = first + 5 * 64
        assert rows.read(start, start + 64).column("ordinal").to_pylist() == list(range(start, start + 64))
        with pytest.raises(UsageError, match=r"damaged\.parquet is not a normalized catalog"):
            rows.read(start, start + 65)


def test_another_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"ordinal": [0]}), path)
    with pytest.raises(UsageError, match=r"other\.parquet is not a normalized catalog"):
        NormalizedRows(location_of(path))
    junk_footer = b"PAR1" + b"\xff" * 64 + (64).to_bytes(4, "little") + b"PAR1"
    for data in (b"text", junk_footer):
        path.write_bytes(data)
        with pytest.raises(UsageError, match="is not a normalized catalog"):
            NormalizedRows(location_of(path))


def test_pages_that_cannot_be_read_are_named(part: tuple[str, int], tmp_path: Path) -> None:
    uri, first = part
    chunk = pq.ParquetFile(uri).metadata.row_group(0).column(NORMALIZED.get_field_index("uri"))
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data, path = Path(uri).read_bytes(), tmp_path / "part.parquet"
    path.write_bytes(data[:start] + b"\xff" * 64 + data[start + 64 :])
    with NormalizedRows(location_of(path)) as rows:
        for read in (rows.read(first + 64, first + 70), *rows.batches(["ordinal"], 100)):
            assert read.num_rows
        with pytest.raises(UsageError, match=r"part\.parquet is not a normalized catalog"):
            rows.read(first, first + 9)
        with pytest.raises(UsageError, match=r"part\.parquet is not a normalized catalog"):
            rows.take([first + 5])
        with pytest.raises(UsageError, match=r"part\.parquet is not a normalized catalog"):
            list(rows.batches(["uri"], 100))
