"""Puts and commits a shard's files, and deletes those of a writer that lost.

The order is what makes it safe beside any other writer, and beside whatever deletes:

1. `reserve`: the reservation, with the names of the files, put if absent. From here on nobody else deletes them.
2. `put_files`: the files.
3. `put_commit`: the commit, put if absent. Then a look whether all files are there: one is put again if something
   deleted it that had looked for reservations before this one was put, and slept until its deletion. Then a look for a
   higher generation: if there is one, the commit was put after a later correction had removed its predecessor, and the
   writer has lost.
4. A writer that won applies the tombstones, and what was amended in the catalog. One that lost deletes what it put
   (`delete_unnamed`).
5. The reservation is deleted. Where it is left, a writer died before, and the next build or correction does what it did
   not.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from segmint.catalogs.dataset.commits import Commit, CommitLog, FileEntry, Reservation, read_shard_state
from segmint.catalogs.dataset.handle import DatasetHandle
from segmint.catalogs.layout import (
    CATALOG,
    COMMITS,
    DATA_KINDS,
    RESERVATIONS,
    commit_path,
    data_path,
    parse_commit_name,
    parse_data_path,
)
from segmint.infra.errors import UnfinishedError
from segmint.infra.storage.location import Location
from segmint.infra.storage.stores import TEMPORARY_PREFIX
from segmint.infra.uris import base_name
from segmint.operators.rows import Row
from segmint.operators.shards.files import ShardFiles, build_shard_files, shard_table_bytes

NamedFiles = Sequence[tuple[FileEntry, bytes]]
"""Files with their entries in a commit."""


def named_files(shard: int, files: ShardFiles) -> NamedFiles:
    """Return a shard's four files, each with its entry in a commit; a file's name contains its hash."""
    by_kind = {"shards": files.tar, "images": files.images, "masks": files.masks, "rejects": files.rejects}
    return [_named(kind, shard, data) for kind, data in by_kind.items()]


def _named(kind: str, shard: int, data: bytes) -> tuple[FileEntry, bytes]:
    digest = hashlib.sha256(data).hexdigest()
    return FileEntry(data_path(kind, shard, digest), len(data), digest), data


def reserve(dataset: Location, commit: Commit) -> Location:
    """Reserve the names of a commit's files before they are put; return the reservation, which its writer deletes."""
    reservation = Reservation(commit.shard, commit.generation, tuple(entry.path for entry in commit.files))
    file = reservation.location(dataset)
    file.put_if_absent(reservation.to_json())
    return file


def put_files(dataset: Location, files: NamedFiles) -> None:
    """Put files whose names are reserved."""
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
    after_commit: Callable[[], object] = lambda: None,
) -> bool:
    """Put files of the commit that holds again, where they are missing or damaged; return whether it still holds then.

    If not, nothing of them is left that the newer commit has taken away: what was put here is deleted with its older
    versions. Every build and correction deletes this reservation, as its generation is committed: where it is gone, the
    commit may be, too. `after_commit` is called if the commit holds, before the reservation is deleted.
    """
    pairs = list(files)
    reservation = Reservation(commit.shard, commit.generation, tuple(entry.path for entry, _ in pairs))
    file = reservation.location(dataset)

    def holds() -> bool:
        return CommitLog(dataset).is_latest(commit.shard, commit.generation)

    for entry, content in pairs:
        if not file.exists():
            file.put_if_absent(reservation.to_json())
            if not holds():
                break
        (dataset / entry.path).put(content)
    held = holds()
    if held:
        after_commit()
    else:
        delete_unnamed(dataset, commit.shard, [entry for entry, _ in pairs], purge=True)
    file.delete()
    return held


def delete_unnamed(dataset: Location, shard: int, ours: Iterable[FileEntry], *, purge: bool = False) -> None:
    """Delete files of a writer that lost, but for those that the commit that holds names, or that others reserve.

    Nothing is deleted of a shard without a commit.
    """
    state = read_shard_state(dataset, shard)
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


