"""Replaces a committed shard by its next generation, and removes the old one for good.

The order makes a crash harmless: new files, the new commit, then the old generation's files are removed, then its
commit. Before the new commit the old generation holds, whole; after it the new one does. `remove_replaced` may be
called again at any time, and does what is left to do.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace

from segmint.catalogs.dataset.commits import Commit, FileEntry, look_at_shard
from segmint.catalogs.dataset.handle import DatasetHandle
from segmint.catalogs.layout import (
    CATALOG,
    CLAIMS,
    COMMITS,
    DATA_KINDS,
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
from segmint.operators.shards.files import build_shard_files
from segmint.operators.shards.put import (
    NamedFiles,
    delete_unnamed,
    named_files,
    put_commit,
    put_files,
    remove,
    reserve,
)


class LostRaceError(UnfinishedError):
    """Another writer committed the same generation of a shard with other content; our files were deleted again."""


def replace_shard(
    dataset: DatasetHandle,
    old: Commit,
    rows: Iterable[Row],
    *,
    purge: bool = True,
    heed: Callable[[], object] = lambda: None,
) -> Commit:
    """Commit a shard's rows (keys of `DESCRIBED`, in order) as the generation after `old`; remove nothing yet.

    The fingerprint of the numerics is kept: nothing is computed again. Raises `LostRaceError` if another writer has
    committed this generation with other content, or a higher one; with `purge` no older version is left of our files.
    `heed` is called once the commit holds.
    """
    files = build_shard_files(rows, with_images=dataset.with_images)
    named = named_files(old.shard, files)
    entries = tuple(entry for entry, _ in named)
    new = replace(old, generation=old.generation + 1, counts=files.counts, files=entries)
    return _commit_next(dataset.location, new, named, purge, heed)


def replace_images(
    dataset: DatasetHandle,
    old: Commit,
    table: bytes,
    *,
    purge: bool = True,
    heed: Callable[[], object] = lambda: None,
) -> Commit:
    """Commit another table of images as the generation after `old`, with the same rows and all its other files.

    Nothing else of the shard is read or put: the tar with the JPEGs may have gigabytes. As `replace_shard` otherwise.
    """
    digest = hashlib.sha256(table).hexdigest()
    before = old.file("images")
    after = FileEntry(data_path("images", old.shard, digest), len(table), digest)
    files = tuple(after if entry == before else entry for entry in old.files)
    new = replace(old, generation=old.generation + 1, files=files)
    return _commit_next(dataset.location, new, [(after, table)], purge, heed)


def _commit_next(dataset: Location, new: Commit, files: NamedFiles, purge: bool, heed: Callable[[], object]) -> Commit:
    """Put a generation's new files and its commit; the others are the former generation's, too."""
    claim = reserve(dataset, new)
    put_files(dataset, files)
    won = put_commit(dataset, new, files)
    if won:
        heed()
    else:
        delete_unnamed(dataset, new.shard, new.files, purge=purge)
    remove(claim, purge=purge)
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
    for folder in (*DATA_KINDS, COMMITS, CATALOG, CLAIMS):
        (dataset / folder).refuse_link()
    (dataset / f"{TEMPORARY_PREFIX}versions").purge()


def remove_replaced(dataset: Location, shards: Iterable[int]) -> list[int]:
    """Remove everything of these shards but the commits that hold, the files that these name, and what is claimed.

    That is: files of older generations and of writers that died, temporary files, each with its older versions, and
    older versions of files that were deleted before; last, the older commits. A shard without a commit has only
    left-overs, except for what a build claims. Return the shards without a commit of which files were spared.
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
        state = look_at_shard(dataset, shard)
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
