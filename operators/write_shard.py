"""Write one shard and commit it: the only place where data becomes part of the dataset.

The protocol: look for a commit; build the files; put them under names that carry their content; put the commit if
absent, last. A writer that dies anywhere leaves files that no commit names, and those do not exist for any reader.
Two writers of one shard write the same names with the same bytes, or one of them loses the commit and deletes what
the winner does not name.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from catalogs.commits import Commit, CommitLog, FileEntry
from catalogs.layout import data_path
from catalogs.reasons import LICENSE_REASONS
from infra.errors import SegmintError
from infra.storage import Storage, join
from operators.shard_files import ShardFiles, build_shard_files

MIN_ROWS_FOR_RATIO = 100
"""A shard smaller than this is committed whatever share of it was refused."""


@dataclass(frozen=True)
class ShardTask:
    """What a writer must know of one shard."""

    shard: int
    start: int  # the first ordinal
    stop: int  # one past the last ordinal
    dataset_uri: str
    storage_options: Mapping[str, Mapping[str, Any]]
    numerics: str  # fingerprint
    with_images: bool  # whether the tar holds the released JPEGs
    max_reject_ratio: float
    generation: int = 1


@dataclass(frozen=True)
class ShardResult:
    """How the writing of a shard ended: committed (by us or another), or held back with a reason to tell."""

    shard: int
    status: Literal["committed", "held_back"]
    counts: Mapping[str, int]
    detail: str = ""


class WrongRowsError(SegmintError):
    """The rows handed to a shard's writer are not exactly that shard's: a bug, and nothing was written."""


def write_shard(task: ShardTask, cuts: Sequence[tuple[int, int]], *blocks: pa.Table) -> ShardResult:
    """Writes shard `task.shard` from slices `[start, stop)` of the blocks, in stream order, and commits it.

    Raises `WrongRowsError` when the rows are not the shard's ordinals in order, and storage faults as they come.
    """
    storage = Storage(task.storage_options)
    log = CommitLog(storage, task.dataset_uri)
    standing = log.read(task.shard, task.generation)
    if standing is not None:
        return ShardResult(task.shard, "committed", standing.counts)

    table = pa.concat_tables(
        [block.slice(start, stop - start) for (start, stop), block in zip(cuts, blocks, strict=True)]
    )
    ordinals = table.column("ordinal").to_pylist()
    if ordinals != list(range(task.start, task.stop)):
        raise WrongRowsError(
            f"shard {task.shard} takes the ordinals {task.start} to {task.stop - 1}, but was handed {len(ordinals)} "
            f"rows from {min(ordinals, default=None)} to {max(ordinals, default=None)}"
        )
    reason_to_wait = held_back(table, task.max_reject_ratio)
    if reason_to_wait:
        return ShardResult(task.shard, "held_back", {}, reason_to_wait)

    files = build_shard_files(_iter_rows(table), with_images=task.with_images)
    entries = [_put(storage, task, kind, data) for kind, data in _named(files)]
    commit = Commit(
        shard=task.shard,
        generation=task.generation,
        ordinals=(task.start, task.stop),
        numerics=task.numerics,
        counts=files.counts,
        files=tuple(entries),
    )
    if not log.put(commit):
        return _yield_to_winner(storage, log, task, entries)
    return ShardResult(task.shard, "committed", files.counts)


def held_back(table: pa.Table, max_reject_ratio: float) -> str:
    """Why a shard must not be committed yet, or an empty string.

    A faulted row has no verdict. And where over `max_reject_ratio` of 100 rows or more share one reason other than a
    license one, that is an outage until somebody says otherwise.
    """
    faults = table.column("fault").drop_null()
    if len(faults):
        return f"{len(faults)} of {len(table)} rows could not be judged; the first: {faults[0].as_py()}"
    if len(table) < MIN_ROWS_FOR_RATIO:
        return ""
    for entry in table.column("reason").drop_null().value_counts().to_pylist():
        reason, count = entry["values"], entry["counts"]
        if reason not in LICENSE_REASONS and count > max_reject_ratio * len(table):
            return (
                f"{count} of {len(table)} rows were refused as {reason}, over max_reject_ratio {max_reject_ratio}: "
                "if that is no outage, raise max_reject_ratio and build again"
            )
    return ""


def _iter_rows(table: pa.Table) -> Any:
    for batch in table.to_batches(max_chunksize=16):
        yield from batch.to_pylist()


def _named(files: ShardFiles) -> list[tuple[str, bytes]]:
    return [("shards", files.tar), ("images", files.images), ("masks", files.masks), ("rejects", files.rejects)]


def _put(storage: Storage, task: ShardTask, kind: str, data: bytes) -> FileEntry:
    digest = hashlib.sha256(data).hexdigest()
    path = data_path(kind, task.shard, digest)
    storage.put(join(task.dataset_uri, path), data)
    return FileEntry(path=path, size=len(data), sha256=digest)


def _yield_to_winner(storage: Storage, log: CommitLog, task: ShardTask, ours: list[FileEntry]) -> ShardResult:
    winner = log.read(task.shard, task.generation)
    if winner is None:
        raise SegmintError(f"shard {task.shard}: its commit could neither be put nor read; build again to retry")
    kept = {entry.path for entry in winner.files}
    for entry in ours:
        if entry.path not in kept:
            storage.delete(join(task.dataset_uri, entry.path))
    return ShardResult(task.shard, "committed", winner.counts)