class LostRaceError(UnfinishedError):
    """Another writer committed the same generation of a shard with other content; our files were deleted again."""


def replace_shard(
    dataset: DatasetHandle,
    old: Commit,
    rows: Iterable[Row],
    *,
    images_only: bool = False,
    purge: bool = True,
    after_commit: Callable[[], object] = lambda: None,
) -> Commit:
    """Commit a shard's rows (keys of `DESCRIBED`, in order) as the generation after `old`; remove nothing yet.

    The fingerprint of the numerics is kept: nothing is computed again. With `images_only` the rows have the keys of
    `IMAGES`, and only that table is put: the tar with the JPEGs may have gigabytes, and all other files stay. Raises
    `LostRaceError` if another writer has committed this generation with other content, or a higher one; with `purge` no
    older version is left of our files. `after_commit` is called once the commit holds.
    """
    if images_only:
        images = _named("images", old.shard, shard_table_bytes("images", rows))
        put: NamedFiles = [images]
        before = old.file("images")
        counts, entries = old.counts, tuple(images[0] if entry == before else entry for entry in old.files)
    else:
        files = build_shard_files(rows, with_images=dataset.with_images)
        put = named_files(old.shard, files)
        counts, entries = files.counts, tuple(entry for entry, _ in put)
    new = replace(old, generation=old.generation + 1, counts=counts, files=entries)
    reservation = reserve(dataset.location, new)
    put_files(dataset.location, put)
    won = put_commit(dataset.location, new, put)
    if won:
        after_commit()
    else:
        delete_unnamed(dataset.location, new.shard, new.files, purge=purge)
    remove(reservation, purge=purge)
    if not won:
        raise LostRaceError(
            f"shard {new.shard}: another command has committed generation {new.generation} meanwhile, so the files of "
            "this one were deleted again. Repeat this command"
        )
    return new


def check_purge(dataset: Location) -> None:
    """Check, before anything is changed, that files and their older versions can be removed from a dataset's store.

    Raises `UsageError` for a folder of the dataset that is a link, and for a store that does not show its versions,
    and `StorageFaultError` if we may not see them.
    """
    for folder in (*DATA_KINDS, COMMITS, CATALOG, RESERVATIONS):
        (dataset / folder).refuse_link()
    (dataset / f"{TEMPORARY_PREFIX}versions").purge()


def remove_replaced(dataset: Location, shards: Iterable[int]) -> list[int]:
    """Remove everything of these shards but the commits that hold, the files that these name, and what is reserved.

    That is: files of older generations and of writers that died, temporary files, each with its older versions, and
    older versions of files that were deleted before; last, the older commits. A shard without a commit has only
    left-overs, except for what a build reserves. Return the shards without a commit of which files were spared.
    """
    wanted = set(shards)
    files: dict[int, list[str]] = {}
    for kind in DATA_KINDS:
        for name in (dataset / kind).walk_ever():
            path = f"{kind}/{name}"
            named = parse_data_path(path)
            if named is not None and named.shard in wanted:
                files.setdefault(named.shard, []).append(path)
            elif base_name(name).startswith(TEMPORARY_PREFIX):
                (dataset / path).purge()
    commits: dict[int, list[int]] = {}
    for name in (dataset / COMMITS).walk_ever():
        parsed = parse_commit_name(name)
        if parsed is not None and parsed[0] in wanted:
            commits.setdefault(parsed[0], []).append(parsed[1])
    spared = []
    for shard in sorted(wanted):
        state = read_shard_state(dataset, shard)
        for path in files.get(shard, ()):
            if path not in state.kept:
                (dataset / path).purge()
        # Last: while an older commit exists, an interrupted removal can be recognized.
        for generation in commits.get(shard, ()):
            if state.commit is not None and generation < state.commit.generation:
                (dataset / commit_path(shard, generation)).purge()
        if state.commit is None and state.kept.intersection(files.get(shard, ())):
            spared.append(shard)
    return spared
