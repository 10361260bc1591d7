"""Builds on clusters that Ray's own autoscaler grows: its current version, with nodes that are processes here."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.building.scale import write_build
from segmint.infra.ray_session import SUBMITTED_JOB
from tests.support.builds import ROOT
from tests.support.clusters import RayCluster
from tests.support.runs import running, wait_for

pytestmark = [
    pytest.mark.ray,
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="the groups of an autoscaler are read from /proc"),
]

BUILD = ("-m", "segmint", "build")
STUBBED = ("benchmarks/building/stubbed_build.py",)
NODE_CPUS = 7
"""Room for a segment actor of 4 CPUs, a prepare actor, a reader, and a writer, but not for a second segment actor."""

MOST = 4
WORKS_WITHIN_S = 60

OTHER_REQUEST = [{"resources": {"GPU": 1}}]
"""Resources that another job requests from the autoscaler, and that it can't add."""


@dataclass(frozen=True)
class Start:
    """Times of a node, in seconds after its raylet's start."""

    actor: float  # the segment actor's process starts
    ready: float  # its constructor ends
    row: float  # it takes its first row


@pytest.fixture
def events(tmp_path: Path) -> Path:
    """Return the file to which segment actors write their starts and images."""
    path = tmp_path / "events"
    path.touch()
    return path


@pytest.fixture
def cluster(events: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayCluster]:
    """A head without CPUs, and an autoscaler that may add four nodes once its cloud has them."""
    cluster = RayCluster()
    try:
        stub = {"SEGMINT_STUB_IMAGE_S": "2", "SEGMINT_STUB_EVENTS": str(events)}
        cluster.add_autoscaler(NODE_CPUS, MOST, **stub)
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
            monkeypatch.setenv(name, cluster.environment[name])
        # The nodes have one folder for the code that a driver sends, and would replace it while others use it.
        cluster.environment[SUBMITTED_JOB] = json.dumps({"runtime_env": {"working_dir": f"local://{ROOT}"}})
        yield cluster
    finally:
        cluster.close()


def configured(folder: Path, rows: int, *, segment: Any = "auto", **resources: Any) -> tuple[Path, str]:
    """Write the config of a build of stubbed images in one window. Return its path and the path of its accounting.

    A block is 100 s of a segment actor's work. New nodes therefore start few workers for the other stages.
    """
    pools = {"segment": {"num_cpus": 4, "actors": segment}, "prepare": {"actors": 1}, **resources}
    config = write_build(folder, rows, images_per_shard=50, rows_per_block=50, window_shards=rows, resources=pools)
    return config, str(folder / "accounting.json")


def state(cluster: RayCluster) -> Any:
    """Return the cluster's nodes and requests, as its autoscaler sees them. Takes at least a second."""
    from ray._raylet import GcsClient  # noqa: PLC2701, TID251 - Ray's own view of itself
    from ray.autoscaler.v2.sdk import get_cluster_resource_state

    time.sleep(1)
    return get_cluster_resource_state(GcsClient(cluster.environment["RAY_ADDRESS"]))


def demand(cluster: RayCluster) -> int:
    """Return the number of pending tasks that request a whole node, so that the autoscaler adds one for each."""
    requests = state(cluster).pending_resource_requests
    return sum(each.count for each in requests if each.request.resources_bundle.get("CPU") == NODE_CPUS)


def explicit_requests(cluster: RayCluster) -> list[Any]:
    """Return the explicit requests of all jobs, of which the cluster has only one list."""
    return list(state(cluster).cluster_resource_constraints)


