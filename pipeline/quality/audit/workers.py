"""Audit of shards in the threads of one process, or with Ray Data in one actor per core. Results are in shard order."""

import socket
import threading
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import pyarrow as pa

from segmint.catalogs.dataset.manifest import CatalogPart, DatasetManifest, manifest_generations
from segmint.catalogs.dataset.tombstones import NO_NAMES, RemovedNames
from segmint.catalogs.parquet import NORMALIZED
from segmint.catalogs.source.files import read_rows
from segmint.infra.errors import UsageError
from segmint.infra.progress import Progress
from segmint.infra.ray_session import ray_session
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.location import Location
from segmint.infra.uris import absolute
from segmint.operators.images import JpegDecoder
from segmint.operators.rows import Row
from segmint.pipeline.building.execution.actors import ItemActor, item_results, item_tables, map_tables
from segmint.pipeline.config.config import ResourcesConfig
from segmint.pipeline.quality.audit.content import (
    ContentChecker,
    ContentPlan,
    FileSettings,
    ShardAudit,
    ShardAuditResult,
    ShardContentCheck,
    ShardPlan,
)

SHARDS_AT_ONCE = 4
"""Number of shards that the threads of one process audit concurrently."""

_WINDOW = 65_536  # rows per read; one read serves many shards


class CatalogWindow:
    """Sliding window over `parts` of a dataset's catalog that returns rows by ordinal.

    Only one window is in memory, so threads should read rows in roughly the same order.
    """

    def __init__(self, dataset: Location, parts: Sequence[CatalogPart], images_per_shard: int) -> None:
        self._dataset = dataset
        self._images_per_shard = images_per_shard
        self._parts = parts
        self._lock = threading.Lock()
        self._window = NORMALIZED.empty_table()
        self._start = 0  # first ordinal of the window

    def read(self, start: int, stop: int) -> dict[int, Row] | None:
        """Return a shard's catalog rows [start, stop) by ordinal, or None if none of the parts contains them."""
        for part in self._parts:
            first = part.first_shard * self._images_per_shard
            if first <= start < first + part.rows:
                return {row["ordinal"]: row for row in self._slice(part, start, stop).to_pylist()}
        return None

    def _slice(self, part: CatalogPart, start: int, stop: int) -> pa.Table:
        with self._lock:
            if start < self._start or stop > self._start + self._window.num_rows:
                self._window = read_rows(self._dataset / part.path, start, max(stop, start + _WINDOW))
                self._start = start
            return self._window.slice(start - self._start, stop - start)


@dataclass(frozen=True)
class AuditTask:
    """Arguments for auditing any shard of a dataset. They are small enough to send to another process."""

    dataset: Location
    manifest: DatasetManifest
    damaged_parts: frozenset[str]  # paths of catalog parts that differ from the pinned files
    settings: FileSettings
    content: ContentPlan | None  # None: integrity only
    names: RemovedNames = NO_NAMES  # names of removed images


class ShardAuditor:
    """Auditor of a dataset's shards for one process, with one window of the catalog. Thread-safe."""

    def __init__(self, task: AuditTask, looks: ContentChecker | None) -> None:
        """Set up the auditor. `looks` is the checker that was loaded from the task's `content`."""
        self._task = task
        self._looks = looks
        self._decoder = JpegDecoder(own=True)
        intact = [part for part in task.manifest.catalog if part.path not in task.damaged_parts]
        self._catalog = CatalogWindow(task.dataset, intact, task.manifest.images_per_shard)

    def audit(self, plan: ShardPlan) -> ShardAuditResult:
        look = None if self._looks is None else ShardContentCheck(self._looks, plan.searched, self._decoder)
        catalog = self._catalog.read(*plan.ordinals)
        settings, names = self._task.settings, self._task.names
        return ShardAudit(self._task.dataset, plan, settings, catalog, self._decoder, look, names).run()

    def close(self) -> None:
        """Stop the child processes that decode unusual JPEGs."""
        self._decoder.close()


def audit_in_threads(auditor: ShardAuditor, plans: Iterable[ShardPlan]) -> Generator[ShardAuditResult, None, None]:
    """Audit a few shards concurrently in threads, and yield the results in the order of the plans."""
    with (
        closing(auditor),
        closing(map_ahead(auditor.audit, plans, SHARDS_AT_ONCE, SHARDS_AT_ONCE + 1, "audit")) as done,
    ):
        yield from done


WINDOW_SHARDS = 2_000
"""Number of shards per Ray Data execution. It limits how many plans the driver holds in memory."""

WORKERS_PER_GPU = 4
"""Number of workers per GPU. Each one loads its own detectors there, but spends most of its time reading shards."""

STAGES = {"AuditShards": "audit"}
"""Names of stages in the progress display, by a part of Ray Data's operator name."""


class AuditShards(ItemActor):
    """Ray Data actor that audits the shards of `ShardPlan`s."""

    def __init__(self, task: AuditTask) -> None:
        self._task = task

    def handle(self, item: ShardPlan) -> ShardAuditResult:
        """Audit a shard."""
        return self._auditor.audit(item)

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
    import ray.data  # noqa: F401 - before the session, which quiets the logger that this import sets up

    dataset = replace(task.dataset, uri=absolute(task.dataset.uri))  # actors have a different working directory
    task = replace(task, dataset=dataset)
    waiting = iter(plans)
    with ray_session(resources.address, object_store_memory=resources.object_store_memory) as cluster:
        workers, num_gpus = cluster.most_workers, None
        if task.content is not None and task.content.on_gpu:
            if not cluster.gpus:
                raise UsageError("--device cuda was requested, but Ray found no GPU. Use --device cpu")
            workers, num_gpus = min(workers, int(cluster.gpus * WORKERS_PER_GPU)), 1 / WORKERS_PER_GPU
        while window := list(islice(waiting, WINDOW_SHARDS)):
            with Progress() as progress:
                tables = item_tables(window)
                done = map_tables(AuditShards, (task,), tables, workers, progress, STAGES, num_gpus)
                yield from item_results(done, "audit")
