"""The layout of stages on machines: pools that fit, or an error with the numbers before anything starts."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from segmint.infra.assets import sha256_of
from segmint.infra.errors import UsageError
from segmint.infra.node_groups import NodeGroup, missing_nodes
from segmint.infra.ray_session import Cluster
from segmint.infra.storage.storage import Storage
from segmint.operators.prepare.release import CropLayers
from segmint.operators.segment.overlap import HostThreads
from segmint.operators.segmenter.found_masks import MaskFilters
from segmint.operators.segmenter.segmenter import CustomSegmenter, SegmenterSettings
from segmint.pipeline.building.dataset import BuildDataset, open_or_create
from segmint.pipeline.building.execution.stages import (
    Stages,
    TooFewNodesError,
    block_rows,
    lay_out,
    lay_out_again,
    lay_out_for_growth,
)
from segmint.pipeline.config.config import Config, load_config
from tests.support import builds
from tests.support.builds import write_catalog, write_config
from tests.support.gpu_numerics import on_a_gpu
from tests.support.onnx_detectors import yunet

LAPTOP = Cluster(local=True, cpus=8, gpus=0, nodes=1, cores=2)


def opened(folder: Path, **changes: Any) -> tuple[Config, BuildDataset]:
    changes = {"resources": {}, **changes}
    catalog = write_catalog(folder / "c.jsonl", [{"uri": f"{i}.jpg", "license": "CC0-1.0"} for i in range(100)])
    config = load_config(str(write_config(folder / "build.yaml", catalog, folder / "dataset", **changes)))
    return config, open_or_create(config, Storage())


def laid_out(folder: Path, cluster: Cluster, **changes: Any) -> Stages:
    return lay_out(*opened(folder, **changes), cluster)


def test_a_laptop_shares_its_cores_among_segment_actors(tmp_path: Path) -> None:
    for threads, actors in ((1, 2), (2, 1), (5, 1)):
        folder = tmp_path / str(threads)
        folder.mkdir()
        stages = laid_out(folder, LAPTOP, model={"threads": threads, "device": "cpu"})
        assert (stages.segment_pool.smallest, stages.segment_pool.largest) == (actors, actors)
        assert (stages.prepare_pool.smallest, stages.prepare_pool.largest) == (1, 1)


def test_a_laptop_has_no_more_actors_than_its_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segmint.pipeline.building.first_numerics.memory_here", lambda: 4 * 2**30)
    assert laid_out(tmp_path, LAPTOP).segment_pool.largest == 1


def test_a_cluster_without_gpus_gets_a_segment_actor_a_machine_and_prepares_on_the_rest(tmp_path: Path) -> None:
    stages = laid_out(tmp_path, Cluster(local=False, cpus=64, gpus=0, nodes=4, cores=2))
    assert stages.segment_pool.largest == 4
    assert stages.prepare_pool.largest == 64 - 4 - 2, "a CPU each remains for the two writers"


def test_writers_grow_with_the_segment_actors(tmp_path: Path) -> None:
    for actors, writers in ((1, 2), (8, 2), (9, 3), (64, 16)):
        cluster = Cluster(local=False, cpus=8 * actors, gpus=0, nodes=actors, cores=2)
        (tmp_path / str(actors)).mkdir()
        stages = laid_out(tmp_path / str(actors), cluster)
        assert (stages.segment_pool.largest, stages.writers) == (actors, writers)
        assert stages.prepare_pool.largest == 7 * actors - writers
    assert laid_out(tmp_path, LAPTOP, resources={"writers": 7}).writers == 7


def test_pools_as_they_were_asked_for(tmp_path: Path) -> None:
    stages = laid_out(
        tmp_path, LAPTOP, resources={"segment": {"actors": [1, 2]}, "prepare": {"actors": 2, "num_cpus": 0.5}}
    )
    assert (stages.segment_pool.smallest, stages.segment_pool.largest) == (1, 2)
    assert (stages.prepare_pool.smallest, stages.prepare_pool.num_cpus) == (2, 0.5)


def test_pools_that_do_not_fit_are_refused_with_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"segment 4 x 2 CPUs, prepare 1 x 1.* need 11 logical CPUs.* has 8"):
        laid_out(tmp_path, LAPTOP, resources={"segment": {"actors": 4}})


def test_custom_stages_take_their_share(tmp_path: Path) -> None:
    mean = {"stage": "tests.support.custom_stages.Mean", "resources": {"actors": [2, 6], "num_cpus": 0.5}}
    stages = laid_out(tmp_path, Cluster(local=False, cpus=64, gpus=0, nodes=4, cores=2), stages=[mean])
    (custom,) = stages.custom
    assert (custom.pool.smallest, custom.pool.largest, custom.number, custom.after) == (2, 6, 1, "describe")
    assert stages.prepare_pool.largest == 64 - 4 - 2 - 3
    assert stages.workers()["stage_mean"] == 6
    assert [stages.bundles(rows).count({"CPU": 0.5}) for rows in (1, 3 * stages.rows_per_block, 1000)] == [2, 3, 6]
    on_gpus = replace(stages, custom=(replace(custom, pool=replace(custom.pool, num_gpus=1.0)),))
    assert on_gpus.bundles(1).count({"CPU": 0.5, "GPU": 1.0}) == 6, "a layout waits for all of their GPUs"
    for number, (resources, told) in enumerate(
        (({"num_gpus": 1}, "stages take 1 GPUs, but the cluster has 0"), ({"actors": 5}, "stage_mean 5 x 1.* has 8"))
    ):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(UsageError, match=told):
            laid_out(tmp_path / str(number), LAPTOP, stages=[{**mean, "resources": resources}])


def test_a_stage_whose_code_changed_since_the_build_began_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster's stages are laid out again after each window."""
    config, dataset = opened(tmp_path, stages=[{"stage": "tests.support.custom_stages.Ranks"}])
    cluster = Cluster(local=False, cpus=64, gpus=0, nodes=4, cores=2)
    stages = lay_out(config, dataset, cluster)
    monkeypatch.setattr("tests.support.custom_stages.Ranks.version", "2")
    with pytest.raises(UsageError, match="the code of the stage rank has changed: its version here is 2, and that of"):
        lay_out(config, dataset, cluster)
    monkeypatch.setattr("segmint.pipeline.building.execution.stages.observe_growth", lambda: cluster)
    assert lay_out_again(config, dataset, cluster, stages) is stages


