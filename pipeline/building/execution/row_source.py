"""Catalog rows of a window, which Ray Data reads in tasks, and a limit on the blocks that wait between its operators.

The driver holds ranges of ordinals instead of rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import Datasource, ReadTask
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
)
from ray.data.block import BlockMetadata

from segmint.catalogs.shard_ranges import ShardSpan
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.operators.rows import Row
from segmint.operators.schemas import VERDICT
from segmint.pipeline.building.dataset.dataset import BuildDataset

READ_ROWS = 4096
"""Maximum number of rows per read task. Ray Data cuts them into blocks."""

READS_AT_ONCE = 2
"""Number of read tasks that run at the same time."""

READ_CPUS = 0.25
"""Logical CPUs of a read task. Must differ from those of the actors, or Ray would fuse the stages."""

WAITING_BLOCKS = 256
"""Number of blocks waiting for an operator above which the operator before it gets no more input."""

Run = tuple[int, int]
"""Range of ordinals `[start, stop)`."""


@dataclass(frozen=True)
class ShardRows:
    """Rows of one shard that a window processes: all of them, or those to retry, as ascending runs of ordinals."""

    shard: int
    runs: tuple[Run, ...]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(stop - start for start, stop in self.runs)


class RowSource(Datasource):  # type: ignore[misc]
    """Rows of a window in the order of its shards, for Ray Data.

    With `known`, the rows have verdict columns: those in `known`, by ordinal, and empty ones for all other rows.
    """

    def __init__(
        self, dataset: BuildDataset, shards: Sequence[ShardRows], known: Mapping[int, Row] | None = None
    ) -> None:
        super().__init__()
        self._dataset = dataset
        self._shards = shards
        self._known = known
        self._read_rows = READ_ROWS
        self.num_rows = sum(each.rows for each in shards)

    @property
    def spans(self) -> list[ShardSpan]:
        """The shards in the order of their rows, with the places of these rows among the window's."""
        ends = np.cumsum([0, *(each.rows for each in self._shards)]).tolist()
        return [ShardSpan(each.shard, *ends[at : at + 2]) for at, each in enumerate(self._shards)]

    def opened(self, known: Mapping[int, Row] | None) -> "RowSource":
        """Return the same rows with verdict columns, or without any if `known` is None."""
        return RowSource(self._dataset, self._shards, known)

    def __contains__(self, ordinal: int) -> bool:
        return any(start <= ordinal < stop for each in self._shards for start, stop in each.runs)

    def read(self) -> pa.Table:
        """Read all rows at once."""
        return _read_runs(self._dataset, [run for each in self._shards for run in each.runs], self._known)

    def read_row(self, ordinal: int) -> pa.Table:
        """Read one row, without verdict columns. It may belong to another window."""
        return self._dataset.read_runs([(ordinal, ordinal + 1)])

    def sample_uris(self, rows: int, storage: Storage) -> list[str]:
        """Read with `storage` the URIs of at most `rows` rows, which are evenly spread over the shards."""
        chosen = self._shards[:: max(1, -(-len(self._shards) // rows))]
        runs = [(each.runs[0][0], each.runs[0][0] + 1) for each in chosen]
        dataset = replace(self._dataset, location=Location(storage, self._dataset.location.uri))
        uris: list[str] = dataset.read_runs(runs, ["uri"]).column("uri").to_pylist()
        return uris

    def to_dataset(self, rows_per_block: int) -> ray.data.Dataset:
        """Return the rows in blocks. Call this inside `watched`, because Ray Data copies its context here."""
        self._read_rows = max(
            rows_per_block, READ_ROWS - READ_ROWS % rows_per_block
        )  # so that only the last is smaller
        blocks = ray.data.read_datasource(self, num_cpus=READ_CPUS, override_num_blocks=max(1, len(self._reads())))
        return blocks.repartition(target_num_rows_per_block=rows_per_block)

    def get_name(self) -> str:
        """Return the name of Ray Data's operator."""
        return "CatalogRows"

    def estimate_inmemory_data_size(self) -> int | None:
        """Return None, because the size is not known."""
        return None

    def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
        """Return the tasks that read the rows, in order."""
        return [
            ReadTask(
                partial(_read_blocks, self._dataset, runs, self._known and _within(self._known, runs)),
                BlockMetadata(
                    num_rows=sum(stop - start for start, stop in runs),
                    size_bytes=None,
                    input_files=None,
                    exec_stats=None,
                ),
            )
            for runs in self._reads()
        ]

    def _reads(self) -> list[list[Run]]:
        """Return the runs of each read task."""
        reads: list[list[Run]] = []
        room = 0
        for start, stop in _merged(run for each in self._shards for run in each.runs):
            while start < stop:
                if room == 0:
                    reads.append([])
                    room = self._read_rows
                end = min(stop, start + room)
                reads[-1].append((start, end))
                room -= end - start
                start = end
        return reads


def runs_of(ordinals: Sequence[int]) -> tuple[Run, ...]:
    """Return ascending ordinals as runs."""
    return tuple(_merged((ordinal, ordinal + 1) for ordinal in ordinals))


def _merged(runs: Any) -> Iterator[Run]:
    """Yield the runs, with adjacent ones joined."""
    held: Run | None = None
    for start, stop in runs:
        if held is not None and held[1] == start:
            held = held[0], stop
        else:
            if held is not None:
                yield held
            held = start, stop
    if held is not None:
        yield held


def _within(known: Mapping[int, Row], runs: Sequence[Run]) -> dict[int, Row]:
    return {ordinal: row for ordinal, row in known.items() if any(start <= ordinal < stop for start, stop in runs)}


def _read_blocks(dataset: BuildDataset, runs: Sequence[Run], known: Mapping[int, Row] | None) -> Iterator[pa.Table]:
    yield _read_runs(dataset, runs, known)


def _read_runs(dataset: BuildDataset, runs: Sequence[Run], known: Mapping[int, Row] | None) -> pa.Table:
    rows = dataset.read_runs(runs)
    if known is None:
        return rows
    unjudged: Row = dict.fromkeys(VERDICT.names)
    verdicts = [known.get(ordinal, unjudged) for ordinal in rows.column("ordinal").to_pylist()]
    for field, column in zip(VERDICT, pa.Table.from_pylist(verdicts, VERDICT).columns, strict=True):
        rows = rows.append_column(field, column)
    return rows


class WaitingBlocks(BackpressurePolicy):  # type: ignore[misc]
    """Policy that gives an operator no input while too many blocks wait for the next one.

    Each waiting block takes several kilobytes of the driver's memory. One task of a reading operator makes many blocks,
    so few of these tasks run at a time. Not a public API of Ray; a test checks that Ray calls it.
    """

    def can_add_input(self, op: Any) -> bool:
        """Return whether the operator may start another task."""
        reads, cuts = op.name.startswith("Read"), op.name.startswith("StreamingRepartition")
        if op.num_active_tasks() >= (READS_AT_ONCE if reads else 1 if cuts else float("inf")):
            return False
        most = READS_AT_ONCE if reads else WAITING_BLOCKS  # a read task's rows are one block until they are cut
        followers = [self._topology[follower] for follower in op.output_dependencies]
        return all(state.total_enqueued_input_blocks() < most for state in followers)


def limit_waiting_blocks(context: ray.data.DataContext) -> None:
    """Add `WaitingBlocks` to Ray Data's policies."""
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*ENABLED_BACKPRESSURE_POLICIES, WaitingBlocks])
