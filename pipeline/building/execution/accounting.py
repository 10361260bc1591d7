"""Accounting of a run, the work that remains, and the outages that it waits out.

In a complete run, each row was written or rejected with a reason.

This file also defines the record of a run in progress, and the load of each stage, which shows which stage limited the
run.

Handling of outages in a build's driver, which detects stores that don't respond and waits for them.

Workers wait for their stores by themselves (`segmint.infra.storage.errors`), but they only log on their own machines.
So that the user knows why a run waits, the driver also checks the stores whenever there is no progress, and logs the
stores that don't respond.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from types import MappingProxyType
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from segmint.catalogs.dataset.commits import REJECTED, Commit, CommitLog, save_full_blocks
from segmint.catalogs.dataset.reader import Dataset
from segmint.catalogs.dataset.regions import RedactionTotals
from segmint.catalogs.dataset.versions import VersionName, put_version
from segmint.catalogs.findings import is_custom_reason
from segmint.catalogs.layout import DamagedDatasetError
from segmint.infra.errors import SegmintError, UnfinishedError, UsageError, last_line
from segmint.infra.log import get_logger
from segmint.infra.metrics import (
    DRIVER_MEMORY,
    FAULTS,
    IMAGES_WRITTEN,
    MASKS_WRITTEN,
    ROWS_REJECTED,
    SHARDS_COMMITTED,
    SHARDS_MISSING,
    SHARDS_ON_HOLD,
    RunMetrics,
    resident_bytes,
)
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.errors import TELL_EVERY_S, NotFoundError, StorageFaultError, pauses
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import UriNotAllowedError, relative_to, store_name
from segmint.infra.wording import counted, plural, some
from segmint.operators.prepare.deidentify import Entries, count_unmatched
from segmint.operators.rows import Row
from segmint.operators.shards.near_copies import near_copies, wanted_pictures
from segmint.operators.shards.revise import read_shard_table
from segmint.operators.shards.write import RetryTask, ShardResult, retry_shard, write_shard
from segmint.pipeline.building.dataset import BuildDataset
from segmint.pipeline.building.execution.ceiling import Ceiling
from segmint.pipeline.building.execution.row_source import RowSource, ShardRows, runs_of
from segmint.pipeline.building.totals import total
from segmint.pipeline.config.config import Config

_THREADS = 16

NO_ENTRIES: Mapping[str, Entries] = MappingProxyType({})

MOSTLY = 0.5
"""Minimum busy fraction of the stage that limits a run. If no stage reaches it, the run mostly starts up or waits."""


@dataclass(frozen=True)
class StageLoad:
    """Busy time and total time of a stage's workers."""

    stage: str
    busy_s: float  # sum over the stage's workers
    worker_s: float  # time of all windows, multiplied by the number of workers

    @property
    def share(self) -> float:
        """Busy fraction, 0 to 1. It may slightly exceed 1, because other processes measure the busy time."""
        return self.busy_s / self.worker_s if self.worker_s else 0.0


class StageLoads:
    """Load of each stage, in stage order, summed over the windows of a run."""

    def __init__(self) -> None:
        self._loads: dict[str, StageLoad] = {}

    def add(self, seconds: float, workers: Mapping[str, int], busy: Mapping[str, float]) -> None:
        """Add a window that took `seconds`. `workers` and `busy` map each stage to its workers and their busy seconds.

        Stages that only occur in `busy` are ignored.
        """
        for stage, count in workers.items():
            before = self._loads.get(stage, StageLoad(stage, 0.0, 0.0))
            busy_s = before.busy_s + busy.get(stage, 0.0)
            self._loads[stage] = StageLoad(stage, busy_s, before.worker_s + seconds * count)

    def read(self) -> tuple[StageLoad, ...]:
        """Return the loads so far."""
        return tuple(self._loads.values())


def loads_line(loads: Sequence[StageLoad]) -> str:
    """Return a line with the load of each stage and the stage that limited the run. `loads` must not be empty."""
    shares = ", ".join(f"{load.stage} {100 * load.share:.0f}%" for load in loads)
    most = max(loads, key=lambda load: load.share)
    verdict = f"{most.stage} limited this run" if most.share >= MOSTLY else "no stage was busy most of the time"
    return f"busy      {shares} of their workers' time: {verdict}"


