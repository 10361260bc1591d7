"""Clusters of several kinds of GPU: workers go to the kind that the dataset was begun with. The GPUs are pretended."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from ray.cluster_utils import Cluster as RayCluster

from segmint.infra.errors import UsageError
from segmint.infra.node_groups import gpu_kind
from segmint.infra.ray_session import Cluster, GpuNodes, accelerator_types, observe
from segmint.pipeline import build
from segmint.pipeline.building.execution.stage_watch import start_detectors
from segmint.pipeline.building.execution.stages import Stages, choose_kind, in_words, lay_out, only_kind
from segmint.pipeline.config.config import Config
from tests.pipeline.building.execution.test_row_source import source
from tests.pipeline.building.execution.test_stages import on_gpu

H100 = "H100 80GB HBM3, compute capability 9.0, 132 multiprocessors"
KINDS = {"H100": GpuNodes(8, 1, 64), "A100": GpuNodes(4, 2, 48), "L4": GpuNodes(1, 1, 8)}
MIXED = Cluster(local=False, cpus=200, gpus=13, nodes=9, cores=64, gpu_nodes=4, gpu_node_cpus=120, gpu_kinds=KINDS)


def laid_out(folder: Path, cluster: Cluster = MIXED, gpu: str = H100, **changes: Any) -> Stages:
    config, dataset = on_gpu(folder)
    numerics = {**dataset.manifest.numerics, "device_kind": gpu}
    manifest = dataset.manifest.model_copy(update={"numerics": numerics})
    tree = config.model_dump()
    tree["resources"]["segment"] |= changes.pop("segment", {})
    return lay_out(Config(**{**tree, **changes}), replace(dataset, manifest=manifest), cluster)


@pytest.mark.parametrize(
    ("device_kind", "driver"),
    [
        (H100, "NVIDIA H100 80GB HBM3"),
        ("A100-SXM4-80GB, compute capability 8.0, 108 multiprocessors", "NVIDIA A100-SXM4-80GB"),
        ("Tesla V100-SXM2-16GB, compute capability 7.0, 80 multiprocessors", "Tesla V100-SXM2-16GB"),
        ("GeForce RTX 4090, compute capability 8.9, 128 multiprocessors", "NVIDIA GeForce RTX 4090"),
    ],
)
def test_rays_name_of_a_gpu_is_among_those_of_its_numerics(device_kind: str, driver: str) -> None:
    from segmint.infra.ray_internals import accelerator_type

    assert accelerator_type(driver) in accelerator_types(device_kind)
    assert {"H100", "A100", "L4"} & accelerator_types(device_kind) <= {driver.split()[1].partition("-")[0]}


def test_pools_are_sized_for_the_datasets_kind_and_the_others_are_named(tmp_path: Path) -> None:
    stages = laid_out(tmp_path)
    assert (stages.gpus.name, stages.segment_pool.largest) == ("H100", 8)
    assert in_words(stages.gpus.idle) == "4 x A100 on 2 nodes, 1 x L4 on 1 node"
    assert stages.prepare_pool.largest == 64 - 2 * 8 - 1 - 2, "with detectors on these GPUs, `prepare` is beside them"


def test_a_kind_that_is_chosen_wins(tmp_path: Path) -> None:
    stages = laid_out(tmp_path, segment={"accelerator_type": "A100"})
    assert (stages.gpus.name, stages.segment_pool.largest) == ("A100", 4)
    with pytest.raises(UsageError, match=r"accelerator_type is 'B200', but the cluster has 4 x A100 on 2 nodes, 8 x H"):
        laid_out(tmp_path, segment={"accelerator_type": "B200"})


def test_kinds_that_do_not_fit_are_refused_unless_numerics_may_be_mixed(tmp_path: Path) -> None:
    b200 = "B200, compute capability 10.0, 148 multiprocessors"
    with pytest.raises(UsageError, match=r"from a 'B200.*cluster has 4 x A100 .*accelerator_type to Ray's name"):
        laid_out(tmp_path, gpu=b200)
    stages = laid_out(tmp_path, gpu=b200, allow_mixed_numerics=True)
    assert (stages.gpus.name, stages.gpus.idle, stages.segment_pool.largest) == (None, {}, 13)


def test_one_kind_is_asked_for_only_if_that_is_set(tmp_path: Path) -> None:
    """An autoscaler that knows only GPUs and CPUs would add no node for a kind."""
    one = replace(MIXED, gpus=8, gpu_kinds={"H100": GpuNodes(8, 1, 64)}, gpu_nodes=1)
    unnamed = replace(one, gpu_kinds={"": GpuNodes(8, 1, 64)})
    alone = ((one, "auto", None), (unnamed, "auto", None), (one, "H100", "H100"), (unnamed, "H100", None))
    for cluster, chosen, asked in alone:
        stages = laid_out(tmp_path, cluster, segment={"accelerator_type": chosen})
        assert (stages.gpus.name, stages.gpus.idle, stages.segment_pool.largest) == (asked, {}, 8)


def test_beside_other_kinds_gpus_without_a_name_need_one(tmp_path: Path) -> None:
    cluster = replace(MIXED, gpu_kinds={"A100": KINDS["A100"], "": KINDS["H100"]})
    name_it = r"""4 x A100 on 2 nodes.* ray start --resources='{"accelerator_type:NAME": 1}'$"""
    with pytest.raises(UsageError, match=f"numerics are from a 'H100 .*{name_it}"):
        laid_out(tmp_path, cluster)
    with pytest.raises(UsageError, match=f"accelerator_type is 'H100', .*{name_it}"):
        laid_out(tmp_path, cluster, segment={"accelerator_type": "H100"})
    assert (
        in_words(laid_out(tmp_path, cluster, segment={"accelerator_type": "A100"}).gpus.idle) == "8 x unnamed on 1 node"
    )


def test_a_dataset_of_cpus_asks_for_no_kind(tmp_path: Path) -> None:
    config, dataset = on_gpu(tmp_path)
    cpu = replace(dataset.numerics, device="cpu", detectors="")
    kind = choose_kind(config, cpu, MIXED)
    assert (kind.name, only_kind(MIXED, kind)) == (None, MIXED)


@pytest.mark.ray
def test_the_flow_of_rows_asks_ray_for_the_kind_and_is_taken(tmp_path: Path, local_ray: Cluster) -> None:
    stages = laid_out(tmp_path)
    rows = source(10)
    for laid, asked in (
        (stages, {"num_gpus": stages.segment_pool.num_gpus, "accelerator_type": "H100"}),
        (replace(stages, segment_pool=replace(stages.segment_pool, num_gpus=0.0)), {}),
    ):
        describe = build.build_rows(rows, laid)._logical_plan.dag  # noqa: SLF001 - Ray shows its arguments nowhere else
        segment = describe.input_dependencies[0]
        names = ("ray_remote_args", "_ray_remote_args")  # which one depends on the version
        remote = next(getattr(segment, name) for name in names if getattr(segment, name, None))
        assert {name: remote[name] for name in ("num_gpus", "accelerator_type") if remote.get(name)} == asked


@pytest.fixture(scope="module")
def two_kinds() -> Iterator[Cluster]:
    """A Ray of two nodes that pretend to have a GPU each, of different kinds."""
    cluster = RayCluster()
    for name in ("A100", "H100"):
        cluster.add_node(num_cpus=4, num_gpus=1, resources={f"accelerator_type:{name}": 1}, object_store_memory=10**8)
    ray.init(address=cluster.address)
    yield observe(local=False)
    ray.shutdown()
    cluster.shutdown()


class _Pass:
    """In place of `Prepare`: it hands rows on."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __call__(self, table: pa.Table) -> pa.Table:
        return table


