"""Write and commit one shard, or replace its rejected rows: the only code that adds data to a dataset.

Readers only open files that a commit names, so files that a dead writer left behind are invisible to them. If two
writers write the same shard with the same content, they put the same bytes under the same names. If their content
differs, one of them loses the race for the commit and deletes its own files. docs/guarantees.md lists the invariants.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from segmint.catalogs.dataset.commits import REJECTED, Commit
from segmint.catalogs.dataset.manifest import DatasetHandle
from segmint.catalogs.findings import DELIBERATE_REASONS, Reason
from segmint.infra.errors import SegmintError
from segmint.operators.rows import Row, named
from segmint.operators.shards.put import (
    LostRaceError,
    build_files_of,
    delete_unnamed,
    named_files,
    put_commit,
    put_files,
    reserve,
)
from segmint.operators.shards.revise import apply_later_changes, finish_dead_writers, is_removed, revise_shard

MIN_ROWS_FOR_RATIO = 100
"""Minimum number of rows that a shard needs for `max_reject_ratio` to apply."""

MOST_FAULTED = 4
"""Maximum number of faulted rows to report, unless `max_faults` is higher. If more rows have faults, an outage is a
likelier cause than the rows."""

_VERDICT = ("stage", "reason", "detail")


@dataclass(frozen=True)
class ShardTask:
    """Arguments of the task that writes one shard."""

    shard: int
    start: int  # the first ordinal
    stop: int  # one past the last ordinal
    dataset: DatasetHandle
    numerics: str  # fingerprint of the numerics
    max_reject_ratio: float
    max_faults: int = 0
    generation: int = 1


@dataclass(frozen=True)
class ShardResult:
    """Result of writing a shard.

    The status is `committed` if this or another writer committed the shard, `on_hold` if the shard must not be
    committed yet, and `unchanged` if a committed shard didn't need to be replaced. `detail` explains the status.
    `faulted` lists the ordinals of the rows that keep the shard on hold, unless there are too many. `drawn` is the
    number of masks that the model drew for the rows, or 0 if another writer committed them.
    """

    shard: int
    status: Literal["committed", "on_hold", "unchanged"]
    counts: Mapping[str, int]
    detail: str = ""
    faulted: tuple[int, ...] = ()
    drawn: int = 0


class WrongRowsError(SegmintError):
    """Raised when a writer receives rows of another shard, which indicates a bug. Nothing was written."""


def write_shard(task: ShardTask, cuts: Sequence[tuple[int, int]], *blocks: pa.Table) -> ShardResult:
    """Write shard `task.shard` from slices `[start, stop)` of the blocks, in stream order, and commit it.

    1. Check for an existing commit. If another writer has put one, only finish the work of dead writers.
    2. Join the shard's rows. If rows have no verdict, or too many were rejected for one reason, put the shard on hold.
    3. Build the four files in memory. Their names contain their hashes.
    4. Reserve the names and put the files.
    5. Put the commit unless one exists.
    6. If this writer won, apply tombstones and catalog amendments that were added after the rows were computed. If
       another writer won, delete the files that no commit names.
    7. Delete the reservation.

    Raises `WrongRowsError` if the blocks don't contain exactly the shard's ordinals in order. Storage faults propagate.
    """
    dataset, location = task.dataset, task.dataset.location
    if dataset.commits.read(task.shard, task.generation) is not None:
        finish_dead_writers(dataset, range(task.shard, task.shard + 1))
        return _committed(task)

    table = shard_table(task.shard, range(task.start, task.stop), cuts, *blocks)
    reason_to_wait = hold_reason(table, task.max_reject_ratio, task.max_faults)
    if reason_to_wait:
        return ShardResult(task.shard, "on_hold", {}, reason_to_wait, faulted_ordinals(table, task.max_faults))

    built = build_files_of(dataset, iter_rows(table))
    files = named_files(task.shard, built)
    commit = Commit(
        shard=task.shard,
        generation=task.generation,
        ordinals=(task.start, task.stop),
        numerics=task.numerics,
        build_sha256=dataset.build_sha256,
        counts=built.counts,
        files=tuple(entry for entry, _ in files),
        most_redacted=built.most_redacted,
    )

    reservation = reserve(location, commit)
    put_files(location, files)
    won = put_commit(location, commit, files)
    changed = won and apply_later_changes(dataset, task.shard)
    if not won:
        delete_unnamed(location, task.shard, commit.files)
    reservation.delete()
    if not won:
        return _committed(task)
    counts = _committed(task).counts if changed else built.counts
    return ShardResult(task.shard, "committed", counts, drawn=drawn_masks(table))


def _committed(task: ShardTask) -> ShardResult:
    """Return the result of a committed shard, with the counts from its latest commit."""
    latest = task.dataset.commits.latest(task.shard)
    if latest is None:
        raise SegmintError(f"shard {task.shard}: its commit could be neither written nor read. Run the build again.")
    return ShardResult(task.shard, "committed", latest.counts)


def shard_table(shard: int, ordinals: Sequence[int], cuts: Sequence[tuple[int, int]], *blocks: pa.Table) -> pa.Table:
    """Join a shard's rows from slices `[start, stop)` of the blocks, in stream order.

    Raises `WrongRowsError` if the rows aren't exactly those with these ordinals, in order.
    """
    table = pa.concat_tables(
        [block.slice(start, stop - start) for (start, stop), block in zip(cuts, blocks, strict=True)]
    )
    found = table.column("ordinal").to_pylist()
    if found != list(ordinals):
        raise WrongRowsError(
            f"shard {shard} expected the ordinals {min(ordinals)} to {max(ordinals)}, but got {len(found)} of "
            f"{len(ordinals)} rows, from {min(found, default=None)} to {max(found, default=None)}"
        )
    return table


def drawn_masks(table: pa.Table) -> int:
    """Return the number of masks above the predicted-IoU threshold that the model drew for the accepted rows."""
    accepted = table.select(["reason", "funnel"]).filter(pc.is_null(table.column("reason")))
    return pc.sum(pc.struct_field(accepted.column("funnel"), "over_iou")).as_py() or 0


def faults(table: pa.Table) -> str:
    """Return a sentence with the number of faulted rows and the first fault, or an empty string without faults."""
    found = _faulted(table)
    if not len(found):
        return ""
    (first,) = found.slice(0, 1).to_pylist()
    return f"{len(found)} of {len(table)} rows couldn't be judged; the first: {named(first)}: {first['fault']}"


def faulted_ordinals(table: pa.Table, max_faults: int = 0) -> tuple[int, ...]:
    """Return the ordinals of rows with faults, or an empty tuple if there are too many of them.

    Up to `MOST_FAULTED` or `max_faults` rows are reported, whichever is more.
    """
    found = _faulted(table)
    return tuple(found.column("ordinal").to_pylist()) if len(found) <= max(MOST_FAULTED, max_faults) else ()


def _faulted(table: pa.Table) -> pa.Table:
    """Return the rows with faults. Most columns are dropped, because some of them contain a photograph's bytes."""
    return table.select(["ordinal", "image_id", "uri", "fault"]).filter(pc.is_valid(table.column("fault")))


