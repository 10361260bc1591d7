"""Puts and commits a shard's files, and deletes those of a writer that lost.

The order is what makes it safe beside any other writer, and beside whatever deletes:

1. The claim: the names of the files, put if absent. From here on nobody else deletes them.
2. The files.
3. The commit, put if absent.
4. A look whether all files are there. A file is put again if something deleted it that had looked for claims before
   this one was put, and slept until its deletion.
5. A look for a higher generation: if there is one, the commit was put after a later correction had removed its
   predecessor, and the writer has lost. It deletes what it put.
6. The tombstones are heeded, and what was amended in the catalog.
7. The claim is deleted. Where it is left, a writer died before, and the next build or correction does what it did not.
"""

import hashlib
from collections.abc import Callable, Iterable

from segmint.catalogs.dataset.commits import Claim, Commit, CommitLog, FileEntry, look_at_shard
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


def commit_files(
    dataset: Location,
    commit: Commit,
    data: Iterable[bytes | None],
    *,
    purge: bool,
    heed: Callable[[], object] = lambda: None,
) -> bool:
    """Put the files of a commit, `data` in its order, and the commit if absent; return whether it holds then.

    A file whose data is None is not put: the generation before has it, too.

    If not, another writer has committed this generation or a higher one, and what was put here is deleted; with
    `purge` its older versions in the bucket, too. `heed` is called once the commit holds, before the claim is deleted.
    """
    log = CommitLog(dataset)
    pairs = zip(commit.files, data, strict=True)
    claim = Claim(commit.shard, commit.generation, tuple(entry.path for entry in commit.files))
    claim.location(dataset).put_if_absent(claim.to_json())
    new = [(entry, content) for entry, content in pairs if content is not None]
    for entry, content in new:
        (dataset / entry.path).put(content)
    won = log.put(commit)
    if won:
        for entry, content in new:
            if not (dataset / entry.path).exists():
                (dataset / entry.path).put(content)
        won = max(log.generations_of(commit.shard), default=0) <= commit.generation
        if not won:
            log.location(commit.shard, commit.generation).delete()
    if won:
        heed()
    else:
        delete_unnamed(dataset, commit.shard, commit.files, purge=purge)
    remove(claim.location(dataset), purge=purge)
    return won


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
