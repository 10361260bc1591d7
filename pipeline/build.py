"""Build of a dataset, top to bottom: the flow of rows through the stages, and the loop that runs it.

    catalog -> prepare (ingest, de-identify, release) -> segment -> describe -> shards -> write and commit

`build_rows` defines the flow, and `run_build` runs it in a loop. A build that was interrupted resumes after the last
committed shards.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray.data
import ray.exceptions
from pydantic import ValidationError

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.sweep import sweep
from segmint.catalogs.findings import check_reasons
from segmint.catalogs.layout import ShardPart
from segmint.infra.errors import SegmintError, UnfinishedError, UsageError
from segmint.infra.log import get_logger
from segmint.infra.metrics import SHARDS_MISSING, RunMetrics
from segmint.infra.node_groups import NodeRequest
from segmint.infra.progress import Progress
from segmint.infra.ray_internals import iter_blocks
from segmint.infra.ray_session import Cluster, ray_session
from segmint.infra.row_ledger import RowLedger
from segmint.infra.stopping import check_stopping
from segmint.infra.storage.errors import NoSpaceError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.wording import counted
from segmint.operators.custom.contract import StageContractError, refusal
from segmint.operators.describe import describe_table
from segmint.operators.prepare.prepare import Prepare
from segmint.operators.segment.segment import Segment, check_numerics
from segmint.operators.shards.revise import finish_dead_writers
from segmint.operators.shards.write import ShardResult
from segmint.pipeline.building.dataset import BuildDataset, open_or_create
from segmint.pipeline.building.execution.accounting import (
    MOST_BLOCKS,
    SAMPLE_ROWS,
    Accounting,
    MissingShards,
    Outages,
    RejectedRows,
    RunRecord,
    WindowRows,
    WindowSize,
    account,
    record_end,
    resumable,
)
from segmint.pipeline.building.execution.ceiling import CeilingMeter
from segmint.pipeline.building.execution.quarantine import Quarantine
from segmint.pipeline.building.execution.row_source import RowSource, count_rows
from segmint.pipeline.building.execution.stage_watch import (
    STAGES,
    ShardWriter,
    ShardWriters,
    StageWatch,
    StreamLengthError,
    check_detectors,
    cut_at_borders,
    start_detectors,
    watched,
)
from segmint.pipeline.building.execution.stages import (
    DESCRIBE,
    Stages,
    in_words,
    lay_out_again,
    lay_out_for_growth,
    require_room,
)
from segmint.pipeline.config.config import Config, Position, StageConfig, advice, load_config, read_listed

MOST_STALLED_WINDOWS = 3
"""A run ends unfinished after this many consecutive windows without progress, not counting outages of the stores."""

BARREN_SHARDS = 200
"""A window ends early after this many consecutive results that put a shard on hold."""

RETRY_SLOTS_S = 100.0
"""A window retries its shards on hold after about this many seconds of work, estimated from the last known rate."""


def build_rows(rows: RowSource, stages: Stages, ledger: RowLedger | None = None) -> ray.data.Dataset:
    """Turn catalog rows into described rows. Return every row in order, either accepted or with a rejection reason.

    Stages pass encoded images to each other, and never the original's bytes. Each custom stage runs directly after the
    built-in stage that it names. A segmenter runs last after `prepare`, in place of `Segment`.
    """
    size = stages.rows_per_block

    def custom(dataset: ray.data.Dataset, after: Position) -> ray.data.Dataset:
        for each in stages.own:
            if each.after == after:
                dataset = dataset.map_batches(
                    each.actor(),
                    fn_constructor_args=each.arguments(ledger),
                    **each.pool.options(size),
                )
        return dataset

    prepared = rows.to_dataset(size, stages.segment_pool.in_flight).map_batches(
        Prepare,
        fn_constructor_args=stages.prepare_call,
        label_selector=dict(stages.prepare_nodes) or None,
        **stages.prepare_pool.options(size),
    )
    segmented = custom(prepared, "prepare")
    if stages.segmenter is None:
        segmented = segmented.map_batches(
            Segment,
            fn_constructor_args=(
                stages.segment,
                stages.measures_peak,
                ledger,
                stages.segment_timeout_s,
                stages.segment_threads,
            ),
            accelerator_type=stages.gpus.name if stages.segment_pool.num_gpus else None,
            **stages.segment_pool.options(size),
        )
    described = custom(segmented, "segment").map_batches(describe_table, **DESCRIBE)
    return custom(described, "describe")


def build(
    config: Config | str,
    stages: Sequence[StageConfig | Callable[..., Any]] = (),
    *,
    shards: tuple[int, int] | ShardPart | None = None,
    grow: bool = False,
    retry_rejected: Collection[str] = (),
) -> Accounting:
    """Build a dataset from a configuration or its file, with `stages` appended to the configuration's stages.

    Each item of `stages` is a class or function in a module that workers can import. To also set the position,
    arguments, or resources of a stage, pass a `StageConfig` instead. All other arguments are passed to `run_build`.
    Raises the same errors as `load_config` and `run_build`.
    """
    config = load_config(config) if isinstance(config, str) else config
    try:
        added = [each if isinstance(each, StageConfig) else StageConfig(stage=each) for each in stages]
    except ValidationError as error:
        raise UsageError(f"stages: {error.errors()[0]['msg']}") from error
    config = config.model_copy(update={"stages": (*config.stages, *added)})
    return run_build(config, shards=shards, grow=grow, retry_rejected=retry_rejected)


@resumable()
def run_build(
    config: Config,
    *,
    shards: tuple[int, int] | ShardPart | None = None,
    grow: bool = False,
    retry_rejected: Collection[str] = (),
) -> Accounting:
    """Build the missing shards of the dataset at `config.output` and return the accounting of the whole dataset.

    `shards` limits the run to shards `[first, last)` or to a part of all shards. With `grow`, new rows of the catalog
    become new shards. With `retry_rejected`, the run also retries rows of committed shards that earlier runs rejected
    for one of these reasons. Committed work is never lost.

    Raises `UsageError` before any work starts if the configuration, the catalog, and the dataset don't fit together.
    Raises `UnfinishedError` if another run is needed to finish, and its subclass `NotRecordedError` if only the final
    record couldn't be written. Raises `StageContractError` if a custom stage violates its contract.
    """
    retry_rejected = [retry_rejected] if isinstance(retry_rejected, str) else retry_rejected
    check_reasons(retry_rejected, custom=bool(config.stages or config.segmenter))
    started = time.monotonic()
    log = get_logger("build")
    dataset = open_or_create(config, Storage(config.storage), grow=grow, shards=shards, require_room=require_room)
    # From here on, a failure loses work, so wait for outages to end.
    storage = Storage(config.storage, outage_s=config.outage_timeout_s)
    dataset = replace(dataset, location=Location(storage, config.output))
    others = [config.output, *([config.assets] if config.assets else [])]
    outages = Outages(storage, config.catalog, others, config.outage_timeout_s)
    wanted = dataset.shards(shards)
    listed = read_listed(config, dataset.manifest)
    dataset.check_whole(wanted)
    finish_dead_writers(dataset.handle(config), wanted)
    if shards is None:
        sweep(dataset.location)
    run = RunRecord(RunMetrics(config.name))
    missing = MissingShards(config, dataset, wanted, run.metrics)
    refused = RejectedRows(config, dataset, wanted, retry_rejected)
    log.info("opened", dataset=config.output, rows=dataset.rows, shards=len(wanted), missing=len(missing.left))
    if missing.left:
        for sentence in advice(config, dataset.rows):
            log.warning(sentence)

    ceiling = None
    retried: Counter[str] = Counter()
    if missing.left or refused.left:
        meter = CeilingMeter(config, dataset)
        resources = config.resources
        with (
            ray_session(resources.address, object_store_memory=resources.object_store_memory) as cluster,
            NodeRequest() as request,
        ):
            stages = lay_out_for_growth(config, dataset, cluster, request, missing.rows + refused.rows)
            if stages.gpus.idle:
                log.warning("GPUs of other kinds are idle", used=stages.gpus.name, idle=in_words(stages.gpus.idle))
            if cluster.local:  # on a cluster, each actor runs this check
                check_machine(dataset, stages)
            stages = start_detectors(stages)
            quarantine = Quarantine(stages, config.stall_timeout, config.max_faults)
            run.metrics.set(SHARDS_MISSING, len(missing.left))
            with Progress() as progress:
                loop = OuterLoop(config, dataset, cluster, stages, quarantine, outages, progress, run, meter, request)
                rate = meter.expected_rate(stages.segment_pool)
                loop.go_through(missing, None if rate is None else rate / config.images_per_shard)
                retried = loop.go_through(refused)
            ceiling = meter.read(cluster, stages.segment_pool)
        if retried:
            sweep(dataset.location)  # delete the generations that the retries replaced

    seconds = time.monotonic() - started
    accounting = replace(
        account(dataset, wanted, run, seconds, ceiling, listed),
        retried_rows=retried["rows"],
        retried_images=retried["images"],
        not_retried=refused.left,
    )
    return record_end(dataset, accounting, run.on_hold)


def check_machine(dataset: BuildDataset, stages: Stages) -> None:
    """Raise `UsageError` if this machine can't reproduce the dataset's bits, as its manifest pins them.

    A dataset without any committed shard can be started again instead, so the error then says how.
    """
    try:
        check_numerics(stages.segment)
        check_detectors(stages)
    except UsageError as error:
        if CommitLog(dataset.location).committed():
            raise
        raise UsageError(
            f"{error} The dataset contains no shard yet, so you can also delete {dataset.location} and start again."
        ) from error


@dataclass
class OuterLoop:
    """Loop that runs windows until no shards remain or several windows in a row make no progress."""

    config: Config
    dataset: BuildDataset
    cluster: Cluster
    stages: Stages
    quarantine: Quarantine
    outages: Outages
    progress: Progress
    run: RunRecord
    meter: CeilingMeter
    request: NodeRequest
    resized: bool = False  # True if the last window ended because the number of nodes changed
    finished_rows: int = 0

    def go_through(self, work: MissingShards | RejectedRows, rate: float | None = None) -> Counter[str]:
        """Run windows over the remaining shards of `work`, and return the total counts of the finished shards.

        `rate` is the expected number of shards per second, if known.
        """
        config, run = self.config, self.run
        most = max(1, MOST_BLOCKS * self.stages.rows_per_block // config.images_per_shard)
        size = WindowSize(config.window_shards, rate, most)
        sums: Counter[str] = Counter()
        stalled = 0
        while work.left and stalled < MOST_STALLED_WINDOWS:
            window = work.left[: size.shards]
            done: set[int] = set()
            if not self.cluster.local:  # even if all nodes are present, because a node may be lost later
                self.request.ask(self.stages.bundles(work.rows))
            began, finished, barren, self.resized = time.monotonic(), list[float](), 0, False
            try:
                taken = work.read(window)
                self.outages.expect(partial(taken.source.sample_uris, SAMPLE_ROWS, Storage(config.storage)))
                rows, silent = taken.source.num_rows, self.outages.silent
                slots = max(1, round(size.shards_in(RETRY_SLOTS_S) * rows / len(window)))
                with (
                    watched(
                        self.progress,
                        work.rows,
                        config.stall_timeout,
                        run.metrics,
                        silent,
                        self._bars(),
                        resized=self._end_resized,
                        grows=self.stages.grows,
                        finished=self.finished_rows,
                    ) as watch,
                    self._measured(watch),
                ):
                    for result in run_rows(taken, self.stages, work.write, self.quarantine, slots):
                        run.note(result)
                        watch.run_again(self.quarantine.note(result))
                        if result.status != "on_hold":
                            done.add(result.shard)
                            self.finished_rows += count_rows(taken.source.runs_of_shard(result.shard))
                            finished.append(time.monotonic() - began)
                            sums.update(result.counts)
                        barren = barren + 1 if result.status == "on_hold" else 0
                        if barren == BARREN_SHARDS:
                            self.quarantine.end_window()
                        watch.moved()
            except (ray.exceptions.RayError, SegmintError, OSError) as error:
                check_stopping()  # an interrupt may have caused the error
                refused = refusal(error)
                if refused is not None:
                    raise StageContractError(refused) from error
                run.note_failure(window, error)
                if isinstance(error, NoSpaceError):
                    raise self._full() from error
            size.note(finished, time.monotonic() - began)
            before, self.stages = self.stages, lay_out_again(config, self.dataset, self.cluster, self.stages)
            self.stages = self.quarantine.stages = start_detectors(self.stages, before)
            trials = self.quarantine.run_trials(self.dataset.spans([shard for shard in window if shard not in done]))
            run.on_hold |= trials.on_hold
            unfinished = work.settle(window, done)
            run.settled(window, work.left)
            # A trial's verdict counts as progress, like a commit: the row's shard can be retried immediately.
            if unfinished < len(window) or trials.verdicts or self.resized:
                stalled = 0
            elif not self.outages.wait_out(work.left):
                stalled += 1
            if 0 < unfinished == len(work.left) and not trials.verdicts and stalled < MOST_STALLED_WINDOWS:
                time.sleep(config.retry_wait_s * 2**stalled)
        return sums

    def _bars(self) -> dict[str, str]:
        """Return the names of the progress bars, keyed by a part of the operator's name in Ray Data."""
        bars = {f"({each.spec.label})": each.spec.label for each in self.stages.own}
        for name, bar in STAGES.items():
            if bar != "segment" or self.stages.segmenter is None:
                bars[name] = bar
        return bars

    def _full(self) -> UnfinishedError:
        committed = len(CommitLog(self.dataset.location).committed())
        return UnfinishedError(
            f"no space left on {self.config.output}: {committed:,} of {counted(self.dataset.manifest.shards, 'shard')} "
            "committed. Nothing is lost. Free space, then run the same command again to resume"
        )

    def _end_resized(self) -> None:
        get_logger("build").info("the number of nodes has doubled or halved: the window ends early")
        self.resized = True
        self.quarantine.end_window()

    @contextmanager
    def _measured(self, watch: type[StageWatch]) -> Iterator[None]:
        """Add each stage's busy time during a window to the run's loads, even if the window fails."""
        began = time.monotonic()
        try:
            yield
        finally:
            busy = {**watch.seconds_seen, **self.quarantine.spent()}
            self.run.loads.add(time.monotonic() - began, self.stages.workers(), busy)
            self.meter.note_window(self.quarantine.peaks(), self.stages.segment_pool)


def run_rows(
    taken: WindowRows,
    stages: Stages,
    write: ShardWriter,
    quarantine: Quarantine | None = None,
    retry_rows: int | None = None,
) -> Iterator[ShardResult]:
    """Run one Ray Data execution over a window's rows and yield the result of `write` for each shard.

    With a `quarantine`, a ledger records the rows that kill a worker, shards on hold run again after about `retry_rows`
    rows, and the window may end early.
    """
    if not taken.source.num_rows:
        return
    rows, ledger = (taken.source, None)
    if quarantine is not None:
        rows, ledger = quarantine.open_window(taken.source, retry_rows)
    with closing(ShardWriters(stages.writers, StageWatch.check, write)) as writers:
        try:
            for span, cuts in cut_at_borders(iter_blocks(build_rows(rows, stages, ledger)), rows.stream()):
                yield from writers.submit(taken.tasks[span.shard], cuts)
        except StreamLengthError:
            if quarantine is None or not quarantine.ended:
                raise
        yield from writers.drain()
