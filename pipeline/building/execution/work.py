"""Work of a build, shard by shard: write missing shards, or retry rejected rows of committed shards."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from segmint.catalogs.dataset.commits import REJECTED, Commit, CommitLog
from segmint.catalogs.dataset.summaries import save_full_blocks
from segmint.catalogs.layout import DamagedDatasetError
from segmint.catalogs.reasons import Reason
from segmint.infra.metrics import SHARDS_MISSING, RunMetrics
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.threads import map_ahead
from segmint.operators.shards.committed_rows import read_file, read_table
from segmint.operators.shards.retry import RetryTask, retry_shard
from segmint.operators.shards.write import write_shard
from segmint.pipeline.building.dataset.dataset import BuildDataset
from segmint.pipeline.building.execution.row_source import RowSource, ShardRows, runs_of
from segmint.pipeline.building.execution.shard_writers import ShardWriter
from segmint.pipeline.config.config import Config

_THREADS = 16


@dataclass(frozen=True)
class WindowRows:
    """Rows of a window, shard by shard, and the task of each shard's writer."""

    source: RowSource
    tasks: Mapping[int, Any]  # by shard


class BuildWork(Protocol):
    """Shards that a run has to process, window by window."""

    left: list[int]
    """Remaining shards, in the order of work."""

    @property
    def write(self) -> ShardWriter:
        """Writer of a shard, which runs as a Ray task."""

    def read(self, window: list[int]) -> WindowRows:
        """Return the rows of some shards, without reading them. Shards without rows to process are omitted."""

    def settle(self, window: list[int], done: Collection[int]) -> int:
        """Update `left` after a window; return how many of its shards remain. `done` contains those that succeeded.

        Shards on hold move to the end, because the cause may be a temporary outage.
        """


class MissingShards:
    """Shards without a commit. A shard is done once the list of commits contains it."""

    write = staticmethod(write_shard)

    def __init__(self, config: Config, dataset: BuildDataset, wanted: range, metrics: RunMetrics) -> None:
        self._config = config
        self._dataset = dataset
        self._metrics = metrics
        self._commits = CommitLog(dataset.location)
        self.left = sorted(set(wanted) - self._commits.committed().keys())

    def read(self, window: list[int]) -> WindowRows:
        """Return all rows of the shards."""
        return shard_rows(self._config, self._dataset, window)

    def settle(self, window: list[int], done: Collection[int]) -> int:
        """Check the commits, because another build may write them too."""
        held = self._commits.latest_commits()
        save_full_blocks(self._dataset.location, held)
        committed = {commit.shard for commit in held}
        unfinished = [shard for shard in window if shard not in committed]
        self.left = [shard for shard in self.left[len(window) :] if shard not in committed] + unfinished
        self._metrics.set(SHARDS_MISSING, len(self.left))
        return len(unfinished)


class RejectedRows:
    """Committed shards with rows that were rejected for certain reasons. These rows are retried once."""

    write = staticmethod(retry_shard)

    def __init__(self, config: Config, dataset: BuildDataset, wanted: range, reasons: Collection[Reason]) -> None:
        self._config = config
        self._dataset = dataset
        self._reasons = sorted(str(reason) for reason in reasons)
        self._commits = CommitLog(dataset.location)
        committed = self._commits.committed() if reasons else {}
        pairs = ((shard, committed[shard]) for shard in wanted if shard in committed)
        self._generations = {
            commit.shard: commit.generation
            for commit in self._commits.read_latest_of(pairs)
            if any(commit.counts.get(f"{REJECTED}{reason}") for reason in self._reasons)
        }
        self.left = list(self._generations)

    def read(self, window: list[int]) -> WindowRows:
        """Return only the rejected rows. Of a shard that was replaced since the start, the newer generation is read."""
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
            )
        return WindowRows(RowSource(self._dataset, shards), tasks)

    def settle(self, window: list[int], done: Collection[int]) -> int:
        """Update `left`. A row that was rejected again is done, so it is not retried twice in a run."""
        committed = self._commits.committed()
        unfinished = [s for s in window if s not in done and s in self._generations and s in committed]
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
            table = read_table(read_file(self._dataset.location, commit.file("rejects")), "rejects")
        except (DamagedDatasetError, NotFoundError):
            newer = self._commits.latest(commit.shard)
            if newer is None or newer.generation == commit.generation:
                raise
            return self._refused(newer)
        kept = table.filter(pc.is_in(table.column("reason"), pa.array(self._reasons)))
        return commit, kept.column("ordinal").to_pylist()


def shard_rows(config: Config, dataset: BuildDataset, window: list[int]) -> WindowRows:
    """Return all rows of some shards, with the tasks that write them."""
    spans = dataset.spans(window)
    handle = dataset.handle(config)
    tasks = {span.shard: dataset.shard_task(config, span, handle) for span in spans}
    return WindowRows(RowSource(dataset, [ShardRows(each.shard, ((each.start, each.stop),)) for each in spans]), tasks)
