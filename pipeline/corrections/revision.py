"""One way to change committed shards, for every correction: some shards, and a pure function on their rows.

What makes it safe beside builds and other corrections is in `segmint.operators.shards.revise` (one shard: claims,
races, tombstones) and `segmint.operators.shards.replace` (removal of what was there before). Here it is run over the
shards, and what else showed the former rows is removed or made again. The same call completes one that was killed.
"""

from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import partial

from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.infra.storage.location import Location
from segmint.operators.shards.replace import remove_replaced
from segmint.operators.shards.revise import Change, Revised, heed_all, heed_tombstones, revise_shard
from segmint.pipeline.corrections.common import remove_report, rewrite_index


@dataclass(frozen=True)
class Revision:
    """What is to be changed of a dataset."""

    shards: Set[int]  # those that are not committed are only cleaned
    change: Change
    with_images: bool  # whether the dataset's tars hold JPEGs
    needed: Callable[[Commit], bool] = lambda _: True  # a cheaper look than at all rows


@dataclass(frozen=True)
class Outcome:
    """What a revision did."""

    changed: dict[int, Revised]  # by shard, those that have a new generation
    building: tuple[int, ...]  # shards without a commit, of which a build claims files
    removed_links: tuple[str, ...]  # of report/, with what they led to, which was left alone


def revise(dataset: Location, manifest: DatasetManifest, revision: Revision) -> Outcome:
    """Apply a revision shard by shard, then remove what was there before, older versions included.

    `segmint.operators.shards.replace.check_purge` must have passed. Raises what `revise_shard` does.
    """
    changed: dict[int, Revised] = {}
    for shard in sorted(revision.shards & CommitLog(dataset).committed().keys()):
        revised = revise_shard(
            dataset,
            shard,
            revision.change,
            with_images=revision.with_images,
            needed=revision.needed,
            heed=partial(heed_tombstones, dataset, shard, with_images=revision.with_images),
        )
        if revised is not None and revised.changed:
            changed[shard] = revised
    heed_all(dataset, revision.shards, with_images=revision.with_images)
    building = remove_replaced(dataset, revision.shards)
    links = remove_report(dataset)
    rewrite_index(dataset, manifest)
    return Outcome(changed, tuple(building), tuple(links))
