"""Where a dataset's numerics are resolved: here, or on a GPU node. The GPUs are slots of a local Ray."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from segmint.infra.device import physical_cores
from segmint.infra.errors import UsageError
from segmint.infra.ray_session import Cluster, GpuNodes, observe
from segmint.model.kernels.cpu.library import LANES16, usable_kernels
from segmint.pipeline.building.first_numerics import (
    ask_gpu_node,
    counts_on_gpus,
    first_device,
    first_numerics,
    kind_of_gpu,
    nodes_without_kernels,
    numerics_here,
)
from segmint.pipeline.config.config import Config, load_config
from tests.support.builds import write_config

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(torch.cuda.is_available(), reason="where this process sees a GPU, no cluster is asked"),
]
SHA = "0" * 64


@pytest.fixture(scope="module")
def one_gpu_slot() -> Iterator[None]:
    """A Ray that believes it has one GPU. It starts a worker process for each of its few CPUs."""
    ray.init(address="local", num_cpus=2, num_gpus=1, object_store_memory=100_000_000, include_dashboard=False)
    yield
    ray.shutdown()


def config(folder: Path, **changes: Any) -> Config:
    return load_config(str(write_config(folder / "build.yaml", "/catalog.jsonl", folder / "dataset", **changes)))


def test_without_a_cluster_this_machine_answers(tmp_path: Path, mobile_sam_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^device 'cuda' was requested, but torch sees no CUDA device here"):
        first_numerics(config(tmp_path, model={"device": "cuda"}), mobile_sam_path)


def test_a_node_without_a_package_of_the_detectors_resolves_nothing(
    tmp_path: Path, mobile_sam_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config(tmp_path, model={"device": "cpu"})
    there = replace(first_numerics(asked, mobile_sam_path), facenet_pytorch="none")
    monkeypatch.setattr("segmint.pipeline.building.first_numerics.numerics_of_masks", lambda *_: there)
    with pytest.raises(UsageError, match="resolved `model` lacks facenet-pytorch, which the detectors need"):
        first_numerics(asked, mobile_sam_path)
    none = {kind: {"detector": "none"} for kind in ("faces", "plates")}
    assert first_numerics(config(tmp_path, deidentify=none), mobile_sam_path) is there


def test_on_a_cpu_alone_the_cores_are_shared_among_actors(
    tmp_path: Path, mobile_sam_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segmint.pipeline.building.first_numerics.memory_here", lambda: 2**40)
    shared = first_numerics(config(tmp_path, model={"device": "cpu"}), mobile_sam_path)
    assert shared.threads == 1
    monkeypatch.setattr("segmint.pipeline.building.first_numerics.memory_here", lambda: 2**30)
    assert first_numerics(config(tmp_path, model={"device": "cpu"}), mobile_sam_path).threads == physical_cores()
    asked = config(tmp_path, model={"device": "cpu", "threads": 3})
    assert first_numerics(asked, mobile_sam_path).threads == 3


def test_a_gpu_node_of_the_cluster_answers(tmp_path: Path, one_gpu_slot: None, mobile_sam_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^on a worker of the cluster: device 'cuda' was requested"):
        first_numerics(config(tmp_path, model={"device": "cuda"}), mobile_sam_path)


def test_the_answer_from_elsewhere_is_the_one_from_here(tmp_path: Path, one_gpu_slot: None) -> None:
    wanted = config(tmp_path, model={"device": "cpu", "threads": 3})
    answer = ask_gpu_node(wanted, wanted.model, SHA, observe(local=False))
    assert answer == numerics_here(wanted.model, wanted.masks, SHA)
    assert answer.threads == 3


def test_auto_is_the_gpu_of_a_cluster_that_has_one(tmp_path: Path, one_gpu_slot: None, mobile_sam_path: Path) -> None:
    words = r"device 'cuda' was requested.*model\.device is auto, and the cluster has 1 GPUs; set cpu to ignore them"
    with pytest.raises(UsageError, match=words):
        first_numerics(config(tmp_path, model={}), mobile_sam_path)


def test_the_device_of_a_new_dataset_selects_its_weights(
    tmp_path: Path, one_gpu_slot: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert first_device(config(tmp_path, model={})) == "cuda"
    assert first_device(config(tmp_path, model={"device": "cpu"})) == "cpu"
    assert first_device(config(tmp_path, model={}, resources={"segment": {"num_gpus": 0}})) == "cpu"
    empty = replace(observe(local=False), gpus=0)
    for gpus, device in ((0, "cpu"), (4, "cuda")):  # of the nodes that the autoscaler may add
        grown = replace(empty, grown=replace(empty, gpus=gpus))
        monkeypatch.setattr("segmint.infra.ray_session.observe_growth", lambda grown=grown: grown)
        assert first_device(config(tmp_path, model={})) == device
    monkeypatch.setattr("segmint.infra.ray_session.joins_cluster", lambda _: False)
    assert first_device(config(tmp_path, model={})) == "cpu"
    monkeypatch.setattr("segmint.pipeline.building.first_numerics.sees_cuda", lambda: True)
    assert first_device(config(tmp_path, model={})) == "cuda"


@pytest.mark.parametrize(
    "changes", [{"model": {"device": "cpu"}}, {"resources": {"segment": {"num_gpus": 0}}}], ids=["cpu", "no GPUs"]
)
def test_without_asking_for_a_gpu_a_cluster_gives_none(
    tmp_path: Path, one_gpu_slot: None, mobile_sam_path: Path, changes: dict[str, Any]
) -> None:
    assert first_numerics(config(tmp_path, **{"model": {}, **changes}), mobile_sam_path).device == "cpu"


def test_a_cluster_uses_cpu_kernels_if_all_its_nodes_have_them(
    tmp_path: Path, one_gpu_slot: None, mobile_sam_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if usable_kernels() is None:
        pytest.skip("this machine has no CPU kernels")
    wanted = config(tmp_path, model={"device": "cpu"})
    assert first_numerics(wanted, mobile_sam_path).kernels == LANES16
    where = "segmint.pipeline.building.first_numerics.reason"
    monkeypatch.setattr(where, lambda: "liblanes16.so isn't there")
    assert first_numerics(wanted, mobile_sam_path).kernels == "torch"
    forced = config(tmp_path, model={"device": "cpu", "kernels": LANES16})
    words = r"model\.kernels is lanes16-1, but 1 node of the cluster can't use .* on [\d.]+, liblanes16\.so isn't there"
    with pytest.raises(UsageError, match=words):
        first_numerics(forced, mobile_sam_path)
    monkeypatch.setattr(where, lambda: os._exit(1))
    assert first_numerics(wanted, mobile_sam_path).kernels == "torch"


def test_a_node_without_room_for_a_segment_actor_needs_no_cpu_kernels(
    tmp_path: Path, one_gpu_slot: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segmint.pipeline.building.first_numerics.reason", lambda: "none")
    pools = {"segment": {"num_cpus": 3}}
    assert nodes_without_kernels(config(tmp_path, resources=pools)) == {}
    assert list(nodes_without_kernels(config(tmp_path)).values()) == ["none"]


def test_auto_counts_on_the_gpus_that_are_there_or_that_were_asked_for(tmp_path: Path) -> None:
    for wanted, gpus, expected in (("auto", 0, False), ("auto", 2, True), (0, 2, False), (1, 0, True)):
        asked = config(tmp_path, resources={"segment": {"num_gpus": wanted}})
        here = Cluster(local=True, cpus=2, gpus=gpus, nodes=1, cores=2)
        assert counts_on_gpus(asked, here) == expected, (wanted, gpus)


@pytest.mark.long
def test_a_gpu_without_a_name_answers_for_any(tmp_path: Path, one_gpu_slot: None) -> None:
    wanted = config(
        tmp_path, model={"device": "cpu", "threads": 1}, resources={"segment": {"accelerator_type": "H100"}}
    )
    answer = ask_gpu_node(wanted, wanted.model, SHA, observe(local=False))
    assert answer == numerics_here(wanted.model, wanted.masks, SHA)


def test_gpus_without_a_name_are_asked_for_by_none(tmp_path: Path, one_gpu_slot: None) -> None:
    wanted = config(tmp_path, model={"device": "cpu"}, resources={"segment": {"accelerator_type": "H100"}})
    cluster = observe(local=False)
    named = replace(cluster, gpu_kinds={"H100": GpuNodes(8, 1, 64)})
    both = replace(cluster, gpu_kinds={**cluster.gpu_kinds, **named.gpu_kinds})
    for of, kind in ((cluster, None), (named, "H100"), (both, "H100"), (replace(cluster, gpu_kinds={}), "H100")):
        assert kind_of_gpu(wanted, of) == kind
    for of in (cluster, named):
        assert kind_of_gpu(config(tmp_path), of) is None
    with pytest.raises(
        UsageError, match=r"cluster has H100 GPUs and others that Ray does not name: set resources\.segm"
    ):
        kind_of_gpu(config(tmp_path), both)
    assert kind_of_gpu(config(tmp_path, allow_mixed_numerics=True), both) is None


def test_a_cluster_without_enough_gpus_is_a_usage_error_with_the_numbers(
    tmp_path: Path, one_gpu_slot: None, mobile_sam_path: Path
) -> None:
    greedy = config(tmp_path, model={"device": "cuda"}, resources={"segment": {"num_gpus": 2}}, stall_timeout=0.5)
    with pytest.raises(UsageError, match=r"no node with 2 GPUs and 2 CPUs became free .* the cluster has 1 GPUs"):
        first_numerics(greedy, mobile_sam_path)