class _Where(_Pass):
    """In place of `Segment`: it says on which kind of GPU it runs, and how many rows a call has."""

    def __call__(self, table: pa.Table) -> pa.Table:
        node = ray.get_runtime_context().get_node_id()
        (resources,) = (each["Resources"] for each in ray.nodes() if each["NodeID"] == node)
        kinds = pa.array([gpu_kind(resources)] * table.num_rows)
        return table.append_column("kind", kinds).append_column("call", pa.array([table.num_rows] * table.num_rows))


def _described(table: pa.Table) -> pa.Table:
    return table


@pytest.mark.long
@pytest.mark.ray
def test_the_flow_of_rows_runs_on_the_kind_that_it_asks_for(
    tmp_path: Path, two_kinds: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert in_words(two_kinds.gpu_kinds) == "1 x A100 on 1 node, 1 x H100 on 1 node"
    stages = laid_out(tmp_path, two_kinds)
    assert (stages.gpus.name, in_words(stages.gpus.idle)) == ("H100", "1 x A100 on 1 node")
    alone = {"calls_at_once": 1, "largest": 1}
    pools = {
        "prepare_pool": replace(stages.prepare_pool, **alone),
        "segment_pool": replace(stages.segment_pool, **alone),
    }
    stages = replace(stages, rows_per_block=4, **pools)
    for name, stub in (("Prepare", _Pass), ("Segment", _Where), ("describe_table", _described)):
        monkeypatch.setattr(build, name, stub)
    rows = build.build_rows(source(10), stages).take_all()
    assert sorted(row["ordinal"] for row in rows) == list(range(10))
    assert {row["kind"] for row in rows} == {"H100"}
    assert [row["call"] for row in sorted(rows, key=lambda row: row["ordinal"])] == [4] * 8 + [2] * 2, "a block a call"
    (holder,) = start_detectors(stages).detectors.holders
    (node,) = (each["Resources"] for each in ray.nodes() if each["NodeID"] == holder)
    assert gpu_kind(node) == "H100"
