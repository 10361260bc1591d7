"""Layout of the stages on the available machines: actors, CPUs, GPUs, and the arguments of each stage.

Actor pools of stages, and those of custom stages and segmenters, which run users' code.
"""

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import ray
import ray.exceptions
from ray.data import ActorPoolStrategy, DataContext

from segmint.catalogs.dataset.tombstones import NO_NAMES, read_removals
from segmint.infra.errors import UnfinishedError, UsageError, last_line
from segmint.infra.log import get_logger
from segmint.infra.node_groups import NodeRequest
from segmint.infra.ray_session import (
    NAME_GPUS,
    RETRIES,
    Cluster,
    GpuNodes,
    accelerator_types,
    joins_cluster,
    local_cluster,
    observe_growth,
    ray_session,
)
from segmint.infra.row_ledger import RowLedger
from segmint.infra.storage.storage import Storage
from segmint.infra.wording import counted
from segmint.operators.custom.contract import StageSpec
from segmint.operators.custom.stage import CustomStage
from segmint.operators.prepare.detector_process import DetectorsGoneError
from segmint.operators.prepare.prepare import PrepareResources
from segmint.operators.segment.numerics import Numerics
from segmint.operators.segment.overlap import HostThreads
from segmint.operators.segment.segment import SegmentSettings
from segmint.operators.segmenter.segmenter import CustomSegmenter, SegmenterSettings
from segmint.pipeline.building.dataset import BuildDataset
from segmint.pipeline.building.first_numerics import actors_that_fit
from segmint.pipeline.config.config import (
    FEWEST_WRITERS,
    ROWS_PER_BLOCK,
    Config,
    PoolConfig,
    Position,
    SegmenterConfig,
    SegmenterPoolConfig,
    SegmentPoolConfig,
    StageConfig,
    as_pinned,
    prepare_config,
    recorded_artifact_iou,
    segment_settings,
    segmenter_settings,
)


@dataclass(frozen=True)
class ActorPool:
    """Pool of `smallest` to `largest` actors for a stage. `num_cpus` and `num_gpus` are logical numbers per actor."""

    smallest: int
    largest: int
    num_cpus: float
    num_gpus: float
    calls_at_once: int

    def within(self, actors: int) -> int:
        """Return the pool size that is closest to `actors`."""
        return max(self.smallest, min(self.largest, actors))

    @property
    def in_flight(self) -> int:
        """Maximum number of blocks that the largest pool has at a time: those in its calls, and as many on the way."""
        return self.largest * self._in_flight_per_actor

    @property
    def _in_flight_per_actor(self) -> int:
        return 2 * self.calls_at_once

    def strategy(self) -> ActorPoolStrategy:
        """Return the pool in Ray Data's notation. Pass `calls_at_once` as `max_concurrency`, as all versions allow."""
        return ActorPoolStrategy(
            min_size=self.smallest,
            max_size=self.largest,
            max_tasks_in_flight_per_actor=self._in_flight_per_actor,
            enable_true_multi_threading=self.calls_at_once > 1,
        )

    def options(self, rows_per_block: int) -> dict[str, Any]:
        """Return the arguments of Ray Data's `map_batches` for a stage that gets blocks of `rows_per_block` rows."""
        return {
            "compute": self.strategy(),
            "max_concurrency": self.calls_at_once,
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus or None,
            "max_restarts": RETRIES,
            "max_task_retries": RETRIES,
            # On GPUs, Ray requires a batch size. With the block size, a call receives the same rows as on CPUs.
            "batch_size": rows_per_block if self.num_gpus else None,
            "batch_format": "pyarrow",
            "udf_modifying_row_count": False,
        }


