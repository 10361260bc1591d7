"""The large dataset is a whole one, made of the rows of a small one."""

from pathlib import Path

import pytest

from benchmarks.datasets.large_dataset import LargeDataset
from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.pipeline.quality.audit.audit import AuditOptions, audit_dataset
from segmint.pipeline.quality.statistics.masks import open_tables
from tests.support.locations import location_of


@pytest.mark.long
def test_rows_are_repeated_and_renumbered_and_the_audit_finds_nothing(small_dataset: Path, tmp_path: Path) -> None:
    made = LargeDataset(small_dataset, tmp_path / "large", images=25, masks=30, images_per_shard=10)
    made.begin()
    made.commit(0, 1)
    report = audit_dataset(location_of(made.folder), AuditOptions())
    assert [finding.line() for finding in report.findings] == []
    assert (report.checked.images, list(report.not_built)) == (10, [(1, 2)])

    made.commit(1, made.shards)
    report = audit_dataset(location_of(made.folder), AuditOptions())
    assert [finding.line() for finding in report.findings] == []
    checked = report.checked
    assert (checked.images, checked.masks, checked.jsons, checked.commits, checked.jpegs) == (25, 750, 25, 3, 0)
    assert checked.masks_decoded == 750
    assert len(open_dataset(str(made.folder))) == 25

    with open_tables(location_of(made.folder)) as tables, open_tables(location_of(small_dataset)) as source:
        numbers = tables.query("SELECT ordinal, id, count(*) AS n FROM images GROUP BY ALL ORDER BY ALL").to_pylist()
        assert numbers == [{"ordinal": i, "id": i + 1, "n": 1} for i in range(25)]
        masks = tables.query("SELECT count(DISTINCT annotation_id) AS n, min(shard) AS a, max(shard) AS b FROM masks")
        assert masks.to_pylist() == [{"n": 750, "a": 0, "b": 2}]
        codes = "SELECT DISTINCT segmentation.counts AS code FROM masks ORDER BY code"
        real = source.query(codes).column("code").to_pylist()
        assert set(tables.query(codes).column("code").to_pylist()) <= set(real)
        scores = tables.query("SELECT count(DISTINCT predicted_iou) AS n FROM masks").to_pylist()
        assert scores == [{"n": 750}]
