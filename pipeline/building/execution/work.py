"""Work of a build, shard by shard: write missing shards, or retry rejected rows of committed shards."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from segmint.catalogs.dataset.commits import REJECTED, Commit, CommitLog
from segmint.catalogs.dataset.summaries import save_full_blocks
from segmint.catalogs.layout import DamagedDatasetError
from segmint.catalogs.reasons import is_custom_reason
from segmint.infra.errors import UsageError
from segmint.infra.metrics import SHARDS_MISSING, RunMetrics
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.threads import map_ahead
from segmint.operators.shards.committed_rows import read_shard_table
from segmint.operators.shards.write import RetryTask, retry_shard, write_shard
from segmint.pipeline.building.dataset.dataset import BuildDataset
from segmint.pipeline.building.execution.row_source import RowSource, ShardRows, runs_of
from segmint.pipeline.building.execution.shard_writers import ShardWriter
from segmint.pipeline.config.config import Config

_THREADS = 16

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


class BuildWork(Protocol):
    """Shards that a run has to process, window by window."""

    left: list[int]
    """Remaining shards in processing order."""

    @property
    def rows(self) -> int:
        """Upper bound of the number of rows to process in the remaining shards."""

    @property
    def write(self) -> ShardWriter:
        """Function that writes a shard in a Ray task."""

    def read(self, window: list[int]) -> WindowRows:
        """Return the rows of the window's shards as ordinals, without reading them.

        Omit shards without rows to process.
        """

    def settle(self, window: list[int], done: Collection[int]) -> int:
        """Update `left` after a window, and return how many of the window's shards remain.

        `done` contains the successful shards. Shards on hold move to the end of `left`, because a temporary outage may
        be the cause.
        """


class MissingShards:
    """Shards without a commit. A shard is done once the commit log contains it."""

    write = staticmethod(write_shard)

    def __init__(self, config: Config, dataset: BuildDataset, wanted: range, metrics: RunMetrics) -> None:
        self._config = config
        self._dataset = dataset
        self._metrics = metrics
        self._commits = CommitLog(dataset.location)
        self.left = sorted(set(wanted) - self._commits.committed().keys())

    @property
    def rows(self) -> int:
        """Number of rows if all shards were full. The last shard may contain fewer."""
        return len(self.left) * self._config.images_per_shard

    def read(self, window: list[int]) -> WindowRows:
        """Return all rows of the window's shards. Omit shards that another build has committed since the start."""
        committed = {commit.shard for commit in self._commits.latest_around(window)}
        return shard_rows(self._config, self._dataset, [shard for shard in window if shard not in committed])

    def settle(self, window: list[int], done: Collection[int]) -> int:
        """Update `left`, and count shards as done that another build has committed in the meantime.

        On S3, the number of requests depends on the size of the window, not on the number of commits.
        """
        held = self._commits.latest_around(window)
        save_full_blocks(self._dataset.location, held)
        committed = {commit.shard for commit in held}.union(done)
        unfinished = [shard for shard in window if shard not in committed]
        self.left = self.left[len(window) :] + unfinished
        self._metrics.set(SHARDS_MISSING, len(self.left))
        return len(unfinished)


class RejectedRows:
    """Committed shards with rows that were rejected for certain reasons. Each row is retried once per run."""

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