@dataclass(frozen=True)
class CustomPool:
    """Actor pool of a custom stage, which adds masks if it has `settings`, or of a segmenter.

    A segmenter is the last custom stage after `prepare`, and it has the highest number.
    """

    number: int  # identifies the stage in the ledger; starts at 1
    spec: StageSpec
    after: Position
    pool: ActorPool
    batch_size: int | None
    timeout_s: float  # time limit per image
    settings: SegmenterSettings | None = None

    def actor(self) -> type[CustomStage]:
        """Return the actors' class, named after the stage. Ray and the progress bars show this name."""
        return type(self.spec.label, (CustomStage if self.settings is None else CustomSegmenter,), {})

    def arguments(self, ledger: RowLedger | None) -> tuple[Any, ...]:
        """Return the arguments for constructing an actor."""
        own = None if ledger is None else ledger.of_stage(self.number)
        arguments = self.spec, self.batch_size, self.timeout_s, own, self.pool.num_gpus > 0
        return arguments if self.settings is None else (*arguments, self.settings)


def pool_of(wanted: PoolConfig, smallest: int, largest: int, num_gpus: float) -> ActorPool:
    """Return a pool of the configured size. If that is auto, the pool has `smallest` to `largest` actors."""
    if wanted.actors != "auto":
        smallest, largest = (wanted.actors, wanted.actors) if isinstance(wanted.actors, int) else wanted.actors
    return ActorPool(smallest, largest, float(wanted.num_cpus), num_gpus, calls_at_once=1)


def custom_pools(config: Config, dataset: BuildDataset) -> tuple[tuple[CustomPool, ...], CustomPool | None]:
    """Return the custom stages' pools and the segmenter's, if any, which has its smallest size.

    Raises `UsageError` if a stage's code has changed since the first start.
    """
    pools: list[CustomPool] = []
    begun = dataset.manifest.config.get("stages", {})
    specs = config.load_stages()
    for number, (each, spec) in enumerate(zip(config.stages, specs, strict=False), start=1):
        _check_version(dataset, spec, begun.get(spec.name, {}).get("version"))
        settings = None
        if spec.masks:
            settings = segmenter_settings(each, artifact_iou=recorded_artifact_iou(dataset.manifest.config))
        pools.append(custom_pool(number, spec, each, settings))
    segmenter = config.segmenter
    if segmenter is None:
        return tuple(pools), None
    spec = specs[-1]
    _check_version(dataset, spec, dataset.manifest.config.get("segmenter", {}).get("version"))
    numerics = None if config.allow_mixed_numerics else dataset.numerics
    return tuple(pools), custom_pool(len(specs), spec, segmenter, segmenter_settings(segmenter, numerics))


def custom_pool(
    number: int, spec: StageSpec, stage: StageConfig | SegmenterConfig, settings: SegmenterSettings | None = None
) -> CustomPool:
    """Return the pool of a custom stage or a segmenter, which has its smallest size.

    `settings` are for a segmenter, or for a stage that adds masks.
    """
    resources = stage.resources
    after: Position = stage.after if isinstance(stage, StageConfig) else "prepare"
    pool = pool_of(resources, 1, 1, resources.num_gpus)
    batch_size = None if stage.batch_size == "auto" else stage.batch_size
    return CustomPool(number, spec, after, pool, batch_size, resources.timeout_s, settings)


def _check_version(dataset: BuildDataset, spec: StageSpec, version: str | None) -> None:
    if version != spec.version:
        raise UsageError(
            f"the code of the stage {spec.name} has changed: its version here is {spec.version}, and that of "
            f"{dataset.location} is {version}. Restore it, or choose another output"
        )


@dataclass(frozen=True)
class NodeDetectors:
    """`DetectorHost` that connects each actor to the detector process on the actor's own node."""

    holders: Mapping[str, tuple[Any, str]]  # actor and socket name of the detector process, by node

    @property
    def address(self) -> str:
        """Name of this node's socket."""
        return self._here()[1]

    def ready(self) -> None:
        """Wait until this node's detector process accepts connections. Raises `DetectorsGoneError`."""
        try:
            ray.get(self._here()[0].ready.remote())
        except ray.exceptions.RayActorError as error:
            raise DetectorsGoneError(
                f"a node's detector worker (deidentify.device) died: {last_line(error)}"
            ) from error

    def _here(self) -> tuple[Any, str]:
        node = ray.get_runtime_context().get_node_id()
        if node not in self.holders:
            raise DetectorsGoneError(
                f"deidentify.device is cuda, but node {node} had no GPU when the window began: build again"
            )
        return self.holders[node]


