"""Revision that updates committed images to the catalog's credits, for `segmint amend` and `segmint repair`."""

from collections.abc import Collection, Iterable

from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.catalogs.schema import AMENDABLE
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead
from segmint.operators.shards.committed_rows import read_shard_table
from segmint.operators.shards.revise import Change, cataloged, with_latest_commit
from segmint.pipeline.corrections.correction import Revision

_THREADS = 16


def credit(dataset: Location, generation: int, shards: Collection[int]) -> Revision:
    """Return a revision that updates the credits of the shards' images from the catalog.

    The revision reads the catalog of manifest generation `generation` or of a later generation.
    """
    change = cataloged(dataset)
    return Revision(
        shards=frozenset(shards),
        change=change,
        needed=lambda commit: _differs(dataset, commit, change),
        only="images",
        catalog_generation=generation,
    )


def otherwise_credited(dataset: Location, shards: Iterable[int]) -> list[int]:
    """Return the committed shards with an image whose credits differ from the catalog."""
    change = cataloged(dataset)

    def look(shard: int) -> tuple[int, bool]:
        return shard, bool(with_latest_commit(dataset, shard, lambda commit: _differs(dataset, commit, change)))

    looks = map_ahead(look, sorted(shards), _THREADS, 2 * _THREADS, "credits")
    return [shard for shard, differs in looks if differs]


def unfinished_shards(dataset: Location, shards: Collection[int]) -> list[int]:
    """Return the committed shards among `shards` that an interrupted amendment may have left behind.

    Either the credits of an image differ from the catalog, or the files of a former generation weren't removed.
    """
    generations = CommitLog(dataset).generations()
    replaced = {shard for shard in shards if len(generations.get(shard, ())) > 1}
    return sorted(replaced.union(otherwise_credited(dataset, shards)))


def _differs(dataset: Location, commit: Commit, change: Change) -> bool:
    table = read_shard_table(dataset, commit, "images")
    rows = table.select(["ordinal", "image_id", *AMENDABLE]).to_pylist()
    return any(one is not other for one, other in zip(rows, change(commit, rows), strict=True))
