"""The large dataset is a dataset, and the measurement says what was measured."""

import json
from pathlib import Path

from benchmarks.audit_scale import make_dataset, measure, row, told
from benchmarks.measuring import RESULTS, ROOT
from catalogs.reader import open_dataset
from infra.storage import Storage
from pipeline.tables import open_tables


def test_rows_are_repeated_and_numbered_anew(minted: Path, tmp_path: Path) -> None:
    made = make_dataset(minted, tmp_path / "large", images=25, masks=30, images_per_shard=10)
    assert (made["images"], made["masks"], made["shards"]) == (25, 750, 3)
    assert len(open_dataset(str(tmp_path / "large"))) == 25
    with open_tables(str(tmp_path / "large"), Storage()) as tables, open_tables(str(minted), Storage()) as source:
        numbers = tables.query("SELECT ordinal, id, count(*) AS n FROM images GROUP BY ALL ORDER BY ALL").to_pylist()
        assert numbers == [{"ordinal": i, "id": i + 1, "n": 1} for i in range(25)]
        masks = tables.query("SELECT count(DISTINCT annotation_id) AS n, min(shard) AS a, max(shard) AS b FROM masks")
        assert masks.to_pylist() == [{"n": 750, "a": 0, "b": 2}]
        codes = "SELECT DISTINCT segmentation.counts AS code FROM masks ORDER BY code"
        real = source.query(codes).column("code").to_pylist()
        assert set(tables.query(codes).column("code").to_pylist()) <= set(real)
    run = measure(tmp_path / "large", 1, 3, 5, "1GB", tmp_path)
    assert (run["images"], run["masks"], run["shards"]) == (10, 300, 1)
    assert run["peak_mib"] >= run["mib_before"] > 0
    assert told(run).startswith("300 masks of 10 images in ")


def test_the_page_has_the_recorded_figures() -> None:
    page = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")
    result = json.loads((RESULTS / "audit_scale.json").read_text())
    assert [line for line in page.splitlines() if line.startswith("| 1")] == [row(run) for run in result["runs"]]
    assert f"load average of {result['machine']['load_average_before']:g}" in page