def test_gpus_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the cluster has 0 GPUs"):
        laid_out(tmp_path, LAPTOP, resources={"segment": {"num_gpus": 1}})


def test_a_gpu_s_actor_has_threads_beside_the_device_and_calls_that_keep_them_busy(
    tmp_path: Path,
) -> None:
    on_cpu = laid_out(tmp_path, LAPTOP)
    assert (on_cpu.segment_threads, on_cpu.segment_pool.calls_at_once) == (HostThreads(), 1)
    config, dataset = opened(tmp_path, resources={"segment": {"num_cpus": 4}}, rows_per_block=6)
    numerics = on_a_gpu(dataset.manifest.numerics)
    dataset = replace(dataset, manifest=dataset.manifest.model_copy(update={"numerics": numerics}))
    stages = lay_out(config, dataset, Cluster(local=False, cpus=64, gpus=2, nodes=1, cores=64))
    assert stages.segment_threads == HostThreads(4, 4, 2)
    assert stages.segment_pool.calls_at_once == HostThreads(4, 4, 2).calls(6) == 5
    assert on_cpu.workers() == {"prepare": 1, "segment": 2}
    assert stages.workers() == {"prepare": 54, "decode": 8, "compute": 2, "finish": 8}
    strategy = stages.segment_pool.strategy()
    assert strategy.max_tasks_in_flight_per_actor == 10, "the next calls are on the way"
    assert stages.segment_pool.in_flight == 10 * stages.segment_pool.largest == 20