def starts(cluster: RayCluster, events: Path) -> dict[int, Start]:
    """Return the times of each node, by the id of its raylet's process, whose segment actor has finished an image.

    Takes at least a second.
    """
    time.sleep(1)
    lines = [line.split() for line in events.read_text().splitlines()]
    found: dict[int, Start] = {}
    for raylet in cluster.raylets():
        try:
            began = raylet.create_time()
            actors = {child.pid: child.create_time() - began for child in raylet.children(recursive=True)}
        except psutil.NoSuchProcess:
            continue
        seen = {kind: float(when) - began for when, kind, pid in reversed(lines) if int(pid) in actors}
        if "image" in seen:
            pid = next(int(pid) for _, kind, pid in lines if kind == "image" and int(pid) in actors)
            found[raylet.pid] = Start(actors[pid], seen["start"], seen["image"] - 2)
    return found


def refused(config: Path, **environment: str) -> str:
    """Return the output of a build that must end with exit code 2, long before `resources.wait_for_nodes`."""
    with running(config, program=BUILD, **environment) as run:
        assert run.wait(240) == 2, run.told()
    assert "the smallest pools do not fit" in run.told()
    assert "waiting for nodes" not in run.told()
    return run.told()


def test_nodes_that_arrive_during_a_window_work_in_it_and_a_killed_driver_asks_for_none(
    cluster: RayCluster, events: Path, tmp_path: Path
) -> None:
    from ray.autoscaler.v2.sdk import request_cluster_resources

    request_cluster_resources(cluster.environment["RAY_ADDRESS"], OTHER_REQUEST)
    others = explicit_requests(cluster)
    assert len(others) == 1

    never, _ = configured(tmp_path / "never", 40, segment=MOST * NODE_CPUS)
    refused(never, **cluster.environment)
    assert not cluster.launches(), "no node is requested for pools that never fit"

    early, _ = configured(tmp_path / "early", 40, wait_for_nodes=5)
    with running(early, program=BUILD, **cluster.environment) as run:
        assert run.wait(240) == 3, run.told()
    assert "resources.wait_for_nodes = 5 seconds" in run.told()
    assert cluster.launches(), "nodes were requested"
    wait_for("no request", lambda: demand(cluster) == 0, timeout=30)
    assert explicit_requests(cluster) == others

    config, accounting = configured(tmp_path / "grows", 5000)
    with running(config, accounting, program=STUBBED, **cluster.environment) as run:
        wait_for("a request for all nodes", lambda: demand(cluster) == MOST, run)
        assert "waiting for nodes" in run.told()
        assert explicit_requests(cluster) == others
        cluster.set_capacity(1)
        wait_for("a node that works", lambda: starts(cluster, events), run)
        (first,) = starts(cluster, events)
        assert demand(cluster) == MOST - 1
        cluster.set_capacity(MOST)
        wait_for("segment actors on all nodes", lambda: len(starts(cluster, events)) == MOST, run)
        print("\nseconds after each node's start:")
        found = starts(cluster, events)
        for node, times in sorted(found.items()):
            print(f"  node {node}: actor {times.actor:.0f}, ready {times.ready:.0f}, row {times.row:.0f}")
        assert sum(" start " in line for line in events.read_text().splitlines()) == MOST, "an actor started again"
        assert demand(cluster) == 0
        assert max(times.row for times in found.values()) < WORKS_WITHIN_S

        cluster.set_capacity(0)
        psutil.Process(max(found.keys() - {first})).kill()
        wait_for("a request for the lost node", lambda: demand(cluster) == 1, run, timeout=120)
        run.kill()
        killed = time.monotonic()
        wait_for("no request", lambda: demand(cluster) == 0, timeout=300)
        print(f"the request was gone {time.monotonic() - killed:.0f} s after the driver's death")


def test_pools_that_do_not_fit_without_an_autoscaler_are_refused_at_once(tmp_path: Path) -> None:
    cluster = RayCluster()
    try:
        cluster.add_node(NODE_CPUS - 1)
        config, _ = configured(tmp_path / "never", 40)
        assert f"need {NODE_CPUS} logical CPUs, but the cluster has {NODE_CPUS - 1}" in refused(
            config, **cluster.environment
        )
    finally:
        cluster.close()