@dataclass
class RunRecord:
    """Progress of a run."""

    metrics: RunMetrics
    built: Counter[str] = field(default_factory=Counter)
    drawn: int = 0  # masks that the model drew for the built images
    shards: set[int] = field(default_factory=set)  # shards that this run committed
    on_hold: dict[int, str] = field(default_factory=dict)  # reasons by shard
    loads: StageLoads = field(default_factory=StageLoads)

    def note(self, result: ShardResult) -> None:
        """Record the result of a shard."""
        log = get_logger("build")
        if result.status == "committed":
            self.built.update(result.counts)
            self.drawn += result.drawn
            self.shards.add(result.shard)
            self.on_hold.pop(result.shard, None)
            self._count(result.counts)
            log.info("committed", shard=result.shard, **result.counts)
        elif result.status == "unchanged":
            log.info("unchanged", shard=result.shard, why=result.detail or "all rows were rejected again")
        else:
            self.on_hold[result.shard] = result.detail
            self.metrics.add(FAULTS, kind="shard")
            log.warning("on hold", shard=result.shard, why=result.detail)
        self._measure()

    def _count(self, counts: Mapping[str, int]) -> None:
        self.metrics.add(SHARDS_COMMITTED)
        self.metrics.add(IMAGES_WRITTEN, counts.get("images", 0))
        self.metrics.add(MASKS_WRITTEN, counts.get("masks", 0))
        for name, count in counts.items():
            if name.startswith(REJECTED):
                self.metrics.add(ROWS_REJECTED, count, reason=name.removeprefix(REJECTED))

    def settled(self, window: Collection[int], left: Collection[int]) -> None:
        """Remove a window's shards from `on_hold`, except for those in `left`. Call this even if the window failed."""
        for shard in set(window) - set(left):
            self.on_hold.pop(shard, None)
        self._measure()

    def _measure(self) -> None:
        self.metrics.set(SHARDS_ON_HOLD, len(self.on_hold))
        self.metrics.set(DRIVER_MEMORY, resident_bytes())

    def note_failure(self, window: list[int], error: Exception) -> None:
        """Record that a window ended before its last shard."""
        cause = last_line(error)
        for shard in window:
            self.on_hold[shard] = cause
        self.metrics.add(FAULTS, kind="window")
        get_logger("build").warning("window ended early", error=cause)


class NotRecordedError(UnfinishedError):
    """Raised when all requested work is committed but a storage fault prevents the final record of the run."""

    def __init__(self, accounting: "Accounting", message: str) -> None:
        super().__init__(message)
        self.accounting = accounting