@pytest.mark.parametrize(
    ("gpus", "nodes", "prepare", "segment", "actors", "gpus_each"),
    [
        (1, 1, "auto", "auto", 1, 0.9),
        (8, 1, "auto", "auto", 8, 0.9),
        (16, 2, 0.25, "auto", 16, 0.75),
        (8, 1, 1, "auto", 7, 1.0),  # one GPU is the detectors' alone
        (8, 1, "auto", 0.5, 15, 0.5),
        (8, 2, "auto", 1, 6, 1.0),
        (8, 2, 0.5, 2, 3, 2.0),
    ],
)
def test_segment_actors_leave_detector_processes_their_share(
    tmp_path: Path, gpus: int, nodes: int, prepare: object, segment: object, actors: int, gpus_each: float
) -> None:
    config, dataset = on_gpu(tmp_path, prepare, segment)
    cluster = Cluster(local=False, cpus=200, gpus=gpus, nodes=9, cores=64, gpu_nodes=nodes, gpu_node_cpus=64)
    stages = lay_out(config, dataset, cluster)
    assert (stages.segment_pool.largest, stages.segment_pool.num_gpus) == (actors, gpus_each)
    assert stages.prepare_pool.largest == 64 - 2 * actors - nodes - stages.writers, "on the nodes with GPUs alone"
    assert stages.prepare_arguments[0].deidentify.device == "cuda"
    assert stages.detectors_share == config.detectors_share > 0


def on_gpu(folder: Path, prepare: object = "auto", segment: object = "auto") -> tuple[Config, BuildDataset]:
    """A dataset whose model and detectors run on GPUs."""
    config, dataset = opened(folder)
    resources = {"prepare": {"num_gpus": prepare}, "segment": {"num_gpus": segment}}
    tree = {**config.model_dump(), "deidentify": {"device": "cuda"}, "resources": resources}
    numerics = on_a_gpu(dataset.manifest.numerics, detectors="H200")
    manifest = dataset.manifest.model_copy(update={"numerics": numerics})
    return Config(**tree), replace(dataset, manifest=manifest)


def test_gpus_too_few_for_actors_and_detectors_are_refused_with_the_keys(tmp_path: Path) -> None:
    config, dataset = on_gpu(tmp_path, segment=1)
    cluster = Cluster(local=False, cpus=200, gpus=1, nodes=1, cores=64, gpu_nodes=1, gpu_node_cpus=64)
    words = (
        r"segment\.num_gpus is 1 and resources\.prepare\.num_gpus 0\.1 on each of 1 nodes, but the cluster has 1 GPUs"
    )
    with pytest.raises(UsageError, match=words):
        lay_out(config, dataset, cluster)
    with pytest.raises(UsageError, match=r"deidentify\.device is cuda, but the cluster has 0 GPUs"):
        lay_out(config, dataset, LAPTOP)


def test_originals_are_kept_only_where_crops_are_cut_from_them(tmp_path: Path) -> None:
    for name, masks, kept in (
        ("none", {"crop_n_layers": 0}, None),
        ("layers", {"crop_n_layers": 1, "crop_overlap_ratio": 0.2}, CropLayers(1, 0.2)),
        ("official", {"profile": "official", "crop_n_layers": 1}, None),
    ):
        (tmp_path / name).mkdir()
        stages = laid_out(tmp_path / name, LAPTOP, masks=masks)
        assert stages.prepare_arguments[0].crops == kept


@pytest.mark.ray
def test_pools_follow_the_nodes_that_a_cluster_has_now(tmp_path: Path, local_ray: Cluster) -> None:
    config, dataset = opened(tmp_path)
    four_nodes = Cluster(local=False, cpus=64, gpus=0, nodes=4, cores=2)
    before = lay_out(config, dataset, four_nodes)
    now = lay_out_again(config, dataset, four_nodes, before)
    assert (before.segment_pool.largest, now.segment_pool.largest) == (4, 1)
    assert now.prepare_pool.largest == local_ray.cpus - 1 - 2
    assert lay_out_again(config, dataset, LAPTOP, before) is before, "a local Ray has one node for ever"


