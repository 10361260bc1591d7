"""Puts a shard's files where a commit can name them, and deletes those that no commit names."""

import hashlib
from collections.abc import Iterable

from segmint.catalogs.dataset.commits import Commit, CommitLog, FileEntry
from segmint.catalogs.layout import data_path
from segmint.infra.storage.location import Location
from segmint.operators.shards.files import ShardFiles


def named_files(shard: int, files: ShardFiles) -> list[tuple[FileEntry, bytes]]:
    """Return a shard's four files, each with its entry in a commit; a file's name contains its hash."""
    by_kind = {"shards": files.tar, "images": files.images, "masks": files.masks, "rejects": files.rejects}
    named = []
    for kind, data in by_kind.items():
        digest = hashlib.sha256(data).hexdigest()
        named.append((FileEntry(data_path(kind, shard, digest), len(data), digest), data))
    return named


def put_files(dataset: Location, shard: int, files: ShardFiles) -> tuple[FileEntry, ...]:
    """Put a shard's four files; return the entries for its commit."""
    named = named_files(shard, files)
    for entry, data in named:
        (dataset / entry.path).put(data)
    return tuple(entry for entry, _ in named)


def delete_unnamed(dataset: Location, shard: int, ours: Iterable[FileEntry]) -> Commit | None:
    """Delete files of a writer that lost its race and that no commit of the shard names; return the commit that holds.

    Every commit of the shard counts, not only the winner's: a later generation may name one of our files too. If a
    commit is replaced meanwhile, nothing is deleted, and the sweep decides later. None if the shard has no commit.
    """
    log = CommitLog(dataset)
    generations = log.generations().get(shard, [])
    commits = list(log.read_many((shard, generation) for generation in generations))
    if not commits:
        return None
    if len(commits) == len(generations):
        kept = {entry.path for commit in commits for entry in commit.files}
        for entry in ours:
            if entry.path not in kept:
                (dataset / entry.path).delete()
    return commits[-1]
