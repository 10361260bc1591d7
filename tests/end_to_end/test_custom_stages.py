"""Custom stages in real builds: the example of the page, stages that are killed, and stages that break the rules."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.infra.errors import UsageError
from segmint.infra.ray_session import Cluster
from segmint.infra.storage.storage import Storage
from segmint.pipeline.building.dataset import open_or_create
from segmint.pipeline.config.config import load_config
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.builds import (
    AS_SHIPPED,
    NO_DETECTORS,
    ONE_EACH,
    ROOT,
    digests,
    segmint,
    segmint_here,
    small_catalog,
    write_config,
)
from tests.support.cells import examples_of
from tests.support.custom_stages import KILLS
from tests.support.locations import location_of
from tests.support.photographs import photograph
from tests.support.two_masks import TwoMaskSegment

pytestmark = pytest.mark.ray

HERE = "tests.support.custom_stages"
QUICK: dict[str, Any] = {"deidentify": NO_DETECTORS, "model": AS_SHIPPED, "resources": ONE_EACH}
STUBBED = ROOT / "benchmarks" / "building" / "stubbed_build.py"


def variance(pixels: np.ndarray) -> float:
    return float(cv2.Laplacian(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


def table(dataset: Path, kind: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.ParquetDataset(sorted((dataset / kind).iterdir())).read().to_pylist()
    return rows


def test_the_example_of_the_page_runs_in_a_build(
    tmp_path: Path, local_ray: Cluster, worker_modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example, from_python, _ = examples_of(ROOT / "docs" / "stages.md")
    assert len(example.splitlines()) <= 32
    (worker_modules / "blur.py").write_text(example, encoding="utf-8")
    monkeypatch.syspath_prepend(str(worker_modules))
    catalog = small_catalog(tmp_path / "photos", count=5)
    variances = sorted(variance(np.asarray(Image.open(tmp_path / "photos" / f"photo_00{i}.jpg"))) for i in (0, 1, 3))
    blur = {"stage": "blur.Blur", "after": "prepare", "arguments": {"least": round(sum(variances[:2]) / 2)}}
    mean = {"stage": f"{HERE}.Mean", "after": "segment", "batch_size": 1, "resources": {"actors": [1, 2]}}
    stages = [blur, mean, {"stage": f"{HERE}.Ranks"}]
    config = write_config(tmp_path / "build.yaml", catalog, tmp_path / "dataset", stages=stages, **QUICK)
    monkeypatch.setattr("segmint.pipeline.build.Segment", TwoMaskSegment)
    assert "blurry" in segmint_here("build", config)

    dataset = tmp_path / "dataset"
    assert sorted((row["stage"], row["reason"]) for row in table(dataset, "rejects")) == [
        ("catalog", "license_not_allowed"),
        ("read", "not_found"),
        ("stage_blur", "blurry"),
    ]
    images = {row["id"]: row for row in table(dataset, "images")}
    samples = list(open_dataset(str(dataset)))
    assert len(samples) == len(images) == 2
    for sample in samples:
        row, pixels = images[sample.id], np.asarray(sample.image)
        assert row["stage_blur"] == {"variance": variance(pixels)}
        assert row["stage_mean"] == {"gray": float(pixels.mean()), "sides": list(pixels.shape[:2])}
    masks = table(dataset, "masks")
    assert sum(mask["label"] == "größte" for mask in masks) == 2
    assert {mask["stage_rank"]["place"] == 0 for mask in masks if mask["label"]} == {True}
    assert [finding.line() for finding in audit_integrity(location_of(dataset)).findings] == []

    manifest = json.loads((dataset / "dataset.json").read_bytes())
    assert list(manifest["config"]["stages"]) == ["blur", "mean", "rank"]
    assert [column["name"] for column in manifest["stages"]] == ["blur", "mean", "rank"]
    open_or_create(load_config(str(config)), Storage())
    for change, told in (
        ({"arguments": {"least": 1}}, f"stages.blur.arguments.least: {blur['arguments']['least']} before, 1 now"),
        ({"after": "segment"}, "stages.blur.after: 'prepare' before, 'segment' now"),
    ):
        write_config(config, catalog, dataset, stages=[{**blur, **change}, *stages[1:]], **QUICK)
        with pytest.raises(UsageError) as caught:
            open_or_create(load_config(str(config)), Storage())
        assert told in str(caught.value)
    monkeypatch.setattr("tests.support.custom_stages.Ranks.version", "2")
    write_config(config, catalog, dataset, stages=stages, **QUICK)
    with pytest.raises(UsageError, match=r"stages\.rank\.version: '1' before, '2' now"):
        open_or_create(load_config(str(config)), Storage())

    began: list[Any] = []
    monkeypatch.setattr("segmint.pipeline.build.run_build", lambda config, **_: began.append(config.stages))
    write_config(tmp_path / "build.yaml", catalog, dataset, **QUICK)
    monkeypatch.chdir(tmp_path)
    exec(from_python, {})
    ((stage,),) = began
    assert (stage.stage, stage.after, stage.arguments) == ("blur.Blur", "prepare", {"least": 50})


def stubbed(folder: Path, rows: int, stage: dict[str, Any], kills: int = 0) -> tuple[Path, str]:
    """Build with stubs of the other stages; return the dataset and what was printed."""
    folder.mkdir()
    catalog = folder / "catalog.jsonl"
    lines = [json.dumps({"uri": f"{row}.jpg", "license": "CC0-1.0"}) + "\n" for row in range(rows)]
    catalog.write_text("".join(lines))
    config = write_config(
        folder / "build.yaml", catalog, folder / "dataset", images_per_shard=5, deidentify=NO_DETECTORS, stages=[stage]
    )
    marks = folder / "kills"
    marks.mkdir()
    for number in range(kills):
        (marks / str(2 + number * rows // max(1, kills))).touch()
    done = subprocess.run(
        [sys.executable, STUBBED, config, folder / "accounting.json"],
        cwd=ROOT,
        env={**os.environ, KILLS: str(marks)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    assert list(marks.iterdir()) == []
    return folder / "dataset", done.stdout


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_build_whose_stage_is_killed_gives_the_same_bytes(tmp_path: Path) -> None:
    stage = {"stage": f"{HERE}.Killed", "resources": {"actors": 2}}
    undisturbed, _ = stubbed(tmp_path / "undisturbed", 40, stage)
    killed, printed = stubbed(tmp_path / "killed", 40, stage, kills=10)
    assert len(table(undisturbed, "images")) == 40
    expected, found = digests(undisturbed), digests(killed)
    for files in (expected, found):
        del files["dataset.json"]  # it contains the SHA-256 of the catalog's file and the catalog's hash, and is equal
    assert found == expected, printed


@pytest.mark.long
def test_a_stage_that_drops_rows_ends_the_build(tmp_path: Path) -> None:
    stage = {"stage": f"{HERE}.Faulty", "arguments": {"function": "drop"}, "after": "prepare"}
    dataset, printed = stubbed(tmp_path / "dropped", 4, stage)
    errors = [line for line in printed.splitlines() if line.startswith("segmint.")]
    assert errors[-1].partition(": ")[2].startswith("the stage faulty returned 1 rows for 2: it must return each row")
    assert list((dataset / "commits").glob("*")) == []


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_an_image_that_ends_the_process_of_a_stage_is_rejected_alone(tmp_path: Path) -> None:
    catalog = small_catalog(tmp_path / "photos", count=6)
    Image.fromarray(photograph("rocket", (134, 90))).save(tmp_path / "photos" / "photo_001.jpg")
    for after in ("prepare", "describe"):
        config = write_config(
            tmp_path / f"{after}.yaml",
            catalog,
            tmp_path / after,
            deidentify=NO_DETECTORS,
            stages=[{"stage": f"{HERE}.Deadly", "after": after}, {"stage": f"{HERE}.Mean"}],
        )
        segmint("build", config, timeout=900)
        rejects = {row["ordinal"]: row for row in table(tmp_path / after, "rejects")}
        assert (rejects[1]["stage"], rejects[1]["reason"]) == ("stage_deadly", "killed_worker")
        assert "ends the process of stage_deadly, 2 times alone" in rejects[1]["detail"]
        assert sorted(rejects) == [1, 2, 5]
        assert len(table(tmp_path / after, "images")) == 3
