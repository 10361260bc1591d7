"""Catalog rows of a window, which Ray Data reads in tasks, and a limit on the blocks that wait between its operators.

The driver only stores ranges of ordinals, never rows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray.data
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from segmint.catalogs.layout import ShardSpan
from segmint.infra.ray_internals import limit_waiting_blocks
from segmint.infra.row_ledger import RowLedger
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.operators.rows import VERDICT, Row

if TYPE_CHECKING:  # each worker imports this module with Ray Data's context, even if it never reads the catalog
    from segmint.pipeline.building.dataset import BuildDataset

READ_ROWS = 4096
"""Maximum number of rows per read task. Ray Data cuts the rows into blocks."""

FEWEST_READ_ROWS = 512
"""A read task may always contain this many rows, because it must decode a whole row group anyway."""

READ_CPUS = 0.25
"""Logical CPUs per read task."""

FEWEST_WAITING = 8
"""Blocks that may always wait for an operator, even if the segment actors take fewer at once."""

Run = tuple[int, int]
"""Range of ordinals `[start, stop)`."""


@dataclass(frozen=True)
class ShardRows:
    """Rows of one shard that a window processes, as ascending runs of ordinals: all rows, or only the rows to retry."""

    shard: int
    runs: tuple[Run, ...]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return count_rows(self.runs)


class RowSource(Datasource):  # type: ignore[misc]
    """Rows of a window for Ray Data, in shard order. Shards on hold can run again in slots between other shards.

    With `known`, the rows include verdict columns. `known` contains verdicts by ordinal; all other rows have empty
    verdicts.
    """

    def __init__(
        self,
        dataset: "BuildDataset",
        shards: Sequence[ShardRows],
        known: Mapping[int, Row] | None = None,
        ledger: RowLedger | None = None,
        retry_rows: int | None = None,
    ) -> None:
        """With a `ledger`, allow the window to end early, and add a slot for shards on hold every `retry_rows` rows."""
        super().__init__()
        self._dataset = dataset
        self.shards = shards
        self._known = known
        self._ledger = ledger
        self._retry_rows = retry_rows
        self._read_rows = READ_ROWS
        self.num_rows = sum(each.rows for each in shards)

    def opened(self, known: Mapping[int, Row] | None, ledger: RowLedger, retry_rows: int | None = None) -> "RowSource":
        """Return the same rows with a ledger, and with verdict columns unless `known` is None."""
        return RowSource(self._dataset, self.shards, known, ledger, retry_rows)

    def stream(self) -> Iterator[ShardSpan]:
        """Yield the shards and their row counts in the order of Ray Data's output.

        Shards that run again occur again.
        """
        for each in self._plan()[1]:
            if isinstance(each, ShardRows):
                yield ShardSpan(each.shard, 0, each.rows)
            elif self._ledger is not None:
                for shard, runs in self._ledger.retry_slot(each):
                    yield ShardSpan(shard, 0, count_rows(runs))

    def runs_of_shard(self, shard: int) -> tuple[Run, ...]:
        """Return the runs of a shard's rows."""
        return next(each.runs for each in self.shards if each.shard == shard)

    def __contains__(self, ordinal: int) -> bool:
        return any(start <= ordinal < stop for each in self.shards for start, stop in each.runs)

    def read_rows(self, ordinals: Sequence[int]) -> pa.Table:
        """Read rows without verdict columns. They may belong to another window."""
        return self._dataset.read_runs(runs_of(ordinals))

    def uris_near(self, ordinal: int, rows: int) -> dict[int, str]:
        """Return the URIs of up to `rows` rows before and after a row, and its own, by ordinal.

        Between the parts of a catalog, there may be ordinals without a row.
        """
        near = [(max(0, ordinal - rows), ordinal + rows + 1)]
        table = self._dataset.read_runs(near, ["ordinal", "uri"])
        return dict(zip(*table.to_pydict().values(), strict=True))

    def sample_uris(self, rows: int, storage: Storage) -> list[str]:
        """Read the URIs of up to `rows` rows, spread evenly over the shards. Read the catalog with `storage`."""
        chosen = self.shards[:: max(1, -(-len(self.shards) // rows))]
        runs = [(each.runs[0][0], each.runs[0][0] + 1) for each in chosen]
        dataset = replace(self._dataset, location=Location(storage, self._dataset.location.uri))
        uris: list[str] = dataset.read_runs(runs, ["uri"]).column("uri").to_pylist()
        return uris

    def to_dataset(self, rows_per_block: int, in_flight: int) -> ray.data.Dataset:
        """Return the rows in blocks for segment actors that have `in_flight` blocks at a time.

        At most about as many blocks wait for each operator: enough to give every actor its next blocks, but no more, so
        that few rows are read in advance and shards on hold run again soon. Call this inside `watched`, because Ray
        Data copies its context.
        """
        waiting = max(FEWEST_WAITING, in_flight)
        limit_waiting_blocks(ray.data.DataContext.get_current(), waiting)
        # Read a multiple of the block size, so that only the last block is smaller.
        blocks_per_read = min(max(waiting, FEWEST_READ_ROWS // rows_per_block), READ_ROWS // rows_per_block)
        self._read_rows = rows_per_block * max(1, blocks_per_read)
        blocks = ray.data.read_datasource(self, num_cpus=READ_CPUS, override_num_blocks=max(1, len(self._plan()[0])))
        return blocks.repartition(target_num_rows_per_block=rows_per_block)

    def get_name(self) -> str:
        """Return the name of Ray Data's operator."""
        return "CatalogRows"

    def estimate_inmemory_data_size(self) -> int | None:
        """Return None, because the size is unknown."""
        return None

    def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
        """Return the read tasks in row order."""
        return [
            ReadTask(
                partial(_read_blocks, self._dataset, runs, _within(self._known, runs), self._ledger, number),
                BlockMetadata(num_rows=count_rows(runs or ()), size_bytes=None, input_files=None, exec_stats=None),
            )
            for number, runs in enumerate(self._plan()[0])
        ]

    def _plan(self) -> tuple[list[list[Run] | None], list[ShardRows | int]]:
        """Return the runs of each read, with None for a retry slot, and the order of shards and slot numbers.

        Each slot lies between two shards.
        """
        reads: list[list[Run] | None] = []
        order: list[ShardRows | int] = []
        pending: list[Run] = []
        since = 0
        for each in self.shards:
            if self._ledger is not None and self._retry_rows and since >= self._retry_rows:
                reads += self._cut(pending)
                order.append(len(reads))
                reads.append(None)
                pending, since = [], 0
            pending += each.runs
            order.append(each)
            since += each.rows
        return [*reads, *self._cut(pending)], order

    def _cut(self, runs: Sequence[Run]) -> list[list[Run]]:
        """Split runs into lists of at most `READ_ROWS` rows."""
        reads: list[list[Run]] = []
        room = 0
        for start, stop in _merged(runs):
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
    """Convert ascending ordinals to runs."""
    return tuple(_merged((ordinal, ordinal + 1) for ordinal in ordinals))


def count_rows(runs: Iterable[Run]) -> int:
    """Count the rows in runs."""
    return sum(stop - start for start, stop in runs)


def _merged(runs: Iterable[Run]) -> list[Run]:
    """Join adjacent runs."""
    found: list[Run] = []
    for start, stop in runs:
        if found and found[-1][1] == start:
            start = found.pop()[0]
        found.append((start, stop))
    return found


def _within(known: Mapping[int, Row] | None, runs: Sequence[Run] | None) -> Mapping[int, Row] | None:
    """Return the part of `known` for a read's rows.

    The rows of a retry slot aren't known yet, so return all of `known` for it.
    """
    if known is None or runs is None:
        return known
    return {ordinal: row for ordinal, row in known.items() if any(start <= ordinal < stop for start, stop in runs)}


def _read_blocks(
    dataset: "BuildDataset",
    runs: Sequence[Run] | None,
    known: Mapping[int, Row] | None,
    ledger: RowLedger | None,
    number: int,
) -> Iterator[pa.Table]:
    """Yield the rows of one read: the rows of `runs`, or of the shards in retry slot `number` if `runs` is None."""
    if ledger is not None:
        if runs is None:
            runs = [run for each in ledger.retry_slot(number) for run in each.runs]
        elif not ledger.may_read(number):
            runs = []
    rows = dataset.read_runs(runs) if runs else _no_rows(dataset)
    if known is not None:
        unjudged: Row = dict.fromkeys(VERDICT.names)
        verdicts = [known.get(ordinal, unjudged) for ordinal in rows.column("ordinal").to_pylist()]
        for field, column in zip(VERDICT, pa.Table.from_pylist(verdicts, VERDICT).columns, strict=True):
            rows = rows.append_column(field, column)
    yield rows


def _no_rows(dataset: "BuildDataset") -> pa.Table:
    """Return an empty table with the catalog's columns.

    Cached, because a window that ends early has thousands of empty reads.
    """
    key = "".join(part.path for part in dataset.manifest.catalog)
    if key not in _EMPTY:
        _EMPTY[key] = dataset.read_runs([])
    return _EMPTY[key]


_EMPTY: dict[str, pa.Table] = {}  # by the catalog's parts, whose names contain hashes