@dataclass(frozen=True)
class GpuKind:
    """Kind of GPU that workers request from Ray."""

    name: str | None = None  # Ray's name for the kind, such as `H100`; None: any kind
    idle: Mapping[str, GpuNodes] = field(default_factory=dict)  # GPUs of other kinds, by the kind's name


def in_words(kinds: Mapping[str, GpuNodes]) -> str:
    """Format GPUs by kind: `8 x H100 on 1 node, 4 x A100 on 2 nodes`."""
    each = (f"{of.gpus:g} x {name or 'unnamed'} on {counted(of.nodes, 'node')}" for name, of in sorted(kinds.items()))
    return ", ".join(each)


def choose_kind(config: Config, numerics: Numerics, cluster: Cluster) -> GpuKind:
    """Return the kind of GPU to request: `resources.segment.accelerator_type`, or the kind in the dataset's numerics.

    Returns any kind if the build uses no GPU, if Ray doesn't name the kinds, if `allow_mixed_numerics` is set, or if
    the cluster has a single kind and the configuration names none. If no kind fits, raises `UsageError`, which lists
    the cluster's kinds.
    """
    gpu = numerics.device_kind if numerics.device == "cuda" else numerics.detectors
    wanted, kinds = config.resources.segment.accelerator_type, cluster.gpu_kinds
    if not gpu or config.allow_mixed_numerics or (kinds and not cluster.names_gpus):
        return GpuKind()
    unnamed = f". {NAME_GPUS}" if cluster.has_unnamed_gpus else ""
    if wanted == "auto":
        if len(kinds) < 2:  # autoscalers can't add nodes by kind; instead, each actor checks its own GPU
            return GpuKind()
        fitting = sorted(accelerator_types(gpu) & kinds.keys())
        if not fitting:
            raise UsageError(
                f"the dataset's numerics are from a {gpu!r} GPU, but the cluster has {in_words(kinds)}: add nodes "
                "with that GPU, set resources.segment.accelerator_type to Ray's name for it, or set "
                f"allow_mixed_numerics: true{unnamed}"
            )
        wanted = fitting[0]
    elif wanted not in kinds:
        raise UsageError(
            f"resources.segment.accelerator_type is {wanted!r}, but the cluster has "
            f"{in_words(kinds) or 'no GPUs'}: use one of these names, or add nodes with that GPU{unnamed}"
        )
    return GpuKind(wanted, {name: of for name, of in kinds.items() if name != wanted})


def only_kind(cluster: Cluster, kind: GpuKind) -> Cluster:
    """Return the cluster with only the GPUs of this kind. Nodes with other GPUs still count with their CPUs."""
    if kind.name is None:
        return cluster
    of = cluster.gpu_kinds[kind.name]
    return replace(cluster, gpus=of.gpus, gpu_nodes=of.nodes, gpu_node_cpus=of.cpus)


DETECTOR_CPUS = 1
"""CPUs of a node's detector process, which resizes images before they go to the GPU."""

_ROUNDING = 1e-6  # tolerance for fractions of a GPU

DESCRIBE: Mapping[str, Any] = {
    "num_cpus": 0.5,  # logical CPUs
    "max_retries": RETRIES,
    "batch_size": None,
    "batch_format": "pyarrow",
    "udf_modifying_row_count": False,
}
"""Arguments of Ray Data's `map_batches` for the describe stage."""

BYTES_PER_PIXEL = 0.27
"""Bytes per pixel of a large released JPEG, twice SA-1B's mean. Ray Data splits blocks that exceed its target size."""

