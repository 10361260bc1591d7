"""Builds a dataset, or goes on with what is missing: the data's journey, top to bottom.

    catalog -> prepare (ingest, de-identify, release) -> segment -> describe -> shards -> write and commit

`mint` is the flow of rows, `run_build` the loop around it.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray.data
import ray.exceptions

from catalogs.commits import CommitLog
from catalogs.sweep import sweep
from infra.errors import SegmintError, UnfinishedError
from infra.log import get_logger
from infra.metrics import (
    FAULTS,
    IMAGES_WRITTEN,
    MASKS_WRITTEN,
    ROWS_REJECTED,
    SHARDS_COMMITTED,
    SHARDS_MISSING,
    RunMetrics,
)
from infra.progress import Progress
from infra.ray_session import ray_session
from infra.storage import Storage
from operators.describe import describe_table
from operators.prepare import Prepare
from operators.segment import Segment, check_numerics
from operators.write_shard import ShardResult
from pipeline.accounting import Accounting, account
from pipeline.ceiling import CeilingMeter
from pipeline.config import Config
from pipeline.dataset import OpenDataset, open_or_create
from pipeline.shard_writers import ShardWriters
from pipeline.stage_watch import watched
from pipeline.stages import Stages, lay_out
from pipeline.windows import ShardPart, cut_at_borders

BARREN_WINDOWS = 3
"""After so many windows in a row without a new commit, the run ends unfinished."""


def mint(rows: pa.Table, stages: Stages) -> ray.data.Dataset:
    """From catalog rows to described rows: every row comes out, in order, accepted or with its reason.

    Only encoded bytes travel between the stages, and never those of an original.
    """
    blocks = {"batch_size": None, "batch_format": "pyarrow", "udf_modifying_row_count": False}
    return (
        ray.data.from_arrow(rows)
        .repartition(target_num_rows_per_block=stages.rows_per_block)
        .map_batches(
            Prepare,
            fn_constructor_args=stages.prepare_arguments,
            compute=stages.prepare_pool.strategy(),
            num_cpus=stages.prepare_pool.num_cpus,
            **blocks,
        )
        .map_batches(
            Segment,
            fn_constructor_args=(stages.segment, stages.report_peak),
            compute=stages.segment_pool.strategy(),
            num_cpus=stages.segment_pool.num_cpus,
            num_gpus=stages.segment_pool.num_gpus or None,
            **blocks,
        )
        .map_batches(describe_table, num_cpus=stages.describe_num_cpus, **blocks)
    )


def run_build(config: Config, *, shards: tuple[int, int] | ShardPart | None = None) -> Accounting:
    """Builds what is missing of the dataset at `config.output`; returns the accounting of all that stands there.

    `shards` limits the run to the shards `[first, last)`, or to a part of all. Raises `UsageError` before anything is
    started where the configuration, the catalog or the dataset does not fit, and `UnfinishedError` where shards are
    left that another run may finish. Nothing is lost either way.
    """
    started = time.monotonic()
    log = get_logger("build")
    storage = Storage(config.storage)
    dataset = open_or_create(config, storage)
    if shards is None:
        sweep(storage, config.output)
    commits = CommitLog(storage, config.output)
    wanted = dataset.shards(shards)
    run = _Run(RunMetrics(config.name), missing=sorted(set(wanted) - commits.committed().keys()))
    log.info("opened", dataset=config.output, rows=dataset.rows, shards=len(wanted), missing=len(run.missing))

    ceiling = None
    if run.missing:
        meter = CeilingMeter(config, dataset)
        resources = config.resources
        with ray_session(resources.address, object_store_memory=resources.object_store_memory) as cluster:
            stages = lay_out(config, dataset, cluster, meter.reports(cluster))
            if cluster.local:
                check_numerics(stages.segment)  # on a cluster each actor looks for itself
            run.metrics.set(SHARDS_MISSING, len(run.missing))
            with Progress() as progress:
                while run.missing and run.barren < BARREN_WINDOWS:
                    window = run.missing[: config.window_shards]
                    try:
                        rows = dataset.count_rows(window)
                        with watched(progress, rows, config.stall_timeout, run.metrics) as watch:
                            for result in _run_window(config, storage, dataset, window, stages):
                                run.note(result)
                                watch.moved()
                    except (ray.exceptions.RayError, SegmintError, OSError) as error:
                        run.note_failure(window, error)
                    run.settle(window, commits, config.retry_wait_s)
            ceiling = meter.read(cluster, stages.segment_pool)

    seconds = time.monotonic() - started
    accounting = account(storage, dataset, wanted, seconds=seconds, built=run.built, ceiling=ceiling)
    if not accounting.complete:
        raise UnfinishedError(accounting.unfinished_message(run.held_back))
    dataset.write_index(storage, commits)
    return accounting


def _run_window(
    config: Config, storage: Storage, dataset: OpenDataset, window: list[int], stages: Stages
) -> Iterator[ShardResult]:
    """One Ray Data execution over the rows of some shards; yields each shard's result as it is written."""
    rows = dataset.read_rows(storage, window)
    writers = ShardWriters(stages.writers)
    for span, cuts in cut_at_borders(_blocks(mint(rows, stages)), dataset.spans(window)):
        yield from writers.submit(dataset.shard_task(config, span), cuts)
    yield from writers.drain()