@pytest.mark.ray
def test_pools_that_no_longer_fit_wait_for_other_nodes(tmp_path: Path, local_ray: Cluster) -> None:
    config, dataset = opened(tmp_path, resources={"segment": {"actors": 2, "num_cpus": 16}})
    four_nodes = Cluster(local=False, cpus=64, gpus=0, nodes=4, cores=2)
    before = lay_out(config, dataset, four_nodes)
    assert lay_out_again(config, dataset, four_nodes, before) is before


def test_the_first_stage_knows_the_hash_of_a_detectors_file(tmp_path: Path) -> None:
    path = yunet(tmp_path / "faces.onnx")
    detectors = {"faces": {"detector": str(path)}, "plates": {"detector": "none"}}
    stages = laid_out(tmp_path, LAPTOP, deidentify=detectors)
    assert stages.prepare_arguments[0].detector_sha256 == {str(path): sha256_of(path)}


SMALL = Cluster(local=False, cpus=6, gpus=0, nodes=1, cores=2)
LARGE = replace(SMALL, cpus=24, nodes=4)


def test_pools_of_a_cluster_that_can_grow_reach_to_all_its_nodes(tmp_path: Path) -> None:
    config, dataset = opened(tmp_path)
    stages = lay_out(config, dataset, replace(SMALL, grown=LARGE))
    assert (stages.segment_pool.smallest, stages.segment_pool.largest) == (1, 4)
    assert stages.prepare_pool.largest == lay_out(config, dataset, LARGE).prepare_pool.largest
    stages = lay_out(config, dataset, replace(LARGE, grown=replace(LARGE, cpus=48, nodes=8)))
    assert (stages.segment_pool.smallest, stages.segment_pool.largest) == (4, 8)
    crowded = lay_out(config, dataset, replace(LARGE, cpus=8, grown=replace(LARGE, cpus=16, nodes=8)))
    assert (crowded.segment_pool.smallest, crowded.segment_pool.largest) == (2, 8), "of 8 CPUs, 3 are for other stages"
    counts = Counter(tuple(bundle.items()) for bundle in stages.bundles(rows=10_000))
    assert counts == {(("CPU", 2.0),): 8, (("CPU", 1.0),): stages.prepare_pool.largest + 1 + stages.writers}


def test_only_pools_that_fit_later_wait_for_nodes(tmp_path: Path) -> None:
    config, dataset = opened(tmp_path)
    nothing = replace(SMALL, cpus=0, nodes=0)
    with pytest.raises(TooFewNodesError, match="the cluster has 0") as caught:
        lay_out(config, dataset, replace(nothing, grown=LARGE))
    assert caught.value.stages.segment_pool.largest == 4
    with pytest.raises(UsageError, match="the cluster has 0") as refused:
        lay_out(config, dataset, nothing)
    assert not isinstance(refused.value, TooFewNodesError)
    config, dataset = opened(tmp_path, resources={"segment": {"actors": 11}})
    with pytest.raises(UsageError, match=r"segment 11 x 2 CPUs.* has 24") as refused:
        lay_out(config, dataset, replace(SMALL, grown=LARGE))
    assert not isinstance(refused.value, TooFewNodesError)


