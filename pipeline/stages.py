"""How the stages are laid out on the machines at hand: actors, CPUs, and what each stage is made from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray.data import ActorPoolStrategy

from infra.errors import UsageError
from infra.ray_session import Cluster
from infra.storage import Storage
from operators.segment import SegmentSettings
from pipeline.config import Config, PoolConfig
from pipeline.dataset import OpenDataset, prepare_config

DESCRIBE_CPUS = 0.5
"""Unlike the actors' CPUs, or Ray would fuse the stages into one."""

WRITERS = 2
"""Shards that are written at once."""


@dataclass(frozen=True)
class Pool:
    """Actors of one stage: between `smallest` and `largest`, each with its logical CPUs and GPUs."""

    smallest: int
    largest: int
    num_cpus: float
    num_gpus: float
    calls_at_once: int

    def strategy(self) -> ActorPoolStrategy:
        """The pool as Ray Data takes it."""
        return ActorPoolStrategy(
            min_size=self.smallest,
            max_size=self.largest,
            max_tasks_in_flight_per_actor=2 * self.calls_at_once,
            max_concurrent_calls_per_actor=self.calls_at_once,
            enable_true_multi_threading=self.calls_at_once > 1,
        )


@dataclass(frozen=True)
class Stages:
    """The layout of one run."""

    prepare_arguments: tuple[Any, ...]  # of `operators.prepare.Prepare`
    prepare_pool: Pool
    segment: SegmentSettings
    segment_pool: Pool
    rows_per_block: int
    describe_num_cpus: float = DESCRIBE_CPUS
    writers: int = WRITERS
    report_peak: Callable[[float], None] | None = None  # told each segment actor's measured peak in FLOP/s


def lay_out(
    config: Config, dataset: OpenDataset, cluster: Cluster, report_peak: Callable[[float], None] | None = None
) -> Stages:
    """Sizes the actor pools for a cluster; segment actors tell `report_peak` their device's measured peak in FLOP/s.

    Raises `UsageError`, with the numbers, when the smallest pools, one reader and one writer do not fit.
    """
    resources = config.resources
    on_gpu = dataset.numerics.device == "cuda"
    gpus_each = (1.0 if on_gpu else 0.0) if resources.segment.num_gpus == "auto" else float(resources.segment.num_gpus)
    if gpus_each > cluster.gpus:
        raise UsageError(
            f"resources.segment.num_gpus is {gpus_each:g}, but the cluster has {cluster.gpus:g} GPUs: "
            "add GPUs, or set model.device: cpu"
        )
    by_machine = int(cluster.gpus // gpus_each) if gpus_each else cluster.nodes
    segment = _pool(
        resources.segment, max(1, by_machine), max(1, by_machine), gpus_each, calls_at_once=2 if on_gpu else 1
    )
    # Prepare grows into the cores that segmentation leaves; a cluster's cores count, a local Ray's logical CPUs do not.
    cores = cluster.cores if cluster.local else cluster.cpus
    busy = segment.largest * (segment.num_cpus if on_gpu else dataset.numerics.threads)
    prepare = _pool(resources.prepare, 1, max(1, int(cores - busy)), 0.0, calls_at_once=1)
    needed = segment.smallest * segment.num_cpus + prepare.smallest * prepare.num_cpus + 2
    if needed > cluster.cpus:
        raise UsageError(
            f"the smallest pools do not fit: segment {segment.smallest} x {segment.num_cpus:g} CPUs, prepare "
            f"{prepare.smallest} x {prepare.num_cpus:g}, one reader and one writer take {needed:g} logical CPUs, and "
            f"the cluster has {cluster.cpus:g}: lower resources.*.actors or num_cpus, or add machines"
        )
    return Stages(
        prepare_arguments=_prepare_arguments(config, dataset),
        prepare_pool=prepare,
        segment=_segment_settings(config, dataset),
        segment_pool=segment,
        rows_per_block=min(config.rows_per_block, max(1, -(-dataset.rows // (2 * segment.largest)))),
        report_peak=report_peak,
    )


def _pool(wanted: PoolConfig, smallest: int, largest: int, num_gpus: float, *, calls_at_once: int) -> Pool:
    if wanted.actors != "auto":
        smallest, largest = (wanted.actors, wanted.actors) if isinstance(wanted.actors, int) else wanted.actors
    return Pool(smallest, largest, float(wanted.num_cpus), num_gpus, calls_at_once)


def _prepare_arguments(config: Config, dataset: OpenDataset) -> tuple[Any, ...]:
    policy = config.license.policy(dataset.manifest.policy_date)
    return prepare_config(config), Storage(config.storage), policy, config.catalog, config.assets


def _segment_settings(config: Config, dataset: OpenDataset) -> SegmentSettings:
    return SegmentSettings(
        masks=config.masks.settings(dataset.numerics.points_per_chunk),
        weights=config.model.weights,
        numerics=dataset.numerics,
        assets=config.assets,
        storage_options=config.storage,
        allow_mixed_numerics=config.allow_mixed_numerics,
    )
