"""Looking at images in rounds: what failed is tried again, and a child's first death is never the last word."""

from pathlib import Path
from typing import Any

import pytest
import ray.exceptions
from PIL import Image

from segmint.catalogs.source.normalize import normalize
from segmint.infra.ray_session import Cluster
from segmint.infra.storage.storage import Storage
from segmint.operators.curate.features import CurateTask, part_name
from segmint.operators.curate.inspect import InspectionConfig
from segmint.operators.prepare.ingest import IngestConfig
from segmint.pipeline.building.curate import inspecting
from segmint.pipeline.config.config import ResourcesConfig
from tests.support.builds import write_catalog
from tests.support.locations import location_of


def test_a_part_that_a_round_did_not_try_keeps_its_second_try(
    tmp_path: Path, local_ray: Cluster, monkeypatch: pytest.MonkeyPatch
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
            raise ray.exceptions.RayError("a node is lost")
        original(task, *arguments)

    monkeypatch.setattr(inspecting, "_inspect_window", failing_once)
    looked = inspecting.inspect_images(task, rows, 1, ResourcesConfig(), retry_wait_s=0)
    assert rounds == [frozenset(), frozenset(), frozenset({0})]
    assert (looked.parts, looked.suspects) == (1, {0})
    assert [entry.name for entry in parts.list()] == [part_name(0, suspect=True)]
