"""Replaces refused rows of a committed shard by their new results, in the shard's next generation.

All other rows are read back from the committed files, and keep their bytes.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from segmint.catalogs.dataset.commits import REJECTED, CommitLog
from segmint.catalogs.layout import DamagedDatasetError
from segmint.infra.storage.location import Location
from segmint.operators.rows import Row
from segmint.operators.shards.committed_rows import read_committed_rows
from segmint.operators.shards.replace import LostRaceError, replace_shard
from segmint.operators.shards.write import ShardResult, WrongRowsError, faulted_ordinals, faults, iter_rows

_VERDICT = ("stage", "reason", "detail")


@dataclass(frozen=True)
class RetryTask:
    """The task of writing a shard's next generation."""

    shard: int
    generation: int  # in which the rows are refused
    ordinals: Sequence[int]  # of the retried rows, ascending
    dataset: Location
    with_images: bool


def retry_shard(task: RetryTask, cuts: Sequence[tuple[int, int]], *blocks: pa.Table) -> ShardResult:
    """Replace refused rows of a committed shard by described rows, slices `[start, stop)` of the blocks.

    The result counts only these rows. It is `unchanged`, and nothing is written, if each was refused again in the same
    words, or if another command has replaced the shard meanwhile. A fault holds the shard back: it stays as it is.
    Raises `WrongRowsError` if the rows are not those of the task, or were not refused.
    """
    log = CommitLog(task.dataset)
    table = pa.concat_tables(
        [block.slice(start, stop - start) for (start, stop), block in zip(cuts, blocks, strict=True)]
    )
    if table.column("ordinal").to_pylist() != list(task.ordinals):
        raise WrongRowsError(
            f"shard {task.shard}: {len(task.ordinals)} rows were to be retried, but {table.num_rows} other rows came"
        )
    why = faults(table)
    if why:
        return ShardResult(task.shard, "held_back", {}, why, faulted_ordinals(table))

    again = {row["ordinal"]: row for row in iter_rows(table)}
    superseded = ShardResult(task.shard, "unchanged", {}, "another command has replaced the shard meanwhile")
    old = log.read(task.shard, task.generation)
    if old is None:
        return superseded
    try:
        rows = read_committed_rows(task.dataset, old)
    except DamagedDatasetError:
        if log.read(task.shard, task.generation + 1) is not None:
            return superseded
        raise
    before = {row["ordinal"]: row for row in rows if row["reason"] is not None}
    if not again.keys() <= before.keys():
        raise WrongRowsError(f"shard {task.shard}: its generation {old.generation} had not refused all of these rows")
    counts = _counts(again.values())
    if all(row[key] == before[ordinal][key] for ordinal, row in again.items() for key in _VERDICT):
        return ShardResult(task.shard, "unchanged", counts)
    merged = [again.get(row["ordinal"], row) for row in rows]
    try:
        replace_shard(task.dataset, old, merged, with_images=task.with_images)
    except LostRaceError:
        return superseded
    return ShardResult(task.shard, "committed", counts)


def _counts(rows: Iterable[Row]) -> dict[str, int]:
    """Return the counts of some rows, as in a commit."""
    counts = Counter(rows=0, images=0, masks=0, rejected=0)
    for row in rows:
        counts["rows"] += 1
        if row["reason"] is None:
            counts["images"] += 1
            counts["masks"] += len(row["masks"])
        else:
            counts["rejected"] += 1
            counts[f"{REJECTED}{row['reason']}"] += 1
    return dict(counts)