def _blocks(described: ray.data.Dataset) -> Iterator[tuple[Any, int]]:
    """References to the described blocks with their row counts, in order: the driver never sees the data."""
    for bundle in described.iter_internal_ref_bundles():
        for entry in bundle.blocks:
            yield entry.ref, entry.metadata.num_rows


@dataclass
class _Run:
    """What a run has still to do, and what it has done."""

    metrics: RunMetrics
    missing: list[int]
    barren: int = 0  # windows in a row without a new commit
    built: Counter[str] = field(default_factory=Counter)
    held_back: dict[int, str] = field(default_factory=dict)  # why, by shard

    def note(self, result: ShardResult) -> None:
        """Takes in how a shard ended."""
        log = get_logger("build")
        if result.status == "committed":
            self.built.update(result.counts)
            self.held_back.pop(result.shard, None)
            self._count(result.counts)
            log.info("committed", shard=result.shard, **result.counts)
        else:
            self.held_back[result.shard] = result.detail
            self.metrics.add(FAULTS, kind="shard")
            log.warning("held back", shard=result.shard, why=result.detail)

    def _count(self, counts: Mapping[str, int]) -> None:
        self.metrics.add(SHARDS_COMMITTED)
        self.metrics.add(IMAGES_WRITTEN, counts.get("images", 0))
        self.metrics.add(MASKS_WRITTEN, counts.get("masks", 0))
        for name, count in counts.items():
            if name.startswith("rejected:"):
                self.metrics.add(ROWS_REJECTED, count, reason=name.removeprefix("rejected:"))

    def note_failure(self, window: list[int], error: Exception) -> None:
        """Takes in that a window ended before its last shard."""
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        cause = lines[-1] if lines else type(error).__name__
        for shard in window:
            self.held_back[shard] = cause
        self.metrics.add(FAULTS, kind="window")
        get_logger("build").warning("window ended early", error=cause)

    def settle(self, window: list[int], commits: CommitLog, wait_s: float) -> None:
        """Finds what is still missing after a window, by the listing of commits, the only truth.

        What was held back goes to the end, for it may be an outage that passes; where nothing else is left, waits
        `wait_s` seconds, twice as long each time.
        """
        standing = commits.committed()
        left = [shard for shard in window if shard not in standing]
        rest = [shard for shard in self.missing[len(window) :] if shard not in standing]
        self.missing = rest + left
        self.metrics.set(SHARDS_MISSING, len(self.missing))
        self.barren = self.barren + 1 if len(left) == len(window) else 0
        if left and not rest and self.barren < BARREN_WINDOWS:
            time.sleep(wait_s * 2**self.barren)
