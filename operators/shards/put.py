"""Putting a shard's files where a commit can name them, and taking back those that none does."""

import hashlib
from collections.abc import Iterable

from segmint.catalogs.dataset.commits import Commit, CommitLog, FileEntry
from segmint.catalogs.layout import data_path
from segmint.infra.storage.location import Location
from segmint.operators.shards.files import ShardFiles


def named_files(shard: int, files: ShardFiles) -> list[tuple[FileEntry, bytes]]:
    """A shard's four files, each with what a commit says of it; a file's name carries its content."""
    by_kind = {"shards": files.tar, "images": files.images, "masks": files.masks, "rejects": files.rejects}
    named = []
    for kind, data in by_kind.items():
        digest = hashlib.sha256(data).hexdigest()
        named.append((FileEntry(data_path(kind, shard, digest), len(data), digest), data))
    return named


def put_files(dataset: Location, shard: int, files: ShardFiles) -> tuple[FileEntry, ...]:
    """Puts a shard's four files; returns what its commit is to name."""
    named = named_files(shard, files)
    for entry, data in named:
        (dataset / entry.path).put(data)
    return tuple(entry for entry, _ in named)


def delete_unnamed(dataset: Location, shard: int, ours: Iterable[FileEntry]) -> Commit | None:
    """Deletes what a beaten writer put and no commit of the shard names; returns the commit that holds, if any.

    Not the winner's alone counts: a later generation may name a file of ours, too. Where a commit is replaced meanwhile
    nothing is deleted, and the sweep knows what is named then.
    """
    log = CommitLog(dataset)
    generations = log.generations().get(shard, [])
    standing = list(log.read_many((shard, generation) for generation in generations))
    if not standing:
        return None
    if len(standing) == len(generations):
        kept = {entry.path for commit in standing for entry in commit.files}
        for entry in ours:
            if entry.path not in kept:
                (dataset / entry.path).delete()
    return standing[-1]
