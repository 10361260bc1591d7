"""Tests of the nodes that an autoscaler must add for bundles, and of the node groups in the KubeRay manifests."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from segmint.infra import node_groups
from segmint.infra.node_groups import NodeGroup, NodeRequest, config_of, missing_nodes, with_gpu_kind
from tests.support.runs import wait_for

if TYPE_CHECKING:
    from segmint.infra.ray_session import Cluster

GPU = NodeGroup("gpu", {"CPU": 6, "GPU": 1}, 3)
CPU = NodeGroup("cpu", {"CPU": 8}, 2)
MANIFEST = Path(__file__).resolve().parents[2] / "infra" / "kuberay" / "raycluster.yaml"


def node(group: NodeGroup, *, alive: bool = True, labeled: bool = True) -> dict[str, object]:
    labels = {"ray.io/node-group": group.name} if labeled else {}
    return {"Alive": alive, "Resources": {**group.resources, "memory": 2e9}, "Labels": labels}


def test_bundles_fill_the_nodes_that_are_there_first() -> None:
    actors = [{"CPU": 2.0, "GPU": 1.0}] * 3
    prepare = [{"CPU": 1.0}] * 12
    assert missing_nodes(actors, [GPU, CPU], []) == {"gpu": 3}
    assert missing_nodes(actors, [GPU, CPU], [node(GPU), node(GPU, labeled=False)]) == {"gpu": 1}
    assert missing_nodes(actors, [GPU, CPU], [node(GPU), node(GPU, alive=False)]) == {"gpu": 2}
    assert missing_nodes([*actors, *prepare], [GPU, CPU], []) == {"gpu": 3}, "beside the actors there are 12 CPUs"
    assert missing_nodes([*actors, *prepare, {"CPU": 1.0}], [GPU, CPU], []) == {"gpu": 3, "cpu": 1}
    assert missing_nodes([{"CPU": 0.0}] * 3, [GPU, CPU], [node(CPU)]) == {}


def test_what_no_group_can_have_is_not_asked_for() -> None:
    assert missing_nodes([{"CPU": 2.0, "GPU": 1.0}] * 9, [GPU, CPU], [node(GPU)]) == {"gpu": 2}
    assert missing_nodes([{"CPU": 9.0}], [GPU, CPU], []) == {}
    named = {"CPU": 2.0, "GPU": 1.0, "accelerator_type:H100": 0.001}
    assert missing_nodes([named], [GPU], []) == {}
    assert missing_nodes([named], [NodeGroup("h100", {**GPU.resources, "accelerator_type:H100": 1}, 1)], []) == {
        "h100": 1
    }


def test_gpus_whose_kind_the_autoscaler_does_not_know_are_of_the_kind_that_is_there() -> None:
    """Actors that ask for a kind would otherwise never get a node."""
    named = {"CPU": 2.0, "GPU": 1.0, "accelerator_type:H100": 0.001}
    there = [{**node(GPU), "Resources": {**GPU.resources, "accelerator_type:H100": 1.0}}, node(CPU)]
    groups = with_gpu_kind([GPU, CPU], there)
    assert missing_nodes([named] * 3, groups, there) == {"gpu": 2}
    assert groups[1] is CPU
    assert with_gpu_kind([GPU], [node(CPU)]) == with_gpu_kind([GPU], [node(GPU)]) == [GPU]
    other = {**node(GPU), "Resources": {**GPU.resources, "accelerator_type:A100": 1.0}}
    assert with_gpu_kind([GPU], [*there, other]) == [GPU]
    assert with_gpu_kind(groups, [other]) == groups


def test_ray_reads_the_groups_of_our_manifest() -> None:
    ray_cluster = next(yaml.safe_load_all(MANIFEST.read_text()))
    ray_cluster["metadata"]["namespace"] = "segmint"
    config = config_of(ray_cluster)
    assert config is not None
    workers = {name: of for name, of in config["available_node_types"].items() if name != config["head_node_type"]}
    assert {name: (of["max_workers"], of["resources"].get("GPU", 0)) for name, of in workers.items()} == {
        "gpu": (8, 1),
        "cpu": (4, 0),
    }
    ray_cluster["spec"]["enableInTreeAutoscaling"] = False
    assert config_of(ray_cluster) is None


class ReadBundle(dict[str, float]):
    """A bundle that counts how often its resources are read."""

    reads = 0

    def items(self) -> Any:
        type(self).reads += 1
        return super().items()


def test_the_work_does_not_grow_with_the_number_of_equal_bundles() -> None:
    """A request for hundreds of nodes is for thousands of bundles, and is repeated every few seconds."""
    nodes = [node(CPU)] * 256
    large = replace(CPU, most=600)
    for each in (4, 8):
        ReadBundle.reads = 0
        bundles = [*[ReadBundle(CPU=2.0)] * (each * 256 - 3), *[ReadBundle(CPU=1.0)] * 6, ReadBundle(CPU=8.0)]
        assert missing_nodes(bundles, [large], nodes) == {"cpu": each * 64 - 256 + 1}
        assert ReadBundle.reads <= 3 * (each * 64 + 2), "once for each node and kind of bundle"


@pytest.mark.parametrize("bundles", [[], [{"CPU": 1.0}]])
def test_without_an_autoscaler_nothing_is_missing(bundles: list[dict[str, float]]) -> None:
    assert missing_nodes(bundles, [], [node(CPU)]) == {}


def wait_until_requested(nodes: int, cpus: float) -> None:
    """Return when Ray requests so many nodes with so many CPUs from an autoscaler."""
    import ray
    from ray._raylet import GcsClient  # noqa: PLC2701, TID251 - Ray's own view of itself
    from ray.autoscaler.v2.sdk import get_cluster_resource_state

    def found() -> bool:
        client = GcsClient(ray.get_runtime_context().gcs_address)
        requests = get_cluster_resource_state(client).pending_resource_requests
        return nodes == sum(each.count for each in requests if each.request.resources_bundle.get("CPU") == cpus)

    wait_for(f"request for {nodes} nodes", found, timeout=60)


@pytest.mark.ray
def test_ray_requests_as_many_nodes_as_are_missing(local_ray: "Cluster", monkeypatch: pytest.MonkeyPatch) -> None:
    large = {"CPU": 1000.0}
    monkeypatch.setattr(node_groups, "node_groups", lambda: [NodeGroup("large", large, 3)])
    with NodeRequest() as request:
        for count in (3, 1, 2):
            request.ask([large] * count)
            wait_until_requested(count, 1000)
    wait_until_requested(0, 1000)
