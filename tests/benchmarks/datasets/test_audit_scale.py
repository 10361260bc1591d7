"""The measurement says what was measured, and ends where an audit finds anything; pages have its figures."""

import json
from pathlib import Path

import pytest

from benchmarks.datasets.audit_scale import audit_row, measure_audit, measure_statistics, statistics_row, summary_line
from benchmarks.datasets.large_dataset import LargeDataset
from benchmarks.measuring import RESULTS, ROOT
from tests.support.planting import ShardEdit


@pytest.fixture
def large(small_dataset: Path, tmp_path: Path) -> Path:
    """A dataset of 20 images with 30 masks each, in two shards."""
    made = LargeDataset(small_dataset, tmp_path / "large", images=20, masks=30, images_per_shard=10)
    made.begin()
    made.commit(0, 2)
    return made.folder


@pytest.mark.long
def test_statistics_are_measured(large: Path, tmp_path: Path) -> None:
    found = measure_statistics(large, 5, "1GB", tmp_path / "spill")
    assert (found["images"], found["masks"]) == (20, 600)
    assert found["near_duplicates"]["images_sampled"] >= 5
    assert found["peak_mib"] >= found["mib_before"] > 0
    assert summary_line(found).startswith("600 masks of 20 images in ")


@pytest.mark.ray
@pytest.mark.long
def test_the_audit_is_measured_with_its_workers(large: Path) -> None:
    found = measure_audit(large, ray_from=0)
    assert (found["images"], found["masks"]) == (20, 600)
    assert found["peak_mib"] >= found["mib_before"] > 0
    assert found["workers"] >= 1
    assert found["worker_mib"] > 0
    assert found["cpu_us_a_mask"]["workers"] > 0


@pytest.mark.long
def test_findings_end_the_measurement(large: Path) -> None:
    ShardEdit(1, lambda taken: taken.edit_member(0, lambda data: data + b" "))(large)
    with pytest.raises(SystemExit, match="other_json"):
        measure_audit(large)


@pytest.mark.parametrize(("page", "row"), [("report.md", statistics_row), ("audit.md", audit_row)])
def test_the_page_has_the_recorded_figures(page: str, row) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    result = json.loads((RESULTS / "audit_scale.json").read_text())
    assert [line for line in text.splitlines() if line.startswith("| 1")] == [row(run) for run in result["runs"]]