class RecordedRequest:
    """In place of `NodeRequest`."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def ask(self, bundles: Any) -> None:
        self.asked.append(bundles)


def test_a_build_that_waits_requests_nodes_for_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, dataset = opened(tmp_path)
    nothing = replace(SMALL, cpus=0, nodes=0, grown=LARGE)
    observed = [nothing, nothing, LARGE]
    monkeypatch.setattr("segmint.pipeline.building.execution.stages.observe_growth", lambda: observed.pop(0))
    monkeypatch.setattr("segmint.pipeline.building.execution.stages.ASK_S", 0.0)
    request: Any = RecordedRequest()
    stages = lay_out_for_growth(config, dataset, LARGE, request, rows=20)
    assert stages.segment_pool.largest == 4
    with pytest.raises(TooFewNodesError) as caught:
        lay_out(config, dataset, nothing)
    assert request.asked == [caught.value.stages.bundles(20)]


def test_few_rows_request_few_workers(tmp_path: Path) -> None:
    """More nodes would have no block to work on, or less work than their start takes."""
    config, dataset = opened(tmp_path)
    stages = replace(lay_out(config, dataset, replace(SMALL, grown=LARGE)), rows_per_block=16)

    def workers(stages: Stages, rows: int) -> tuple[int, int]:
        sizes = Counter(tuple(bundle.items()) for bundle in stages.bundles(rows))
        actor = [("CPU", 2.0)] + [("GPU", 1.0)] * (stages.segment_pool.num_gpus > 0)
        return sizes[tuple(actor)], sizes[("CPU", 1.0),] - 1 - stages.writers

    most = stages.prepare_pool.largest
    assert [workers(stages, 16 * blocks) for blocks in (1, 2, 3, 100)] == [(1, 1), (2, 2), (3, 3), (4, most)]
    assert workers(stages, 17) == (2, 2), "a smaller block is one, too"
    on_gpus = replace(stages, segment_pool=replace(stages.segment_pool, num_gpus=1.0))
    assert [workers(on_gpus, 16 * blocks)[0] for blocks in (1, 12, 13, 36, 100)] == [1, 1, 2, 3, 4]
    there = replace(stages, segment_pool=replace(stages.segment_pool, smallest=3))
    assert workers(there, 16) == (3, 1), "the smallest pools must fit"


@pytest.mark.parametrize(("gpus", "actors"), [(1.0, 8), (0.75, 8), (0.5, 16), (0.4, 16), (0.3, 24), (2.0, 4)])
def test_a_request_puts_only_whole_actors_on_a_gpu(tmp_path: Path, gpus: float, actors: int) -> None:
    """Ray doesn't split an actor's share of a GPU over two of them."""
    stages = lay_out(*opened(tmp_path), SMALL)
    pool = replace(stages.segment_pool, smallest=1, largest=5 * actors, num_gpus=gpus, num_cpus=1)
    bundles = replace(stages, segment_pool=pool, writers=1).bundles(10**9)
    group = NodeGroup("gpu", {"CPU": 1000, "GPU": 8}, most=10)
    assert missing_nodes([each for each in bundles if "GPU" in each], [group], []) == {"gpu": 5}


def test_blocks_are_larger_on_gpus_without_crops_unless_their_jpegs_are_large(tmp_path: Path) -> None:
    def rows(on_gpu: bool = True, **changes: Any) -> int:
        changes = {"rows_per_block": "auto", **changes}
        path = write_config(tmp_path / "build.yaml", "c.jsonl", tmp_path / "dataset", **changes)
        return block_rows(load_config(str(path)), on_gpu=on_gpu)

    assert (rows(), rows(on_gpu=False)) == (128, 16)
    assert rows(masks={"crop_n_layers": 1}) == 16
    assert rows(release={"short_side": 3000}) == 36
    assert rows(release={"short_side": 30000}) == 16
    assert rows(rows_per_block=7) == 7


def with_segmenter(folder: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Stages:
    """The layout with a segmenter in place of SAM, without its trial."""
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr("segmint.pipeline.building.dataset.try_segmenters", lambda config: None)
    catalog = write_catalog(folder / "c.jsonl", [{"uri": f"{i}.jpg", "license": "CC0-1.0"} for i in range(100)])
    tree = {**builds.SMALL, "catalog": str(catalog), "output": str(folder / "dataset"), **changes}
    for key in ("masks", "model", "resources"):
        tree.pop(key, None)
    config = Config.model_validate(tree)
    return lay_out(config, open_or_create(config, Storage()), cluster)


def test_a_segmenter_has_an_actor_a_gpu_or_one_actor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bright: dict[str, Any] = {"stage": "tests.support.segmenters.Bright"}
    mean = {"stage": "tests.support.custom_stages.Mean", "resources": {"num_gpus": 0.5}}
    gpus = Cluster(local=False, cpus=64, gpus=4, nodes=4, cores=2, gpu_nodes=4, gpu_node_cpus=64)
    stages = with_segmenter(tmp_path / "cpu", gpus, monkeypatch, segmenter=bright)
    assert (stages.segment_pool.largest, stages.segment_pool.num_gpus, stages.segment_pool.num_cpus) == (1, 0, 2)
    assert stages.prepare_pool.largest == 64 - 2 - 2
    assert (stages.workers()["stage_bright"], "segment" in stages.workers()) == (1, False)

    bright["resources"] = {"num_gpus": 1, "num_cpus": 3}
    stages = with_segmenter(tmp_path / "gpu", gpus, monkeypatch, segmenter=bright, stages=[mean])
    assert (stages.segment_pool.smallest, stages.segment_pool.largest) == (3, 3), "the stage takes half a GPU"
    last = stages.own[-1]
    assert (last.number, last.after, last.pool) == (2, "prepare", stages.segment_pool)
    assert [each.number for each in stages.own] == [1, 2]
    *_, settings = last.arguments(None)
    assert (settings.threads, settings.rejects, settings.numerics.device) == (2, False, "segmenter")
    assert stages.bundles(1000).count({"CPU": 3.0, "GPU": 1.0}) == 3

    bright["resources"] = {"num_gpus": 1, "actors": 2}
    assert with_segmenter(tmp_path / "two", gpus, monkeypatch, segmenter=bright).segment_pool.largest == 2
    with pytest.raises(UsageError, match=r"segmenter\.resources\.num_gpus is 1, but the cluster has 0 GPUs: add GPUs"):
        with_segmenter(tmp_path / "none", LAPTOP, monkeypatch, segmenter=bright)


def test_a_stage_that_adds_masks_drops_artifacts_at_least_as_strictly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segmint.pipeline.building.dataset.try_segmenters", lambda config: None)
    bright = {"stage": "tests.support.segmenters.Bright", "after": "segment", "resources": {"num_cpus": 3}}
    encoded = {"stage": "tests.support.segmenters.Encoded"}
    server = replace(LAPTOP, cpus=16)
    for of_sam, own, expected in (("auto", None, 0.8), ("off", 0.9, 0.9), (0.7, 0.9, 0.7), (0.7, 0.6, 0.6)):
        folder = tmp_path / f"{of_sam}-{own}"
        folder.mkdir()
        stage = {**bright, "filters": {"min_area": 5, "drop_redaction_artifacts": own}, "on_error": "reject"}
        masks = {**builds.SMALL["masks"], "drop_redaction_artifacts": of_sam}
        (only,) = laid_out(folder, server, stages=[stage], masks=masks).own
        assert (only.number, only.after, only.pool.largest) == (1, "segment", 1)
        assert issubclass(only.actor(), CustomSegmenter)
        *_, settings = only.arguments(None)
        filters = MaskFilters(min_area=5, drop_redaction_artifacts=expected)
        assert settings == SegmenterSettings(filters, rejects=True, threads=2)
    segmenter = {**encoded, "filters": {"drop_redaction_artifacts": 0.5}}
    first, last = with_segmenter(tmp_path / "two", server, monkeypatch, segmenter=segmenter, stages=[bright]).own
    assert ([first.number, first.after], [last.number, last.after]) == ([1, "segment"], [2, "prepare"])
    assert first.arguments(None)[-1].filters == MaskFilters(drop_redaction_artifacts=0.5)


def test_a_segmenter_whose_code_changed_since_the_build_began_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bright = {"stage": "tests.support.segmenters.Bright"}
    with_segmenter(tmp_path, LAPTOP, monkeypatch, segmenter=bright)
    monkeypatch.setattr("tests.support.segmenters.Bright.version", "2")
    with pytest.raises(UsageError, match=r"segmenter\.version: '1' before, '2' now"):
        with_segmenter(tmp_path, LAPTOP, monkeypatch, segmenter=bright)
