"""The detector process of a node as a Ray actor. The GPU is a slot of a local Ray; the detectors run on its CPU."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from PIL import Image

from segmint.catalogs.parquet import NORMALIZED
from segmint.infra.ray_session import Cluster, observe
from segmint.operators.prepare.detector_process import DetectorsGoneError
from segmint.operators.prepare.prepare import Prepare
from segmint.pipeline.building.execution.stage_watch import start_detectors
from segmint.pipeline.building.execution.stages import NodeDetectors, Stages, lay_out
from tests.pipeline.building.execution.test_stages import opened
from tests.support.torchscript import MagentaDetector, saved

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A Ray that believes it has one GPU."""
    ray.init(address="local", num_cpus=8, num_gpus=1, object_store_memory=100_000_000, include_dashboard=False)
    yield observe(local=True)
    ray.shutdown()


@pytest.fixture(scope="module")
def stages(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    folder = tmp_path_factory.mktemp("stages")
    path = saved(MagentaDetector(1), folder / "faces.ts")
    detectors = {"faces": {"detector": str(path)}, "plates": {"detector": "none"}}
    laid = lay_out(*opened(folder, deidentify=detectors, model={"device": "cpu"}), cluster)
    assert start_detectors(laid) is laid, "on CPUs there is nothing to start"
    return replace(laid, detectors_share=0.1)


def prepare(arguments: tuple[Any, ...], image: str) -> dict[str, Any]:
    row = {"ordinal": 0, "id": 1, "image_id": "0", "license": "CC0-1.0", "uri": image}
    stage = Prepare(*arguments)
    try:
        table = pa.Table.from_pylist([{**dict.fromkeys(NORMALIZED.names), **row}], schema=NORMALIZED)
        (found,) = stage(table).to_pylist()
    finally:
        stage.close()
    return dict(found)


def listens(address: str) -> bool:
    """Whether any process has a socket of this name, by Linux's list."""
    return address in Path("/proc/net/unix").read_text()


def test_rows_are_searched_by_the_process_of_their_node_which_ends_with_its_actor(
    stages: Stages, cluster: Cluster, tmp_path: Path
) -> None:
    image = Image.new("RGB", (80, 70), "gray")
    image.paste((255, 0, 255), (20, 20, 50, 50))
    image.save(tmp_path / "spot.png")
    assert cluster.gpu_nodes == 1
    assert cluster.gpu_node_cpus == 8
    started = start_detectors(stages)
    again = start_detectors(stages, started)
    assert isinstance(again.detectors, NodeDetectors)
    assert again.detectors == started.detectors, "processes of nodes that are still there are kept"
    task = ray.remote(num_cpus=1, label_selector=dict(again.prepare_nodes))(prepare)
    row = ray.get(task.remote(again.prepare_call, str(tmp_path / "spot.png")), timeout=120)
    assert (row["fault"], row["reason"], row["faces"]) == (None, None, 1)
    assert ray.available_resources()["GPU"] == pytest.approx(0.9)
    ((holder, address),) = again.detectors.holders.values()
    assert listens(address)
    ray.kill(holder)
    deadline = time.monotonic() + 120
    while listens(address):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    replaced = start_detectors(stages, again)
    assert replaced.detectors.holders.keys() == again.detectors.holders.keys()
    assert replaced.detectors != again.detectors, "an actor that died for good is replaced"
    without = start_detectors(replace(stages, gpus=replace(stages.gpus, name="other")), replaced)
    assert without.prepare_nodes == replaced.prepare_nodes, "without a GPU node, the actors wait for the former one"


def test_a_node_without_a_detector_process_ends_the_window(cluster: Cluster) -> None:
    with pytest.raises(DetectorsGoneError, match="had no GPU when the window began"):
        NodeDetectors({}).ready()
