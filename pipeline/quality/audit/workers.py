"""Audit of shards in the threads of one process, with the state that they share."""

import threading
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass

import pyarrow as pa

from segmint.catalogs.dataset.manifest import CatalogPart, DatasetManifest
from segmint.catalogs.dataset.tombstones import NO_NAMES, RemovedNames
from segmint.catalogs.parquet import NORMALIZED
from segmint.catalogs.source.files import read_rows
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.location import Location
from segmint.operators.images import JpegDecoder
from segmint.operators.rows import Row
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