@dataclass(frozen=True)
class Accounting:
    """Contents of the dataset according to its commits, and the results of the run."""

    dataset: str
    rows: int  # catalog rows of the requested shards
    written: int  # images
    rejected: Mapping[str, int] = field(default_factory=dict)  # by reason
    masks: int = 0
    shards: int = 0  # requested shards that are committed
    missing: Sequence[int] = ()  # shards left for the next run
    missing_rows: int = 0
    redactions: RedactionTotals = field(default_factory=RedactionTotals)
    not_checked: Sequence[str] = ()  # files that a scan of photographs left out, with the reason
    left_alone_unmatched: tuple[int, int] = (0, 0)  # entries of the list without a photograph, and without a detection
    retried_rows: int = 0  # rows that earlier runs rejected and this run retried
    retried_images: int = 0  # retried rows that are now images
    not_retried: Sequence[int] = ()  # shards whose rejected rows could not be retried
    built_rows: int = 0  # rows that this run committed, including rejected ones
    built_images: int = 0
    built_masks: int = 0
    seconds: float = 0.0  # duration of the whole run, including the startup of Ray and the model
    ceiling: Ceiling | None = None  # None if the run had nothing to do or measured nothing
    stages: Sequence[StageLoad] = ()  # load of the stages in this run
    similar: Sequence[str] = ()  # images committed by this run that look like removed pictures
    version: VersionName | None = None  # version of the dataset at the end of the run

    @property
    def complete(self) -> bool:
        """True if every requested row is in a committed shard and every requested retry was done."""
        return not self.missing and not self.not_retried

    @property
    def images_per_s(self) -> float:
        """Images that this run wrote per second of its whole duration. Rejected rows don't count."""
        return self.built_images / self.seconds if self.seconds else 0.0

    @property
    def masks_per_s(self) -> float:
        """Masks that this run wrote per second of its whole duration."""
        return self.built_masks / self.seconds if self.seconds else 0.0

    @property
    def share_of_ceiling(self) -> float | None:
        """Fraction of the hardware's ceiling that the run reached. Images and masks have the same fraction."""
        return self.images_per_s / self.ceiling.images_per_s if self.ceiling else None

    def to_dict(self) -> dict[str, Any]:
        """Return the accounting for JSON: all fields, the rates, and the fractions of the ceiling and of the stages."""
        return {
            **asdict(self),
            "stages": [{**asdict(load), "share": load.share} for load in self.stages],
            "images_per_s": self.images_per_s,
            "masks_per_s": self.masks_per_s,
            "ceiling_images_per_s": self.ceiling.images_per_s if self.ceiling else None,
            "share_of_ceiling": self.share_of_ceiling,
        }

    def lines(self) -> list[str]:
        refused = sum(self.rejected.values())
        lines = [
            f"in        {self.rows:>12,} {plural(self.rows, 'row')}",
            f"written   {self.written:>12,} {plural(self.written, 'image')} with {counted(self.masks, 'mask')} in "
            f"{counted(self.shards, 'shard')}",
            f"rejected  {refused:>12,}",
            *(f"  {reason:<24} {count:>8,}" for reason, count in sorted(self.rejected.items())),
        ]
        lines += self.redactions.lines(width=10)
        if any(self.left_alone_unmatched):
            photographs, detections = self.left_alone_unmatched
            lines.append(
                f"unused    {photographs + detections:>12,} of the regions to leave alone: {photographs:,} without a "
                f"photograph, {detections:,} without a detection"
            )
        if self.missing:
            rows, shards = plural(self.missing_rows, "row"), counted(len(self.missing), "shard")
            lines.append(f"left      {self.missing_rows:>12,} {rows} in {shards}, for the next run")
        if self.retried_rows:
            rows = plural(self.retried_rows, "rejected row")
            lines.append(f"retried   {self.retried_rows:>12,} {rows}, of which {self.retried_images:,} became images")
        if self.not_retried:
            shards = counted(len(self.not_retried), "shard")
            lines.append(f"left      rejected rows in {shards}, to be retried by the next run")
        if self.built_rows:
            lines.append(
                f"this run  {self.built_rows:>12,} {plural(self.built_rows, 'row')} in {self.seconds:,.1f} s: "
                f"{self.images_per_s:.3g} images/s, {self.masks_per_s:.3g} masks/s"
            )
            lines.extend(self._ceiling_lines())
            if self.stages:
                lines.append(loads_line(self.stages))
        elif self.complete and not self.retried_rows:
            lines.append(
                f"nothing to do: all rows of {counted(self.shards, 'shard')} are done ({self.seconds:.1f} s). "
                "`segmint verify` reads the files"
            )
        if self.similar:
            lines.append(f"similar   {len(self.similar):>12,} to pictures that were taken down: {some(self.similar)}")
        lines += [f"not checked: {each}" for each in self.not_checked]
        if self.version is not None:
            lines.append(self.version.line())
        return lines

    def _ceiling_lines(self) -> list[str]:
        share = self.share_of_ceiling
        if self.ceiling is None or not share:
            return []
        return [
            f"ceiling   {self.ceiling.images_per_s:>12.3g} images/s, {self.masks_per_s / share:.3g} masks/s, the "
            f"theoretical peak of {self.ceiling.hardware}: this run reached {100 * share:.3g}%"
        ]

    def unfinished_message(self, on_hold: Mapping[int, str]) -> str:
        """Return a message that explains why shards are missing or weren't retried, and how to continue."""
        parts = []
        if self.missing:
            parts.append(
                f"{counted(len(self.missing), 'shard')} with {counted(self.missing_rows, 'row')} could not be "
                "finished. Nothing is lost; run the same command again to resume:"
            )
            parts += _shards(self.missing, on_hold)
        if self.not_retried:
            parts.append(
                f"rejected rows in {counted(len(self.not_retried), 'shard')} could not be retried. They "
                "are unchanged; run the same command to try again:"
            )
            parts += _shards(self.not_retried, on_hold)
        return "\n".join([*parts, *self.lines()])


