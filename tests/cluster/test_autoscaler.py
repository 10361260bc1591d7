"""Builds on clusters that Ray's own autoscaler grows: its current version, with nodes that are processes here."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.building.scale import write_build
from segmint.catalogs.dataset.commits import CommitLog
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from tests.support.clusters import RayCluster
from tests.support.runs import running, title, wait_for

pytestmark = [
    pytest.mark.ray,
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="the groups of an autoscaler are read from /proc"),
]

PROGRAM = ("benchmarks/building/stubbed_build.py",)
NODE_CPUS = 6
MOST = 3
ARRIVAL_S = 30
WORKS_WITHIN_S = 60


@pytest.fixture
def cluster() -> Iterator[RayCluster]:
    """A head without CPUs, and an autoscaler that may add three nodes, each of which takes half a minute."""
    cluster = RayCluster()
    try:
        seconds = {"SEGMINT_TEST_NODE_SECONDS": str(ARRIVAL_S), "SEGMINT_STUB_IMAGE_S": "1.5"}
        cluster.add_autoscaler(NODE_CPUS, MOST, **seconds)
        yield cluster
    finally:
        cluster.close()


def configured(folder: Path, rows: int, **resources: Any) -> tuple[Path, str]:
    """Write the config of a build of stubbed images in one window. Return its path and the path of its accounting."""
    config = write_build(folder, rows, images_per_shard=10, rows_per_block=2, resources=resources)
    return config, str(folder / "accounting.json")


def segment_actors(node: psutil.Process) -> int:
    """Return the number of segment actors on a node that have finished starting."""
    try:
        titles = [title(child) for child in node.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    return sum("MapWorker(MapBatches(StubbedSegment))" in each and "__init__" not in each for each in titles)


def demand(cluster: RayCluster) -> int:
    """Return the number of pending tasks that request a whole node, so that the autoscaler adds one for each."""
    from ray._raylet import GcsClient
    from ray.autoscaler.v2.sdk import get_cluster_resource_state

    time.sleep(0.5)
    state = get_cluster_resource_state(GcsClient(cluster.environment["RAY_ADDRESS"]))
    return sum(
        each.count for each in state.pending_resource_requests if each.request.resources_bundle.get("CPU") == NODE_CPUS
    )


def test_nodes_that_arrive_during_a_window_work_in_it_and_a_killed_driver_asks_for_none(
    cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, cluster.environment[name])
    config, accounting = configured(tmp_path, 2000)
    works: dict[int, float] = {}  # seconds from each node's start until a segment actor of it took images
    with running(config, accounting, program=PROGRAM, **cluster.environment) as run:
        wait_for("a request for all nodes", lambda: demand(cluster) == MOST, run)

        def all_work() -> bool:
            time.sleep(0.5)
            for node in cluster.raylets():
                if segment_actors(node):
                    works.setdefault(node.pid, time.time() - node.create_time())
            return len(works) == MOST

        wait_for("segment actors on all nodes", all_work, run, timeout=300)
        assert "window" not in run.told(), "a window ended"
        assert max(works.values()) < WORKS_WITHIN_S, works
        print(f"\nseconds from a node's start until it works: {sorted(round(each) for each in works.values())}")
        psutil.Process(max(works)).kill()
        wait_for("a request for the lost node", lambda: demand(cluster) == 1, run, timeout=90)
        run.kill()
        wait_for("no request", lambda: demand(cluster) == 0, timeout=60)


def test_a_build_starts_without_any_node(cluster: RayCluster, tmp_path: Path) -> None:
    config, accounting = configured(tmp_path / "never", 40, segment={"actors": MOST * NODE_CPUS})
    began = time.monotonic()
    with running(config, program=("-m", "segmint", "build"), **cluster.environment) as run:
        assert run.wait(120) == 2, run.told()
    assert "the smallest pools do not fit" in run.told()
    assert time.monotonic() - began < ARRIVAL_S + 60
    assert len(cluster.raylets()) == 1, "no node is added for pools that never fit"

    config, accounting = configured(tmp_path / "early", 40, wait_for_nodes=3)
    with running(config, accounting, program=PROGRAM, **cluster.environment) as run:
        assert run.wait(120) != 0
    assert "resources.wait_for_nodes = 3 seconds" in run.told()

    config, accounting = configured(tmp_path / "grows", 40)
    with running(config, accounting, program=PROGRAM, **cluster.environment) as run:
        assert run.wait(400) == 0, run.told()
    assert "waiting for nodes" in run.told()
    assert len(CommitLog(Location(Storage(), str(tmp_path / "grows" / "dataset"))).committed()) == 4
