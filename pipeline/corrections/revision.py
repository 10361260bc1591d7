"""One way to change committed shards, for every correction: some shards, and a pure function on their rows.

What makes it safe beside builds and other corrections is in `segmint.operators.shards.revise` (one shard: claims,
races, tombstones) and `segmint.operators.shards.replace` (removal of what was there before). Here it is run over the
shards, and what else showed the former rows is removed or made again. The same call completes one that was killed.
"""

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec

from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead
from segmint.operators.shards.replace import remove_replaced
from segmint.operators.shards.revise import (
    Change,
    Revised,
    heed_all,
    heed_catalog,
    heed_tombstones,
    revise_shard,
    with_holding,
)
from segmint.pipeline.config.config import ResourcesConfig
from segmint.pipeline.corrections.common import remove_report, rewrite_index

RAY_FROM_SHARDS = 200
"""With this many shards to change, or more, Ray revises them: it takes about ten seconds to start."""

LOCAL = ResourcesConfig(address="local")
"""Ray on this machine only."""

_THREADS = 16


@dataclass(frozen=True)
class Revision:
    """What is to be changed of a dataset."""

    shards: Set[int]  # those that are not committed are only cleaned
    change: Change
    with_images: bool  # whether the dataset's tars hold JPEGs
    needed: Callable[[Commit], bool] = lambda _: True  # a cheaper look than at all rows
    images_only: bool = False  # whether it changes nothing but the tables of images, and reads nothing else
    cataloged: int | None = None  # generation of the manifest whose catalog, or a later one, the change reads


@dataclass(frozen=True)
class Outcome:
    """What a revision did."""

    changed: dict[int, Revised]  # by shard, those that have a new generation
    building: tuple[int, ...]  # shards without a commit, of which a build claims files
    removed_links: tuple[str, ...]  # of report/, with what they led to, which was left alone


def revise(
    dataset: Location,
    manifest: DatasetManifest,
    revision: Revision,
    resources: ResourcesConfig = LOCAL,
    ray_from: int = RAY_FROM_SHARDS,
) -> Outcome:
    """Apply a revision shard by shard, then remove what was there before, older versions included.

    With `ray_from` shards or more to change, Ray revises them where `resources` say, if it is installed.
    `segmint.operators.shards.replace.check_purge` must have passed. Raises what `revise_shard` does, and
    `UnfinishedError` if Ray fails.
    """

    def look(shard: int) -> tuple[int, bool]:
        return shard, bool(with_holding(dataset, shard, revision.needed))

    committed = sorted(revision.shards & CommitLog(dataset).committed().keys())
    looks = map_ahead(look, committed, _THREADS, 2 * _THREADS, "revise")
    shards = [shard for shard, needed in looks if needed]
    results: Iterable[Revised | None] = (revise_one(dataset, shard, revision) for shard in shards)
    if len(shards) >= ray_from and find_spec("ray") is not None:
        from segmint.pipeline.corrections.by_ray import correct_by_ray  # Ray takes a second to import

        alone = replace(revision, shards=frozenset(shards))
        results = correct_by_ray(partial(revise_one, dataset, revision=alone), shards, resources)
    changed = {
        shard: revised
        for shard, revised in zip(shards, results, strict=True)
        if revised is not None and revised.changed
    }
    # An amendment that died may have left a shard that this one does not change.
    heeded = revision.shards if revision.cataloged is None else range(manifest.shards)
    heed_all(dataset, heeded, with_images=revision.with_images)
    building = remove_replaced(dataset, revision.shards)
    links = remove_report(dataset)
    rewrite_index(dataset, manifest)
    return Outcome(changed, tuple(building), tuple(links))


def revise_one(dataset: Location, shard: int, revision: Revision) -> Revised | None:
    """Apply a revision to one shard; see `revise_shard`."""

    def heed() -> None:
        heed_tombstones(dataset, shard, with_images=revision.with_images)
        if revision.cataloged is not None:
            heed_catalog(dataset, shard, revision.cataloged)

    return revise_shard(
        dataset,
        shard,
        revision.change,
        with_images=revision.with_images,
        images_only=revision.images_only,
        needed=revision.needed,
        heed=heed,
    )