def record_end(dataset: BuildDataset, accounting: Accounting, on_hold: Mapping[int, str]) -> Accounting:
    """Write a version at the end of a run, and the index if the dataset is complete. Return the updated accounting.

    A dataset without any shard gets no version. `on_hold` contains the reasons for missing shards. Raises
    `UnfinishedError` if work remains for another run. If all work is done but a storage fault or damage prevents the
    record, raises `NotRecordedError`, which contains the accounting.
    """
    fault: Exception | None = None
    try:
        if accounting.complete:
            dataset.write_index()
        # Without any shard, of this run's or another, there is nothing that a version could list.
        if accounting.shards or CommitLog(dataset.location).committed():
            accounting = replace(accounting, version=(version := put_version(dataset.location, "build")))
            if version.number is None:
                why = "a takedown didn't finish, or the latest version, or a file of it, is damaged"
                fault = DamagedDatasetError(f"{why}. Run `segmint repair`, which says what")
    except (StorageFaultError, OSError) as error:
        fault = error
    problem = f"shards.json or a version could not be recorded at the end of the run: {fault}"
    advice = "This run lost nothing. Fix the cause, then run the same command again to record them"
    if not accounting.complete:
        left = accounting.unfinished_message(on_hold)
        raise UnfinishedError(left if fault is None else f"{left}\n{problem}") from fault
    if fault is not None:
        raise NotRecordedError(accounting, f"{problem}\n{advice}") from fault
    return accounting


def _shards(shards: Sequence[int], on_hold: Mapping[int, str]) -> list[str]:
    shown = [f"  shard {shard}: {on_hold.get(shard, 'not reached')}" for shard in shards[:10]]
    return [*shown, *([f"  and {len(shards) - 10} more"] if len(shards) > 10 else [])]


def account(
    dataset: BuildDataset,
    wanted: range,
    run: RunRecord,
    seconds: float,
    ceiling: Ceiling | None = None,
    listed: Mapping[str, Entries] = NO_ENTRIES,
) -> Accounting:
    """Sum the commits of the shards in `wanted`. `run` is the record of this run, which took `seconds`.

    If `ceiling` is given, it is adjusted for the masks that the run drew per image. `listed` contains the regions to
    leave alone. If there are any and all shards of the dataset are committed, one column of each images table is read.
    """
    log = CommitLog(dataset.location)
    held = log.latest_commits()
    totals = total(dataset.location, dataset.manifest, held, wanted)
    pictures = wanted_pictures(dataset.location)
    if ceiling is not None and run.built["images"]:
        ceiling = ceiling.drawing(run.drawn / run.built["images"])
    similar = near_copies(dataset.location, log.read_all(only=run.shards) if pictures.ids else (), pictures)
    return Accounting(
        dataset=str(dataset.location),
        **vars(totals),
        built_rows=run.built["rows"],
        built_images=run.built["images"],
        built_masks=run.built["masks"],
        seconds=seconds,
        ceiling=ceiling,
        stages=run.loads.read(),
        similar=tuple(each.line() for each in similar),
        left_alone_unmatched=_unmatched(dataset, listed) if listed and len(held) == dataset.manifest.shards else (0, 0),
    )