def hold_reason(table: pa.Table, max_reject_ratio: float, max_faults: int = 0) -> str:
    """Return why a shard must not be committed yet, or an empty string if it can be committed.

    A row with a fault has no verdict, so it puts its shard on hold. So do more than `max_faults` rows that were
    rejected because of a persistent fault. A suspected outage does too: if the shard contains
    at least `MIN_ROWS_FOR_RATIO` rows, and more than `max_reject_ratio` of them were rejected for the same reason, the
    shard stays on hold until someone raises the ratio. Reasons in `DELIBERATE_REASONS` never suggest an outage.
    """
    reason = faults(table) or _too_many_given_up(table.column("reason").to_pylist(), max_faults)
    if reason:
        return reason
    if len(table) < MIN_ROWS_FOR_RATIO:
        return ""
    for entry in table.column("reason").drop_null().value_counts().to_pylist():
        reason, count = entry["values"], entry["counts"]
        if reason not in DELIBERATE_REASONS and count > max_reject_ratio * len(table):
            return (
                f"{count} of {len(table)} rows were rejected as {reason}, over max_reject_ratio {max_reject_ratio}. "
                "If that isn't an outage, raise max_reject_ratio and build again."
            )
    return ""


def _too_many_given_up(reasons: Sequence[str | None], max_faults: int) -> str:
    """Return a sentence if more than `max_faults` of a shard's rows were rejected because of a persistent fault."""
    count = reasons.count(Reason.PERSISTENT_FAULT)
    if count <= max_faults:
        return ""
    return (
        f"{count} of {len(reasons)} rows were rejected as {Reason.PERSISTENT_FAULT}, over max_faults {max_faults}. Fix "
        "the causes, or raise max_faults, and build again."
    )


