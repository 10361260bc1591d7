"""What a dataset contains by its commits: the numbers that a run's accounting and `segmint status` share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from segmint.catalogs.dataset.commits import REJECTED, ListedCommit
from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.summaries import CommitSums, ReadCommits, sum_listing
from segmint.infra.storage.location import Location


@dataclass(frozen=True)
class Totals:
    """Sums over some shards of a dataset, from the commits alone."""

    rows: int  # catalog rows of these shards, committed or not
    written: int  # images
    rejected: Mapping[str, int]  # by reason
    masks: int
    shards: int  # committed
    missing: Sequence[int]  # shards that are not committed, ascending
    missing_rows: int


def total(
    dataset: Location,
    manifest: DatasetManifest,
    held: Sequence[ListedCommit],
    wanted: range,
    read: ReadCommits | None = None,
) -> Totals:
    """Sum the commits of the shards in `wanted` (step 1); `held` are the files of those that hold.

    `read` as in `sum_listing`.
    """
    sums = sum_listing(dataset, held, read=read, wanted=wanted)
    committed = {commit.shard for commit in held}
    missing = [shard for shard in wanted if shard not in committed]
    return Totals(
        rows=rows_of(manifest, wanted),
        written=sums.counts.get("images", 0),
        rejected=refused_in(sums),
        masks=sums.counts.get("masks", 0),
        shards=sums.shards,
        missing=missing,
        missing_rows=rows_of(manifest, missing),
    )


def rows_of(manifest: DatasetManifest, shards: Sequence[int]) -> int:
    """Return the number of catalog rows of these shards."""
    return sum(stop - start for start, stop in map(manifest.ordinals, shards))


def refused_in(sums: CommitSums) -> dict[str, int]:
    """Return the refused rows by reason."""
    counts = sums.counts.items()
    return {name.removeprefix(REJECTED): count for name, count in counts if name.startswith(REJECTED)}