ASPECT = 1.5
"""Assumed aspect ratio of an image, long side to short side."""

_MOST_BUNDLES = 1000
"""Maximum number of `prepare` bundles in a request. In larger clusters, each bundle has room for several actors."""

BLOCKS_PER_GPU = 12
"""Number of blocks per requested GPU: over a minute of work for a fast GPU. Starting the GPU's node takes longer."""

ASK_S = 2.0
"""Seconds between checks of the nodes while a build waits for more of them."""


class TooFewNodesError(UsageError):
    """Raised when the smallest pools don't fit on the current nodes but will fit once the autoscaler adds nodes."""

    def __init__(self, message: str, stages: "Stages") -> None:
        super().__init__(message)
        self.stages = stages  # layout for all nodes that the autoscaler may run


@dataclass(frozen=True)
class Stages:
    """Layout of the stages for one run."""

    prepare_arguments: tuple[Any, ...]  # arguments of `segmint.operators.prepare.prepare.Prepare`
    prepare_pool: ActorPool
    segment: SegmentSettings
    segment_pool: ActorPool  # of SAM or the segmenter
    segment_threads: HostThreads  # threads per actor
    rows_per_block: int
    segment_timeout_s: float  # time limit per image
    writers: int = FEWEST_WRITERS
    measures_peak: bool = False  # True: each segment actor measures its device's peak; False: the driver measures it
    detectors_share: float = 0.0  # GPUs per detector process; 0: `prepare` runs detectors on CPUs
    detectors: NodeDetectors | None = None  # None until the processes start
    gpus: GpuKind = field(default_factory=GpuKind)  # kind of GPU that workers request
    prepare_nodes: Mapping[str, str] = field(default_factory=dict)  # Ray label selector; empty: all nodes
    custom: tuple[CustomPool, ...] = ()  # custom stages, in the order of the configuration
    segmenter: CustomPool | None = None  # makes the masks in place of SAM
    grows: bool = False  # True: the pools also use nodes that the autoscaler adds later

    @property
    def prepare_call(self) -> tuple[Any, ...]:
        """All arguments for constructing `Prepare` in an actor."""
        return self.prepare_arguments if self.detectors is None else (*self.prepare_arguments, self.detectors)

    @property
    def own(self) -> tuple[CustomPool, ...]:
        """Stages with users' code in the order of their numbers: the custom stages, and then the segmenter, if any."""
        if self.segmenter is None:
            return self.custom
        return *self.custom, replace(self.segmenter, pool=self.segment_pool)

    @property
    def maker_of_masks(self) -> str:
        """Name of the stage that makes the masks."""
        return "segment" if self.segmenter is None else self.segmenter.spec.label

    def bundles(self, rows: int) -> list[dict[str, float]]:
        """Return the resources to request from the autoscaler, for the workers, a reader, and the writers.

        The request covers the largest pools, or smaller ones if `rows` rows make too few blocks to keep the largest
        busy. Custom stages on GPUs always get their largest pools, because the layout reserves all of their GPUs.
        """
        blocks = math.ceil(rows / self.rows_per_block)

        def needed(pool: ActorPool) -> int:
            return pool.within(math.ceil(blocks / BLOCKS_PER_GPU) if pool.num_gpus else blocks)

        actor = _resources(self.segment_pool)
        if self.gpus.name:
            actor[f"accelerator_type:{self.gpus.name}"] = 0.001
        preparers = needed(self.prepare_pool)
        together = math.ceil(preparers / _MOST_BUNDLES)
        bundles = [actor] * needed(self.segment_pool)
        bundles += [{"CPU": together * self.prepare_pool.num_cpus}] * math.ceil(preparers / together)
        bundles += [{"CPU": 1.0}] * (1 + self.writers)
        for custom in self.custom:
            count = needed(custom.pool)
            if custom.pool.num_gpus:
                count = custom.pool.largest
            bundles += [_resources(custom.pool)] * count
        return bundles

    def workers(self) -> dict[str, int]:
        """Return the number of workers per stage, for each stage whose load is measured.

        If segment actors run their steps in parallel threads, each step counts as a stage with the name from
        `OverlappedStages.seconds`, and each thread of the step counts as a worker.
        """
        actors, threads = self.segment_pool.largest, self.segment_threads
        inside = (
            {"decode": actors * threads.decoders, "compute": actors, "finish": actors * threads.finishers}
            if threads.decoders
            else {self.maker_of_masks: actors}
        )
        custom = {each.spec.label: each.pool.largest for each in self.custom}
        return {"prepare": self.prepare_pool.largest, **inside, **custom}