def iter_rows(table: pa.Table) -> Iterator[Row]:
    """Yield the rows of a table, converted to Python values 16 at a time."""
    for batch in table.to_batches(max_chunksize=16):
        yield from batch.to_pylist()


@dataclass(frozen=True)
class RetryTask:
    """Arguments of the task that retries rejected rows of a shard."""

    shard: int
    generation: int  # the generation that contains the rejected rows
    ordinals: Sequence[int]  # ordinals of the retried rows, ascending
    dataset: DatasetHandle
    max_faults: int = 0


def retry_shard(task: RetryTask, cuts: Sequence[tuple[int, int]], *blocks: pa.Table) -> ShardResult:
    """Replace rejected rows of a committed shard with described rows, given as slices `[start, stop)` of the blocks.

    All other rows are read from the committed files and written back unchanged, including changes that other commands
    made to them in the meantime. The result counts only the retried rows:

    - If each retried row was rejected again with the same verdict, nothing is written, and the status is `unchanged`.
    - If another command took down or replaced one of the retried rows in the meantime, its result is kept, nothing is
      written, and the status is `unchanged`.
    - If a retried row has a fault, or if the shard would get more than `max_faults` rows with a persistent fault,
      nothing is written, and the status is `on_hold`.

    Raises `WrongRowsError` if the rows aren't the task's rows, or if they weren't rejected in the task's generation.
    """
    table = shard_table(task.shard, task.ordinals, cuts, *blocks)
    why = faults(table)
    if why:
        return ShardResult(task.shard, "on_hold", {}, why, faulted_ordinals(table, task.max_faults))

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
        merged = [again.get(row["ordinal"], row) for row in rows]
        before_retry = [row["reason"] for row in rows].count(Reason.PERSISTENT_FAULT)
        why = _too_many_given_up([row["reason"] for row in merged], max(task.max_faults, before_retry))
        if why:
            raise _HeldError(why)
        return merged

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
    except _HeldError as held:
        return ShardResult(task.shard, "on_hold", {}, str(held))
    unchanged = not revised.changed and revised.commit.generation == task.generation
    return ShardResult(task.shard, "unchanged" if unchanged else "committed", counts, drawn=drawn_masks(table))


class _SupersededError(Exception):
    """Raised when another command has already changed the rows that a retry was about to replace.

    The other command's result is kept.
    """


class _HeldError(Exception):
    """Raised when a shard must stay as it is. The message explains why."""


def _same(current: Row | None, again: Row) -> bool:
    """Return whether a committed row already equals a retried row: same verdict, or same image with the same masks."""
    keys = _VERDICT if again["reason"] is not None else (*_VERDICT, "release", "masks")
    return current is not None and all(current[key] == again[key] for key in keys)


def _counts(rows: Iterable[Row]) -> dict[str, int]:
    """Count rows in the format of commits."""
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
