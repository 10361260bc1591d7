"""Contents of a dataset by its commits: the numbers that accounting and `segmint status` share.

Builds commit in order, so a missing shard below a committed shard is on hold. The dataset doesn't store the reason.
Only the run's memory and log contain it.
"""

from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import zip_longest

import pyarrow.compute as pc

from segmint.catalogs.dataset.commits import PRIVACY_COUNTS, REJECTED, ListedCommit
from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.reader import Dataset
from segmint.catalogs.dataset.redaction_totals import RedactionTotals
from segmint.catalogs.dataset.summaries import ReadCommits, sum_listing
from segmint.catalogs.layout import DamagedDatasetError, image_stem
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location


@dataclass(frozen=True)
class Totals:
    """Sums over some shards of a dataset, computed only from its commits."""

    rows: int  # catalog rows of these shards, committed or not
    written: int  # images
    rejected: Mapping[str, int]  # by reason
    masks: int
    shards: int  # committed
    missing: Sequence[int]  # shards that are not committed, ascending
    missing_rows: int
    redactions: RedactionTotals = field(default_factory=RedactionTotals)


def total(
    dataset: Location,
    manifest: DatasetManifest,
    held: Sequence[ListedCommit],
    wanted: range,
    read: ReadCommits | None = None,
) -> Totals:
    """Sum the commits of the shards in `wanted`, a range with step 1. See `sum_listing` for `held` and `read`."""
    sums = sum_listing(dataset, held, read=read, wanted=wanted)
    committed = {commit.shard for commit in held}
    missing = [shard for shard in wanted if shard not in committed]
    return Totals(
        rows=rows_of(manifest, wanted),
        written=sums.counts.get("images", 0),
        rejected={
            name.removeprefix(REJECTED): count for name, count in sums.counts.items() if name.startswith(REJECTED)
        },
        masks=sums.counts.get("masks", 0),
        shards=sums.shards,
        missing=missing,
        missing_rows=rows_of(manifest, missing),
        redactions=RedactionTotals(
            **{name: sums.counts.get(name, 0) for name in PRIVACY_COUNTS},
            worst=_named(Dataset(dataset, manifest), sums.most_redacted),
        ),
    )


def _named(dataset: Dataset, images: Sequence[tuple[int, float]]) -> tuple[tuple[str, float], ...]:
    """Return pairs of image_id and share for pairs of id and share. An image whose table can't be read keeps its id."""
    wanted = {(id - 1) // dataset.manifest.images_per_shard for id, _ in images}
    names: dict[int, str] = {}
    for commit in dataset.log.read_all(only=wanted) if wanted else ():
        with suppress(NotFoundError, DamagedDatasetError):  # a correction replaced the table, or it's damaged
            ids = pc.field("id").isin([id for id, _ in images])
            for row in dataset.table(commit, "images", ["id", "image_id"], ids).to_pylist():
                names[row["id"]] = row["image_id"]
    return tuple((names.get(id, image_stem(id)), redacted) for id, redacted in images)


def rows_of(manifest: DatasetManifest, shards: Sequence[int]) -> int:
    """Return the number of catalog rows of these shards."""
    return sum(stop - start for start, stop in map(manifest.ordinals, shards))


@dataclass(frozen=True)
class Gap:
    """Adjacent missing shards below a committed shard."""

    first: int
    last: int
    rows: int
    since: datetime | None  # when the next shard was first committed; None: unknown

    @property
    def shards(self) -> int:
        return self.last - self.first + 1

    @property
    def name(self) -> str:
        """Shard numbers as text: `17` or `40-41`."""
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


def find_gaps(
    manifest: DatasetManifest,
    missing: Sequence[int],
    committed: Container[int],
    first_commits: Mapping[int, datetime],
) -> list[Gap]:
    """Return the runs of missing shards that precede a committed shard, in order. `missing` must be ascending.

    `first_commits` contains the times of the shards' first commits, where known.
    """
    gaps = []
    first = None
    for shard, following in zip_longest(missing, missing[1:]):
        first = shard if first is None else first
        if following == shard + 1:
            continue
        if shard + 1 in committed:
            rows = rows_of(manifest, range(first, shard + 1))
            gaps.append(Gap(first, shard, rows, first_commits.get(shard + 1)))
        first = None
    return gaps