def _resources(pool: ActorPool) -> dict[str, float]:
    """Return the resources of one actor for a request. Round its fraction of a GPU up to 1 / (actors per GPU).

    Ray places only whole actors on a GPU. For example, only one actor with 0.75 GPUs fits on a GPU, so a request for
    0.75 GPUs per actor would be too small.
    """
    gpus = 1.0 / int(1.0 / pool.num_gpus + _ROUNDING) if 0 < pool.num_gpus < 1 else pool.num_gpus
    return {name: amount for name, amount in (("CPU", pool.num_cpus), ("GPU", gpus)) if amount}


def lay_out(config: Config, dataset: BuildDataset, cluster: Cluster) -> Stages:
    """Size the actor pools for a cluster.

    If the cluster can grow, `auto` pools range from the current nodes to all nodes that the autoscaler may run. Raises
    `UsageError`, which states the numbers, if the smallest pools, one reader, and one writer don't fit even on all
    nodes that the autoscaler may run. Raises `TooFewNodesError` if they will fit, but not on the current nodes.
    """
    if cluster.grown is None:
        return _fit(config, dataset, cluster)
    most = _fit(config, dataset, cluster.grown, grows=True)
    try:
        now = _fit(config, dataset, cluster, grows=True)
    except UsageError as error:
        raise TooFewNodesError(str(error), most) from error
    if _masks_pool(config).actors != "auto":
        return most
    pool, beside = now.segment_pool, now.prepare_pool.smallest * now.prepare_pool.num_cpus + 2
    smallest = max(1, min(pool.largest, int((cluster.cpus - beside) / pool.num_cpus)))
    return replace(most, segment_pool=replace(most.segment_pool, smallest=smallest))


def require_room(config: Config, dataset: BuildDataset) -> None:
    """Raise the `UsageError` of `lay_out` for a dataset that isn't written yet, without starting a local Ray instance.

    Pools that will fit once the autoscaler adds nodes are accepted.
    """
    if not joins_cluster(config.resources.address):
        import torch

        lay_out(config, dataset, local_cluster(torch.cuda.device_count()))
        return
    with ray_session(config.resources.address), contextlib.suppress(TooFewNodesError):
        lay_out(config, dataset, observe_growth())


def lay_out_for_growth(
    config: Config, dataset: BuildDataset, cluster: Cluster, request: NodeRequest, rows: int
) -> Stages:
    """Lay out the stages. If the smallest pools don't fit on the current nodes, request nodes for `rows` rows.

    Waits up to `resources.wait_for_nodes` for the requested nodes, and raises `UnfinishedError` if too few arrive. Also
    raises the `UsageError` of `lay_out`.
    """
    deadline = time.monotonic() + config.resources.wait_for_nodes
    asked = False
    while True:
        cluster = cluster if cluster.local else observe_growth()
        try:
            return lay_out(config, dataset, cluster)
        except TooFewNodesError as error:
            if not asked:
                asked = True
                get_logger("build").info("waiting for nodes", reason=str(error))
                request.ask(error.stages.bundles(rows))
            if time.monotonic() > deadline:
                waited = f"resources.wait_for_nodes = {config.resources.wait_for_nodes:g} seconds"
                raise UnfinishedError(
                    f"{error}. The autoscaler didn't add enough nodes within {waited}; the same command tries again"
                ) from error
            time.sleep(ASK_S)


