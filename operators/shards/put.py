"""Puts and commits a shard's files, and deletes those of a writer that lost.

The order is what makes it safe beside any other writer, and beside whatever deletes:

1. `reserve`: the claim, with the names of the files, put if absent. From here on nobody else deletes them.
2. `put_files`: the files.
3. `put_commit`: the commit, put if absent. Then a look whether all files are there: one is put again if something
   deleted it that had looked for claims before this one was put, and slept until its deletion. Then a look for a higher
   generation: if there is one, the commit was put after a later correction had removed its predecessor, and the writer
   has lost.
4. A writer that won heeds the tombstones, and what was amended in the catalog. One that lost deletes what it put
   (`delete_unnamed`).
5. The claim is deleted. Where it is left, a writer died before, and the next build or correction does what it did not.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence

from segmint.catalogs.dataset.commits import Claim, Commit, CommitLog, FileEntry, look_at_shard
from segmint.catalogs.layout import data_path
from segmint.infra.storage.location import Location
from segmint.operators.shards.files import ShardFiles

NamedFiles = Sequence[tuple[FileEntry, bytes]]
"""Files with their entries in a commit."""


def named_files(shard: int, files: ShardFiles) -> NamedFiles:
    """Return a shard's four files, each with its entry in a commit; a file's name contains its hash."""
    by_kind = {"shards": files.tar, "images": files.images, "masks": files.masks, "rejects": files.rejects}
    named = []
    for kind, data in by_kind.items():
        digest = hashlib.sha256(data).hexdigest()
        named.append((FileEntry(data_path(kind, shard, digest), len(data), digest), data))
    return named


def reserve(dataset: Location, commit: Commit) -> Location:
    """Claim the names of the files of a commit that is about to be put; return the claim, which its writer deletes."""
    claim = Claim(commit.shard, commit.generation, tuple(entry.path for entry in commit.files))
    file = claim.location(dataset)
    file.put_if_absent(claim.to_json())
    return file


def put_files(dataset: Location, files: NamedFiles) -> None:
    """Put files whose names are claimed."""
    for entry, data in files:
        (dataset / entry.path).put(data)


def put_commit(dataset: Location, commit: Commit, files: NamedFiles) -> bool:
    """Put a commit if absent, after its `files`; return whether it holds.

    If not, another writer has committed this generation or a higher one.
    """
    log = CommitLog(dataset)
    if not log.put(commit):
        return False
    put_files(dataset, [(entry, data) for entry, data in files if not (dataset / entry.path).exists()])
    if max(log.generations_of(commit.shard), default=0) <= commit.generation:
        return True
    log.location(commit.shard, commit.generation).delete()
    return False


def put_again(
    dataset: Location,
    commit: Commit,
    files: Iterable[tuple[FileEntry, bytes]],
    *,
    heed: Callable[[], object] = lambda: None,
) -> bool:
    """Put files of the commit that holds again, where they are missing or damaged; return whether it still holds then.

    If not, nothing of them is left that the newer commit has taken away: what was put here is deleted with its older
    versions. Every build and correction deletes this claim, as its generation is committed: where it is gone, the
    commit may be, too. `heed` is called if the commit holds, before the claim is deleted.
    """
    pairs = list(files)
    claim = Claim(commit.shard, commit.generation, tuple(entry.path for entry, _ in pairs))
    file = claim.location(dataset)

    def holds() -> bool:
        return CommitLog(dataset).is_latest(commit.shard, commit.generation)

    for entry, content in pairs:
        if not file.exists():
            file.put_if_absent(claim.to_json())
            if not holds():
                break
        (dataset / entry.path).put(content)
    held = holds()
    if held:
        heed()
    else:
        delete_unnamed(dataset, commit.shard, [entry for entry, _ in pairs], purge=True)
    file.delete()
    return held


def delete_unnamed(dataset: Location, shard: int, ours: Iterable[FileEntry], *, purge: bool = False) -> None:
    """Delete files of a writer that lost, but for those that the commit that holds names, or that others claim.

    Nothing is deleted of a shard without a commit.
    """
    state = look_at_shard(dataset, shard)
    if state.commit is not None:
        for entry in ours:
            if entry.path not in state.kept:
                remove(dataset / entry.path, purge=purge)


def remove(file: Location, *, purge: bool) -> None:
    """Delete a file, with `purge` its older versions in the bucket, too."""
    if purge:
        file.purge()
    else:
        file.delete()
