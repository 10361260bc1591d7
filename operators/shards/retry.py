"""Replaces rejected rows of a committed shard with their new results in the shard's next generation.

All other rows are read back from the committed files and keep their bytes.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from segmint.catalogs.dataset.commits import REJECTED, Commit
from segmint.catalogs.dataset.handle import DatasetHandle
from segmint.operators.rows import Row
from segmint.operators.shards.put import LostRaceError
from segmint.operators.shards.revise import apply_later_changes, is_removed, revise_shard
from segmint.operators.shards.write import (
    ShardResult,
    WrongRowsError,
    drawn_masks,
    faulted_ordinals,
    faults,
    iter_rows,
)

_VERDICT = ("stage", "reason", "detail")


@dataclass(frozen=True)
class RetryTask:
    """Arguments of the task that retries rejected rows of a shard."""

    shard: int
    generation: int  # the generation that contains the rejected rows
    ordinals: Sequence[int]  # of the retried rows, ascending
    dataset: DatasetHandle


def retry_shard(task: RetryTask, cuts: Sequence[tuple[int, int]], *blocks: pa.Table) -> ShardResult:
    """Replace rejected rows of a committed shard with described rows, given as slices `[start, stop)` of the blocks.

    The result counts only these rows. It is `unchanged`, and nothing is written, if each row was rejected again with
    the same verdict, or if another command has changed one of these rows in the meantime: only rejected rows that were
    not taken down are replaced. Other changes by other commands are kept. If a row has a fault, the shard stays as it
    is, and the result is `on_hold`. Raises `WrongRowsError` if the rows are not those of the task or were not rejected.
    """
    table = pa.concat_tables(
        [block.slice(start, stop - start) for (start, stop), block in zip(cuts, blocks, strict=True)]
    )
    if table.column("ordinal").to_pylist() != list(task.ordinals):
        raise WrongRowsError(
            f"shard {task.shard}: {len(task.ordinals)} rows were to be retried, but got {table.num_rows} other rows"
        )
    why = faults(table)
    if why:
        return ShardResult(task.shard, "on_hold", {}, why, faulted_ordinals(table))

    again = {row["ordinal"]: row for row in iter_rows(table)}
    counts = _counts(again.values())
    superseded = ShardResult(task.shard, "unchanged", {}, "another command replaced the shard in the meantime")

    def merge(commit: Commit, rows: Sequence[Row]) -> Sequence[Row]:
        before = {row["ordinal"]: row for row in rows if row["reason"] is not None}
        if commit.generation == task.generation and not again.keys() <= before.keys():
            raise WrongRowsError(
                f"shard {task.shard}: its generation {commit.generation} hadn't rejected all of these rows"
            )
        current = {row["ordinal"]: row for row in rows if row["ordinal"] in again}
        if all(_same(current.get(ordinal), row) for ordinal, row in again.items()):
            return rows
        if any(row is None or is_removed(row) or row["reason"] is None for row in map(current.get, again)):
            raise _SupersededError
        return [again.get(row["ordinal"], row) for row in rows]

    try:
        revised = revise_shard(
            task.dataset,
            task.shard,
            merge,
            purge=False,
            after_commit=lambda: apply_later_changes(task.dataset, task.shard),
        )
        if revised is None:
            return superseded
    except (LostRaceError, _SupersededError):
        return superseded
    unchanged = not revised.changed and revised.commit.generation == task.generation
    return ShardResult(task.shard, "unchanged" if unchanged else "committed", counts, drawn=drawn_masks(table))


class _SupersededError(Exception):
    """Another command has changed the rows that were to be replaced, so its result stays."""


def _same(current: Row | None, again: Row) -> bool:
    """Return whether a row already has a result: the same verdict, or the same image with the same masks."""
    keys = _VERDICT if again["reason"] is not None else (*_VERDICT, "release", "masks")
    return current is not None and all(current[key] == again[key] for key in keys)


def _counts(rows: Iterable[Row]) -> dict[str, int]:
    """Return the counts of rows in the form that commits use."""
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
