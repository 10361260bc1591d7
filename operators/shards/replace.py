"""Replaces a committed shard by its next generation, and removes the old one for good.

The order makes a crash harmless: new files, the new commit, then the old generation's files are removed, then its
commit. Before the new commit the old generation holds, whole; after it the new one does. `remove_replaced` may be
called again at any time, and does what is left to do.
"""

from collections.abc import Iterable
from dataclasses import replace

from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.catalogs.layout import CATALOG, COMMITS, DATA_KINDS, parse_commit_name, parse_data_path
from segmint.infra.errors import UnfinishedError
from segmint.infra.storage.location import Location
from segmint.infra.storage.stores import TEMPORARY_PREFIX
from segmint.infra.uris import base_name
from segmint.operators.rows import Row
from segmint.operators.shards.files import build_shard_files
from segmint.operators.shards.put import delete_unnamed, put_files


class LostRaceError(UnfinishedError):
    """Another writer committed the same generation of a shard with other content; our files were deleted again."""


def replace_shard(dataset: Location, old: Commit, rows: Iterable[Row], *, with_images: bool) -> Commit:
    """Commit a shard's rows (keys of `DESCRIBED`, in order) as the generation after `old`; remove nothing yet.

    The fingerprint of the numerics is kept: nothing is computed again. Raises `LostRaceError` if another writer has
    committed this generation with other content.
    """
    files = build_shard_files(rows, with_images=with_images)
    entries = put_files(dataset, old.shard, files)
    new = replace(old, generation=old.generation + 1, counts=files.counts, files=entries)
    if not CommitLog(dataset).put(new):
        delete_unnamed(dataset, new.shard, entries)
        raise LostRaceError(
            f"shard {new.shard}: another command has committed generation {new.generation} meanwhile, so the files of "
            "this one were deleted again. Run one correction at a time, and repeat this command"
        )
    return new


def check_purge(dataset: Location) -> None:
    """Check, before anything is changed, that files and their older versions can be removed from a dataset's store.

    Raises `UsageError` for a folder of the dataset that is a link, and for a store that does not show its versions,
    and `StorageFaultError` if we may not see them.
    """
    for folder in (*DATA_KINDS, COMMITS, CATALOG):
        (dataset / folder).refuse_link()
    (dataset / f"{TEMPORARY_PREFIX}versions").purge()


def remove_replaced(dataset: Location, shards: Iterable[int]) -> None:
    """Remove everything of these shards except the commits that hold and the files that these name.

    That is: files of older generations and of writers that died, temporary files, each with its older versions, and
    older versions of files that were deleted before; last, the older commits. Call it only while nobody else writes to
    the dataset.
    """
    log = CommitLog(dataset)
    wanted = set(shards)
    newest = {shard: generation for shard, generation in log.committed().items() if shard in wanted}
    latest = {commit.shard: commit for commit in log.read_many(newest.items())}
    kept = {entry.path for commit in latest.values() for entry in commit.files}
    # A shard whose commit was deleted meanwhile is left alone; one without a commit has only leftovers.
    known = latest.keys() | (wanted - newest.keys())
    for kind in DATA_KINDS:
        for name in (dataset / kind).walk_ever():
            path = f"{kind}/{name}"
            named = parse_data_path(path)
            replaced = named is not None and named.shard in known and path not in kept
            if replaced or base_name(name).startswith(TEMPORARY_PREFIX):
                (dataset / path).purge()
    # Last: while an older commit exists, an interrupted removal can be recognized.
    for name in (dataset / COMMITS).walk_ever():
        parsed = parse_commit_name(name)
        if parsed is not None and parsed[0] in latest and parsed[1] != latest[parsed[0]].generation:
            (dataset / COMMITS / name).purge()