def _unmatched(dataset: BuildDataset, listed: Mapping[str, Entries]) -> tuple[int, int]:
    """Count the regions to leave alone that match none of the dataset's photographs or detections."""
    reader = Dataset(dataset.location, dataset.manifest)
    photographs = pc.field("source_sha256").isin(list(listed))

    def read(commit: Commit) -> list[Row]:
        rows: list[Row] = reader.table(commit, "images", ["source_sha256", "left_alone"], photographs).to_pylist()
        return rows

    commits = list(CommitLog(dataset.location).read_all())
    tables = map_ahead(read, commits, _THREADS, _THREADS, "tables")
    return count_unmatched(listed, chain.from_iterable(tables))


FIRST_WINDOW_S = 600.0
"""Planned duration of the first window in seconds, at the expected rate."""

WINDOW_S = 3600.0
"""Planned duration of each later window in seconds. Starting a window's actors takes a minute or two."""

MOST_BLOCKS = 40_000
"""Maximum number of blocks per window. Each finished block takes several kilobytes of the driver's memory."""

UNKNOWN_RATE_SHARDS = 200
"""Number of shards in a window while no rate is known."""


class WindowSize:
    """Number of shards in the next window: `window_shards` or, with `auto`, as many as fit in the planned duration."""

    def __init__(self, wanted: Literal["auto"] | int, rate: float | None = None, most: int | None = None) -> None:
        """Start with the expected rate in shards per second, or None if it's unknown.

        `most` is the maximum for `auto`.
        """
        self._auto = wanted == "auto"
        self._most = most or UNKNOWN_RATE_SHARDS
        self.shards = min(UNKNOWN_RATE_SHARDS, self._most) if wanted == "auto" else wanted
        self._rate = UNKNOWN_RATE_SHARDS / FIRST_WINDOW_S
        if rate is not None:
            self._fit(rate, FIRST_WINDOW_S)

    def note(self, finished: Sequence[float], seconds: float) -> None:
        """Adapt to a window that took `seconds`. `finished` contains each shard's finish time in seconds.

        If enough shards finished, only the time after the first shard counts, because the actors start before it.
        """
        if len(finished) >= STEADY_SHARDS and finished[-1] > finished[0]:
            self._fit((len(finished) - 1) / (finished[-1] - finished[0]), WINDOW_S)
        elif finished and seconds > 0:
            self._fit(len(finished) / seconds, WINDOW_S)

    def shards_in(self, seconds: float) -> float:
        """Return the number of shards that a build finishes in `seconds` at the last known rate."""
        return self._rate * seconds

    def _fit(self, rate: float, seconds: float) -> None:
        self._rate = rate
        if self._auto:
            self.shards = max(1, min(self._most, round(rate * seconds)))


STEADY_SHARDS = 10
"""Minimum number of finished shards at which the time before the first shard is excluded from a window's rate."""


@dataclass(frozen=True)
class WindowRows:
    """Rows of a window, grouped by shard, and a writer task for each shard."""

    source: RowSource
    tasks: Mapping[int, Any]  # by shard


class MissingShards:
    """Shards without a commit, which a run processes window by window. A shard is done once the commit log contains it.

    `left` contains the remaining shards in processing order. `write` writes a shard in a Ray task.
    """

    write = staticmethod(write_shard)

    def __init__(self, config: Config, dataset: BuildDataset, wanted: range, metrics: RunMetrics) -> None:
        self._config = config
        self._dataset = dataset
        self._metrics = metrics
        self._commits = CommitLog(dataset.location)
        self.left = sorted(set(wanted) - self._commits.committed().keys())

    @property
    def rows(self) -> int:
        """Number of rows in the remaining shards."""
        return sum(span.rows for span in self._dataset.spans(self.left))

    def read(self, window: list[int]) -> WindowRows:
        """Return all rows of the window's shards. Omit shards that another build has committed since the start."""
        committed = {commit.shard for commit in self._commits.latest_around(window)}
        return shard_rows(self._config, self._dataset, [shard for shard in window if shard not in committed])

    def settle(self, window: list[int], done: Collection[int]) -> int:
        """Update `left` after a window, and return how many of the window's shards remain.

        `done` contains the successful shards. Shards that another build has committed in the meantime count, too.
        Shards on hold move to the end of `left`, because a temporary outage may be the cause. On S3, the number of
        requests depends on the size of the window, not on the number of commits.
        """
        held = self._commits.latest_around(window)
        save_full_blocks(self._dataset.location, held)
        committed = {commit.shard for commit in held}.union(done)
        unfinished = [shard for shard in window if shard not in committed]
        self.left = self.left[len(window) :] + unfinished
        self._metrics.set(SHARDS_MISSING, len(self.left))
        return len(unfinished)


