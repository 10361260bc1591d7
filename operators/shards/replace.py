"""Replaces a committed shard by its next generation, and removes what was there before for good.

The order is what makes a crash harmless: new files, the new commit, then the old generation's files, then its commit.
Before the new commit the old generation holds, whole; after it the new one does. `remove_replaced` may be called
again at any time, and does what is left to do.
"""

from collections.abc import Iterable
from dataclasses import replace

from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.catalogs.layout import COMMITS, DATA_KINDS, parse_commit_name, parse_data_path
from segmint.infra.errors import UnfinishedError
from segmint.infra.storage.location import Location
from segmint.infra.storage.stores import TEMPORARY_PREFIX
from segmint.infra.uris import base_name
from segmint.operators.rows import Row
from segmint.operators.shards.files import build_shard_files
from segmint.operators.shards.put import delete_unnamed, put_files


class LostRaceError(UnfinishedError):
    """Another writer committed the same generation of a shard with other content; ours was taken back."""


def replace_shard(dataset: Location, old: Commit, rows: Iterable[Row], *, with_images: bool) -> Commit:
    """Commits a shard's rows (keys of `DESCRIBED`, in order) as the generation after `old`; removes nothing yet.

    The fingerprint of the numerics is kept: what was computed is what it was. Raises `LostRaceError` where another
    writer's commit of this generation says something else.
    """
    files = build_shard_files(rows, with_images=with_images)
    entries = put_files(dataset, old.shard, files)
    new = replace(old, generation=old.generation + 1, counts=files.counts, files=entries)
    if not CommitLog(dataset).put(new):
        delete_unnamed(dataset, new.shard, entries)
        raise LostRaceError(
            f"shard {new.shard}: another command has committed generation {new.generation} meanwhile, and what this "
            "one wrote was taken back: run one correction at a time, and this command again"
        )
    return new


def check_purge(dataset: Location) -> None:
    """Finds out, before anything is changed, whether older versions can be removed from a dataset's store.

    Raises `UsageError` for a store whose versions cannot be seen, and `StorageFaultError` where we may not see them.
    """
    (dataset / f"{TEMPORARY_PREFIX}versions").purge()


def remove_replaced(dataset: Location, shards: Iterable[int]) -> None:
    """Removes all that stands of these shards beside their holding commits and the files that these name.

    That is: files of older generations and of writers that died, temporary files, each with its older versions, and
    older versions of what was deleted before; last the older commits. Only where nobody else writes to the dataset.
    """
    log = CommitLog(dataset)
    wanted = set(shards)
    newest = {shard: generation for shard, generation in log.committed().items() if shard in wanted}
    held = {commit.shard: commit for commit in log.read_many(newest.items())}
    kept = {entry.path for commit in held.values() for entry in commit.files}
    # A shard whose commit vanished as we looked is let alone; one without a commit has left-overs at the most.
    known = held.keys() | (wanted - newest.keys())
    for kind in DATA_KINDS:
        for name in (dataset / kind).walk_ever():
            path = f"{kind}/{name}"
            named = parse_data_path(path)
            replaced = named is not None and named.shard in known and path not in kept
            if replaced or base_name(name).startswith(TEMPORARY_PREFIX):
                (dataset / path).purge()
    # Only now: as long as an older commit stands, anybody can see that a removal was interrupted.
    for name in (dataset / COMMITS).walk_ever():
        parsed = parse_commit_name(name)
        if parsed is not None and parsed[0] in held and parsed[1] != held[parsed[0]].generation:
            (dataset / COMMITS / name).purge()