def _fit(config: Config, dataset: BuildDataset, cluster: Cluster, *, grows: bool = False) -> Stages:
    """Size the pools for these nodes. If the cluster must first grow to them, `auto` pools start with one actor."""
    resources = config.resources
    on_gpu = dataset.numerics.device == "cuda"
    kind = choose_kind(config, dataset.numerics, cluster)
    cluster = only_kind(cluster, kind)
    share = config.detectors_share
    if share and not cluster.gpus:
        raise UsageError("deidentify.device is cuda, but the cluster has 0 GPUs: add GPUs")
    custom, segmenter = custom_pools(config, dataset)
    taken = sum(each.pool.largest * each.pool.num_gpus for each in custom)
    if taken > cluster.gpus:
        raise UsageError(f"stages take {taken:g} GPUs, but the cluster has {cluster.gpus:g}: lower their resources")
    cluster = replace(cluster, gpus=cluster.gpus - taken)
    gpus_each = _gpus_each(config, on_gpu=on_gpu)
    if gpus_each > cluster.gpus:
        key, other = "resources.segment", "set model.device: cpu"
        if segmenter is not None:
            key, other = "segmenter.resources", "lower it"
        raise UsageError(
            f"{key}.num_gpus is {gpus_each:g}, but the cluster has {cluster.gpus:g} GPUs: add GPUs, or {other}"
        )
    detectors = cluster.gpu_nodes if share else 0
    devices = 1
    if gpus_each:
        devices = _gpu_actors(gpus_each, share, detectors, cluster)
    elif segmenter is None:
        weights_bytes = dataset.sam_weights().stat().st_size
        devices = cpu_actors(cluster, dataset.numerics.threads, weights_bytes, dataset.rows)
    segment = pool_of(_masks_pool(config), 1 if grows else devices, devices, gpus_each)
    rows_per_block = min(block_rows(config, on_gpu=on_gpu), max(1, -(-dataset.rows // (2 * segment.largest))))
    threads = HostThreads.of(dataset.numerics.device, segment.num_cpus, config.model.images_per_batch)
    segment = replace(segment, calls_at_once=threads.calls(rows_per_block))
    # `prepare` gets the cores that segmentation leaves free: CPUs on a cluster, real cores with a local Ray instance.
    cores = cluster.cores if cluster.local else cluster.cpus
    cores = cluster.gpu_node_cpus if share and not cluster.local else cores
    by_cpus = on_gpu or segmenter is not None
    busy = segment.largest * (segment.num_cpus if by_cpus else dataset.numerics.threads) + detectors * DETECTOR_CPUS
    writers = resources.writers_for(segment.largest)
    busy += sum(each.pool.largest * each.pool.num_cpus for each in custom)
    busy += 0 if cluster.local else writers  # Ray Data doesn't know about the writers' CPUs
    prepare = pool_of(resources.prepare, 1, max(1, int(cores - busy)), 0.0)
    needed = segment.smallest * segment.num_cpus + prepare.smallest * prepare.num_cpus + 2
    needed += detectors * DETECTOR_CPUS + sum(each.pool.smallest * each.pool.num_cpus for each in custom)
    if needed > cluster.cpus:
        more = f", {detectors} x {DETECTOR_CPUS} of detector processes" if detectors else ""
        more += "".join(f", {each.spec.label} {each.pool.smallest} x {each.pool.num_cpus:g}" for each in custom)
        raise UsageError(
            f"the smallest pools do not fit: segment {segment.smallest} x {segment.num_cpus:g} CPUs, prepare "
            f"{prepare.smallest} x {prepare.num_cpus:g}{more}, one reader, and one writer need {needed:g} "
            f"logical CPUs, but the cluster has {cluster.cpus:g}: lower resources.*.actors or num_cpus, or add machines"
        )
    return Stages(
        prepare_arguments=_prepare_arguments(config, dataset),
        prepare_pool=prepare,
        segment=segment_settings(config, dataset.numerics, dataset.manifest),
        segment_pool=segment,
        segment_threads=threads,
        rows_per_block=rows_per_block,
        segment_timeout_s=config.resources.segment.timeout_s,
        writers=writers,
        custom=custom,
        segmenter=segmenter,
        grows=grows,
        measures_peak=on_gpu or not cluster.local,
        detectors_share=share,
        gpus=kind,
    )


def block_rows(config: Config, *, on_gpu: bool) -> int:
    """Return the maximum number of rows per block. `auto` is 5 s of GPU work, or fewer rows if the JPEGs are large."""
    most = config.most_rows_per_block(on_gpu=on_gpu)
    if config.rows_per_block != "auto" or most == ROWS_PER_BLOCK:
        return most
    row_bytes = BYTES_PER_PIXEL * ASPECT * config.release.short_side**2
    return max(ROWS_PER_BLOCK, min(most, int(DataContext.get_current().target_max_block_size / row_bytes)))


def _gpus_each(config: Config, *, on_gpu: bool) -> float:
    """Return the number of GPUs per segment actor. `auto` leaves room for a detector process on the same GPU."""
    wanted, share = _masks_pool(config).num_gpus, config.detectors_share
    if wanted != "auto":
        return float(wanted)
    return round(1.0 - share % 1.0, 4) if on_gpu else 0.0


def _gpu_actors(gpus_each: float, share: float, detectors: int, cluster: Cluster) -> int:
    """Return the number of segment actors that fit on a cluster's GPUs. `detectors` GPUs also run a detector each."""
    if not detectors:
        return max(1, int(cluster.gpus // gpus_each))
    others = cluster.gpus - detectors
    beside = int((1.0 - share) / gpus_each + _ROUNDING) * detectors
    alone = int(others // gpus_each) if gpus_each > 1 else int(others) * int(1.0 / gpus_each + _ROUNDING)
    if beside + alone < 1:
        raise UsageError(
            f"resources.segment.num_gpus is {gpus_each:g} and resources.prepare.num_gpus {share:g} on each of "
            f"{detectors} nodes, but the cluster has {cluster.gpus:g} GPUs: lower one of them, or set both to auto"
        )
    return beside + alone


def lay_out_again(config: Config, dataset: BuildDataset, cluster: Cluster, stages: Stages) -> Stages:
    """Return the layout for the current nodes, or the old layout if they are too few, because other nodes may join."""
    if cluster.local:
        return stages
    try:
        return lay_out(config, dataset, observe_growth())
    except UsageError:
        return stages


def cpu_actors(cluster: Cluster, threads: int, weights_bytes: int, rows: int) -> int:
    """Return the number of segment actors on CPUs: one per machine of a cluster, or as many as fit on a single machine.

    `threads` is the number of threads per actor. With a local Ray instance, the number of actors never exceeds `rows`.
    """
    if not cluster.local:
        return max(1, cluster.nodes)
    by_cores = max(1, cluster.cores // threads)
    return min(by_cores, actors_that_fit(by_cores, weights_bytes), max(1, rows))


def _masks_pool(config: Config) -> SegmentPoolConfig | SegmenterPoolConfig:
    """Return the configured pool of the stage that makes the masks."""
    return config.resources.segment if config.segmenter is None else config.segmenter.resources


def _prepare_arguments(config: Config, dataset: BuildDataset) -> tuple[Any, ...]:
    policy = as_pinned(config, dataset.manifest.config).license.policy(dataset.manifest.policy_date)
    prepare = prepare_config(config, dataset.manifest)
    storage = Storage(config.storage, outage_s=config.outage_timeout_s)
    removals = read_removals(dataset.location, config.catalog)
    taken = NO_NAMES if removals is None else removals.names
    return prepare, storage, policy, config.catalog, config.assets, PrepareResources(), taken, dataset.refused
