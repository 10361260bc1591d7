"""Looking at images in rounds: what failed is tried again, and a child's first death is never the last word."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray.exceptions
from PIL import Image

from segmint.catalogs.source.normalize import normalize
from segmint.catalogs.source.rows import NormalizedRows
from segmint.infra import stopping
from segmint.infra.ray_session import Cluster
from segmint.infra.storage.storage import Storage
from segmint.operators.curate.features import CurateTask, part_name
from segmint.operators.curate.inspect import InspectionConfig
from segmint.operators.prepare.ingest import IngestConfig
from segmint.pipeline.building.curate import inspecting
from segmint.pipeline.building.execution.stage_watch import StalledError
from segmint.pipeline.config.config import ResourcesConfig
from tests.support.builds import write_catalog
from tests.support.locations import location_of


@pytest.mark.parametrize("error", [ray.exceptions.RayError("a node is lost"), StalledError("a node was lost")])
def test_a_part_that_a_round_did_not_try_keeps_its_second_try(
    tmp_path: Path, local_ray: Cluster, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    Image.new("RGB", (4000, 3000)).save(tmp_path / "large.png")
    catalog = write_catalog(tmp_path / "c.jsonl", [{"uri": "large.png", "license": "MIT"}])
    rows = location_of(normalize(location_of(catalog), tmp_path / "c.parquet").path)
    parts = location_of(tmp_path / "parts")
    config = InspectionConfig(IngestConfig(), mirror=False, opt_outs=False, scorers=())
    task = CurateTask(config, Storage(), str(catalog), parts, memory_limit=16 << 20)
    original, rounds = inspecting._inspect_window, []

    def failing_once(task: CurateTask, *arguments: Any) -> None:
        rounds.append(task.again)
        if len(rounds) == 1:
            raise error
        original(task, *arguments)

    monkeypatch.setattr(inspecting, "_inspect_window", failing_once)
    looked = inspecting.inspect_images(task, rows, 1, ResourcesConfig(), retry_wait_s=0)
    assert rounds == [frozenset(), frozenset(), frozenset({0})]
    assert (looked.parts, looked.suspects) == (1, {0})
    assert [entry.name for entry in parts.list()] == [part_name(0, suspect=True)]


class CountedRows(NormalizedRows):
    """Rows of a catalog, with the number of those that were kept after reading."""

    kept = 0

    def read(self, start: int, stop: int) -> pa.Table:
        return self._count(super().read(start, stop))

    def take(self, *arguments: Any) -> pa.Table:
        return self._count(super().take(*arguments))

    def _count(self, rows: pa.Table) -> pa.Table:
        self.kept += rows.num_rows
        return rows


def test_parts_that_are_far_apart_are_read_without_the_rows_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that resumes may miss the first and the last part of a hundred million rows."""
    monkeypatch.setattr(inspecting, "PART_ROWS", 4)
    rows = [{"uri": f"{ordinal}.png", "license": "MIT"} for ordinal in range(302)]
    catalog = normalize(location_of(write_catalog(tmp_path / "c.jsonl", rows)), tmp_path / "c.parquet")
    with CountedRows(location_of(catalog.path)) as source:
        tables = [table["ordinal"].to_pylist() for table in inspecting._tables(source, [0, 100, 104, 300])]
        assert tables == [[0, 1, 2, 3], [100, 101, 102, 103], [104, 105, 106, 107], [300, 301]]
        assert source.kept == 14


def test_an_interrupt_that_comes_out_as_an_error_of_ray_ends_the_run(
    tmp_path: Path, local_ray: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"uri": "absent.png", "license": "MIT"}]
    catalog = normalize(location_of(write_catalog(tmp_path / "c.jsonl", rows)), tmp_path / "c.parquet")
    config = InspectionConfig(IngestConfig(), mirror=False, opt_outs=False, scorers=())
    task = CurateTask(config, Storage(), str(tmp_path / "c.jsonl"), location_of(tmp_path / "parts"))

    def interrupted(*_: Any) -> None:
        monkeypatch.setattr(stopping._State, "requested", True)
        raise ray.exceptions.RayError("the driver was interrupted")

    monkeypatch.setattr(stopping._State, "raised", False)
    monkeypatch.setattr(inspecting, "_inspect_window", interrupted)
    with pytest.raises(KeyboardInterrupt):
        inspecting.inspect_images(task, location_of(catalog.path), 1, ResourcesConfig(), retry_wait_s=0)
