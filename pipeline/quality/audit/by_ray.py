"""Audit of shards with Ray Data: one actor per core, with results in shard order."""

import math
import pickle
import socket
import traceback
from collections.abc import Generator, Iterable
from dataclasses import replace
from functools import cached_property
from itertools import islice

import pyarrow as pa
import ray.data
import ray.exceptions

from segmint.catalogs.dataset.manifest import manifest_generations
from segmint.infra.errors import SegmintError, UnfinishedError, UsageError, last_line
from segmint.infra.progress import Progress
from segmint.infra.ray_session import RETRIES, Cluster, ray_session
from segmint.infra.uris import absolute
from segmint.pipeline.building.execution.stage_watch import StalledError, watched
from segmint.pipeline.config.config import ResourcesConfig
from segmint.pipeline.quality.audit.content import ShardAuditResult, ShardPlan
from segmint.pipeline.quality.audit.workers import AuditTask, ShardAuditor

WINDOW_SHARDS = 2_000
"""Number of shards per Ray Data execution. It limits how many plans the driver holds in memory."""

WORKERS_PER_GPU = 4
"""Number of workers per GPU. Each one loads its own detectors there, but spends most of its time reading shards."""

STAGES = {"AuditShards": "audit"}
"""Names of stages in the progress display, by a part of Ray Data's operator name."""

_PLAN, _RESULT = (pa.schema([pa.field(name, pa.large_binary())]) for name in ("plan", "result"))


class AuditShards:
    """Ray Data actor that audits pickled `ShardPlan`s, and returns pickled `ShardAuditResult`s or exceptions."""

    def __init__(self, task: AuditTask) -> None:
        self._task = task

    def __call__(self, plans: pa.Table) -> pa.Table:
        """Audit the shards of a block."""
        results = [self._audit(pickle.loads(plan)) for plan in plans.column("plan").to_pylist()]
        return pa.table([results], schema=_RESULT)

    def _audit(self, plan: ShardPlan) -> bytes:
        try:
            return pickle.dumps(self._auditor.audit(plan))
        except Exception as error:  # noqa: BLE001 - the driver raises it
            return _pickled(error)

    @cached_property
    def _auditor(self) -> ShardAuditor:
        task = self._task
        if not manifest_generations(task.dataset):
            raise UsageError(
                f"{task.dataset} isn't accessible from {socket.gethostname()}, a node of the Ray cluster. "
                "Put the dataset where all nodes can read it, or set resources.address: local"
            )
        return ShardAuditor(task, None if task.content is None else task.content.load())


def audit_by_ray(
    task: AuditTask, plans: Iterable[ShardPlan], resources: ResourcesConfig
) -> Generator[ShardAuditResult, None, None]:
    """Audit shards with Ray and yield the results in the order of the plans. Joins a running cluster or starts one.

    Raises any exception that the audit of a shard raises, and `UnfinishedError` if Ray itself fails.
    """
    dataset = replace(task.dataset, uri=absolute(task.dataset.uri))  # actors have a different working directory
    task = replace(task, dataset=dataset)
    waiting = iter(plans)
    with ray_session(resources.address, object_store_memory=resources.object_store_memory) as cluster:
        while window := list(islice(waiting, WINDOW_SHARDS)):
            try:
                yield from _audit_window(task, window, cluster)
            except (ray.exceptions.RayError, StalledError) as error:
                raise UnfinishedError(f"Ray failed before the audit finished: {last_line(error)}") from error


def _audit_window(task: AuditTask, plans: list[ShardPlan], cluster: Cluster) -> Generator[ShardAuditResult, None, None]:
    blocks = [pa.table([[pickle.dumps(plan)]], schema=_PLAN) for plan in plans]
    workers = min(len(plans), cluster.most_workers)
    on_gpu = task.content is not None and task.content.on_gpu
    if on_gpu:
        if not cluster.gpus:
            raise UsageError("--device cuda was requested, but Ray found no GPU. Use --device cpu")
        workers = min(workers, int(cluster.gpus * WORKERS_PER_GPU))
    results = ray.data.from_arrow(blocks).map_batches(
        AuditShards,
        fn_constructor_args=(task,),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, initial_size=workers),
        batch_size=None,
        batch_format="pyarrow",
        udf_modifying_row_count=False,
        num_cpus=1,
        num_gpus=1 / WORKERS_PER_GPU if on_gpu else None,
        max_restarts=RETRIES,
        max_task_retries=RETRIES,
    )
    with Progress() as progress, watched(progress, len(plans), math.inf, stages=STAGES):
        for table in results.iter_batches(batch_size=None, batch_format="pyarrow"):
            for data in table.column("result").to_pylist():
                result = pickle.loads(data)
                if isinstance(result, Exception):
                    raise result
                yield result


def _pickled(error: Exception) -> bytes:
    """Pickle an exception with its traceback as a note. If that fails, pickle a `RuntimeError` with the same text."""
    if not isinstance(error, SegmintError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:  # noqa: BLE001 - the exception's class can raise anything here
        data = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return data
