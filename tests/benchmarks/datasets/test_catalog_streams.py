"""The benchmark of catalogs: each format's rows all come, and memory stays flat while they do."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from benchmarks.datasets import catalog_streams
from benchmarks.datasets.catalog_streams import COLUMNS, WRITERS, main, stream, values
from segmint.catalogs.source.readers import read_catalog
from tests.support.locations import location_of


@pytest.mark.parametrize("ending", list(WRITERS))
def test_a_written_catalog_repeats_its_first_rows(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_streams, "DISTINCT", 100)
    path = tmp_path / f"c{ending}"
    WRITERS[ending](path, 250)
    table = pa.Table.from_batches(list(read_catalog(location_of(path))))
    rows = list(zip(*(table.column(name).to_pylist() for name in COLUMNS), strict=True))
    distinct = list(values(0, 100))
    assert rows == [*distinct, *distinct, *distinct[:50]]
    assert len(set(rows)) == 100


@pytest.mark.usefixtures("processes")
def test_results_count_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "result.json"
    monkeypatch.setattr("sys.argv", ["x", "--rows=3000", "--folder", str(tmp_path), "--output", str(output)])
    main()
    result = json.loads(output.read_text())
    assert [each["ending"] for each in result["formats"]] == list(WRITERS)
    for each in result["formats"]:
        assert each["rows"] == 3000
        assert each["rows_per_s"] > 0
        assert min(each["peak_mib"], each["most_mib"]["second_half"]) > 50
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.long
@pytest.mark.parametrize("ending", list(WRITERS))
def test_memory_is_flat_over_ten_million_rows(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"c{ending}"
    WRITERS[ending](path, 10_000_000)
    streamed = catalog_streams.in_process(stream, str(path))
    assert streamed["rows"] == 10_000_000
    if ending != ".parquet":
        assert streamed["rise_mib"] < 20
    # pyarrow reads row groups ahead, so memory varies by up to 200 MiB. Kept rows take 1.6 times as much.
    assert streamed["most_mib"]["second_half"] < 1.25 * streamed["most_mib"]["first_half"]