class RejectedRows:
    """Committed shards with rows that were rejected for certain reasons. Each row is retried once per run.

    The attributes and methods are as in `MissingShards`.
    """

    write = staticmethod(retry_shard)

    def __init__(self, config: Config, dataset: BuildDataset, wanted: range, reasons: Collection[str]) -> None:
        """Find the shards. Raises `UsageError` if no stage can have given a custom reason so far."""
        self._config = config
        self._dataset = dataset
        self._reasons = sorted(map(str, reasons))
        self._commits = CommitLog(dataset.location)
        committed = self._commits.committed() if reasons else {}
        pairs = ((shard, committed[shard]) for shard in wanted if shard in committed)
        self._generations: dict[int, int] = {}
        self._rows: dict[int, int] = {}
        found: set[str] = set()
        for commit in self._commits.read_latest_of(pairs):
            found.update(name for name in commit.counts if name.startswith(REJECTED))
            rows = sum(commit.counts.get(f"{REJECTED}{reason}", 0) for reason in self._reasons)
            if rows:
                self._generations[commit.shard], self._rows[commit.shard] = commit.generation, rows
        self.left = list(self._generations)
        unknown = [each for each in self._reasons if is_custom_reason(each) and f"{REJECTED}{each}" not in found]
        # A shard may have had the reason if it's missing, or if a correction or an earlier retry replaced it.
        if unknown and wanted == dataset.shards() and all(committed.get(shard) == 1 for shard in wanted):
            known = sorted(filter(is_custom_reason, (name.removeprefix(REJECTED) for name in found)))
            raise UsageError(
                f"--retry-rejected {unknown[0]!r}: no row was rejected for it. Reasons of custom stages: "
                f"{', '.join(known) or 'none'}"
            )

    @property
    def rows(self) -> int:
        """Number of rows to retry, counted when this run started."""
        return sum(self._rows[shard] for shard in self.left)

    def read(self, window: list[int]) -> WindowRows:
        """Return only the rejected rows. If a shard was replaced since the start, use its newer generation."""
        shards: list[ShardRows] = []
        tasks: dict[int, RetryTask] = {}
        handle = self._dataset.handle(self._config)
        for commit, ordinals in self._ordinals(window):
            shards.append(ShardRows(commit.shard, runs_of(ordinals)))
            tasks[commit.shard] = RetryTask(
                shard=commit.shard,
                generation=commit.generation,
                ordinals=ordinals,
                dataset=handle,
                max_faults=self._config.max_faults,
            )
        return WindowRows(RowSource(self._dataset, shards), tasks)

    def settle(self, window: list[int], done: Collection[int]) -> int:
        """Update `left`. A row that was rejected again counts as done, so a run doesn't retry it twice."""
        waiting = [shard for shard in window if shard not in done and shard in self._generations]
        committed = {commit.shard for commit in self._commits.latest_around(waiting)}
        unfinished = [shard for shard in waiting if shard in committed]
        self.left = self.left[len(window) :] + unfinished
        return len(unfinished)

    def _ordinals(self, window: list[int]) -> Iterator[tuple[Commit, list[int]]]:
        """Yield each commit that has rows to retry, with the ascending ordinals of these rows."""
        commits = self._commits.read_latest_of((shard, self._generations[shard]) for shard in window)
        for commit, ordinals in map_ahead(self._refused, commits, _THREADS, _THREADS, "rejects"):
            self._generations[commit.shard] = commit.generation
            if ordinals:
                yield commit, ordinals
            else:
                del self._generations[commit.shard]  # a correction removed them, so nothing is left to retry

    def _refused(self, commit: Commit) -> tuple[Commit, list[int]]:
        try:
            table = read_shard_table(self._dataset.location, commit, "rejects")
        except (DamagedDatasetError, NotFoundError):
            newer = self._commits.latest(commit.shard)
            if newer is None or newer.generation == commit.generation:
                raise
            return self._refused(newer)
        kept = table.filter(pc.is_in(table.column("reason"), pa.array(self._reasons)))
        return commit, kept.column("ordinal").to_pylist()


