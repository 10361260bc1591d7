"""Accounting of a run: `in = written + rejected by reason`, and the work that remains.

This file also defines the record of a run in progress, and the load of each stage, which shows which stage limited the
run.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from types import MappingProxyType
from typing import Any

import pyarrow.compute as pc

from segmint.catalogs.dataset.commits import REJECTED, Commit, CommitLog
from segmint.catalogs.dataset.reader import Dataset
from segmint.catalogs.dataset.redaction_totals import RedactionTotals
from segmint.catalogs.dataset.versions.record import VersionName, put_version
from segmint.catalogs.layout import DamagedDatasetError
from segmint.infra.errors import UnfinishedError, last_line
from segmint.infra.log import get_logger
from segmint.infra.metrics import (
    DRIVER_MEMORY,
    FAULTS,
    IMAGES_WRITTEN,
    MASKS_WRITTEN,
    ROWS_REJECTED,
    SHARDS_COMMITTED,
    SHARDS_ON_HOLD,
    RunMetrics,
    resident_bytes,
)
from segmint.infra.storage.errors import StorageFaultError
from segmint.infra.threads import map_ahead
from segmint.infra.wording import counted, plural, some
from segmint.operators.prepare.left_alone import Entries, count_unmatched
from segmint.operators.rows import Row
from segmint.operators.shards.near_copies import near_copies, wanted_pictures
from segmint.operators.shards.write import ShardResult
from segmint.pipeline.building.dataset.dataset import BuildDataset
from segmint.pipeline.building.execution.ceiling import Ceiling
from segmint.pipeline.building.status.totals import total

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
    """Worker seconds of each stage, summed over the windows of a run."""

    def __init__(self) -> None:
        self._busy: dict[str, float] = {}
        self._had: dict[str, float] = {}

    def add(self, seconds: float, workers: Mapping[str, int], busy: Mapping[str, float]) -> None:
        """Add a window that took `seconds`. `workers` and `busy` map each stage to its workers and their busy seconds.

        Stages that only occur in `busy` are ignored.
        """
        for stage, count in workers.items():
            self._busy[stage] = self._busy.get(stage, 0.0) + busy.get(stage, 0.0)
            self._had[stage] = self._had.get(stage, 0.0) + seconds * count

    def read(self) -> tuple[StageLoad, ...]:
        """Return the loads so far, in stage order."""
        return tuple(StageLoad(stage, self._busy[stage], had) for stage, had in self._had.items())


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
            lines.append(f"retried   {self.retried_rows:>12,} rejected rows: {self.retried_images:,} are now images")
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

    `on_hold` contains the reasons for missing shards. Raises `UnfinishedError` if work remains for another run. If all
    work is done but a storage fault or damage prevents the record, raises `NotRecordedError`, which contains the
    accounting.
    """
    fault: Exception | None = None
    try:
        if accounting.complete:
            dataset.write_index()
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
    leave alone. If there are any, one column of each images table is read.
    """
    log = CommitLog(dataset.location)
    totals = total(dataset.location, dataset.manifest, log.latest_commits(), wanted)
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
        left_alone_unmatched=_unmatched(dataset, listed, wanted) if listed else (0, 0),
    )


def _unmatched(dataset: BuildDataset, listed: Mapping[str, Entries], wanted: range) -> tuple[int, int]:
    """Count the regions to leave alone that match none of the photographs or detections of these shards."""
    reader = Dataset(dataset.location, dataset.manifest)
    photographs = pc.field("source_sha256").isin(list(listed))

    def read(commit: Commit) -> list[Row]:
        rows: list[Row] = reader.table(commit, "images", ["source_sha256", "left_alone"], photographs).to_pylist()
        return rows

    commits = list(CommitLog(dataset.location).read_all(only=set(wanted)))
    tables = map_ahead(read, commits, _THREADS, _THREADS, "tables")
    return count_unmatched(listed, chain.from_iterable(tables))