def shard_rows(config: Config, dataset: BuildDataset, window: list[int]) -> WindowRows:
    """Return all rows of the window's shards, with the tasks that write the shards."""
    spans = dataset.spans(window)
    handle = dataset.handle(config)
    tasks = {span.shard: dataset.shard_task(config, span, handle) for span in spans}
    return WindowRows(RowSource(dataset, [ShardRows(each.shard, ((each.start, each.stop),)) for each in spans]), tasks)


MOST_STORES = 16
"""Maximum number of stores to check. The first stores in a sample of the window's images are used."""

SAMPLE_ROWS = 64
"""Number of rows whose URIs are read to find a window's stores."""


class Outages:
    """Stores that contain the catalog, the URIs in `others`, and the window's images.

    A build depends on all of them.
    """

    def __init__(self, storage: Storage, catalog: str, others: Iterable[str], timeout_s: float) -> None:
        self._storage = storage
        self._catalog = catalog
        self._always = {store_name(uri): uri for uri in (catalog, *others)}
        self._timeout_s = timeout_s
        self.examples = self._always
        self._uris: Callable[[], Iterable[str]] | None = None  # not read yet
        self._told = -TELL_EVERY_S

    def expect(self, uris: Callable[[], Iterable[str]]) -> None:
        """Set the function that reads URIs of a window's images as written in the catalog. The first check calls it.

        While the function raises a storage fault, only the other stores are checked.
        """
        self.examples, self._uris = self._always, uris

    def read_examples(self) -> None:
        uris = self._uris
        if uris is None:
            return
        examples = dict(self._always)
        try:
            entries = uris()
        except (SegmintError, OSError):
            return  # the dataset's own store may be unavailable
        for entry in entries:
            try:
                uri = relative_to(self._catalog, entry)
                name = store_name(uri)
            except UriNotAllowedError:
                continue  # the build rejects this row later
            if len(examples) < MOST_STORES:
                examples.setdefault(name, uri)
        if self._uris is uris:  # another thread may have begun the next window
            self.examples, self._uris = examples, None

    def silent(self) -> list[str]:
        """Return the stores that don't respond, and log them once a minute."""
        self.read_examples()
        names, uris = list(self.examples), list(self.examples.values())
        with ThreadPoolExecutor(len(uris), thread_name_prefix="outages") as pool:
            answers = list(pool.map(self._storage.answers, uris))
        found = [name for name, answer in zip(names, answers, strict=True) if not answer]
        if found and time.monotonic() - self._told >= TELL_EVERY_S:
            self._told = time.monotonic()
            get_logger("build").warning(
                "waiting for stores that do not answer", stores=found, at_most_s=round(self._timeout_s)
            )
        return found

    def wait_out(self, missing: Sequence[int]) -> bool:
        """Wait until all stores respond, and return whether any store was silent at first.

        Call this after a window with missing shards. Raises `UnfinishedError` if a store doesn't respond within the
        timeout.
        """
        if not self.silent():
            return False
        end = time.monotonic() + self._timeout_s
        looks = pauses()
        while found := self.silent():
            left = end - time.monotonic()
            if left <= 0:
                raise UnfinishedError(
                    f"no response from {', '.join(found)} for outage_timeout_s = {self._timeout_s:g} seconds; "
                    f"{counted(len(missing), 'shard')} missing. Nothing is lost. Check the store, endpoint, and "
                    "network, then run the same command again to resume"
                )
            time.sleep(min(next(looks), left))
        get_logger("build").info("all stores answer again")
        return True


@contextmanager
def resumable() -> Iterator[None]:
    """Convert a storage fault that ends a run to an `UnfinishedError`, which tells the user that nothing is lost."""
    try:
        yield
    except StorageFaultError as fault:
        raise UnfinishedError(f"{fault}\nNothing is lost. Fix the cause, then run the same command again") from fault
