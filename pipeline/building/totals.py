"""Contents of a dataset by its commits, its pace, and the people who work on it.

Contents of a dataset by its commits: the numbers that accounting and `segmint status` share.

Builds commit in order, so a missing shard below a committed shard is on hold. The dataset doesn't store the reason.
Only the run's memory and log contain it.

Counts of annotated masks for `segmint status`, from the tables of shards that changed since their build.

A build commits generation 1, which contains only automatic masks. Annotated masks are added in later generations.

Growth rate of a dataset. Commits contain no times, so the rate is based on when the store received them.
"""

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import groupby, zip_longest
from math import isfinite
from typing import Any

import pyarrow.compute as pc

from segmint.catalogs.dataset.commits import (
    PRIVACY_COUNTS,
    REJECTED,
    Commit,
    CommitSums,
    ListedCommit,
    ReadCommits,
    sum_listing,
)
from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.reader import Dataset
from segmint.catalogs.dataset.regions import RedactionTotals
from segmint.catalogs.layout import DamagedDatasetError, image_stem
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.storage.stores import NO_TIME
from segmint.operators.rows import AUTOMATIC


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


@dataclass(frozen=True)
class People:
    """Numbers and times of annotated masks in some shards."""

    by_source: Mapping[str, int]
    timed: int = 0  # masks with a recorded time
    seconds: float = 0.0  # total time of these masks
    unread: int = 0  # tables that couldn't be read

    @property
    def masks(self) -> int:
        """Number of masks from all sources."""
        return sum(self.by_source.values())

    @property
    def seconds_per_mask(self) -> float | None:
        """Annotators' active seconds per mask with a recorded time, or None if no mask has a recorded time."""
        return self.seconds / self.timed if self.timed else None

    def __add__(self, other: "People") -> "People":
        by_source = Counter(self.by_source) + Counter(other.by_source)
        return People(by_source, self.timed + other.timed, self.seconds + other.seconds, self.unread + other.unread)


NOBODY = People({})


def count_people(dataset: Dataset, commit: Commit) -> People:
    """Count the annotated masks of a shard.

    If the table is damaged or a correction has replaced it, count it as unread.
    """
    try:
        sources = dataset.table(commit, "masks", ["source"]).column("source")
        if not set(sources.unique().to_pylist()) - {AUTOMATIC, None}:
            return NOBODY
        table = dataset.table(commit, "masks", ["source", "seconds", "parent", "prompts"])
        rows = table.filter(pc.not_equal(table.column("source"), AUTOMATIC)).to_pylist()
    except (NotFoundError, DamagedDatasetError, KeyError):
        return People({}, unread=1)
    times = [
        row["seconds"]
        for row in rows
        if row["seconds"] is not None and isfinite(row["seconds"]) and not _is_untouched(row)  # else 0 s
    ]
    return People(Counter(row["source"] for row in rows), len(times), sum(times))


def _is_untouched(mask: Mapping[str, Any]) -> bool:
    """Return whether a mask was prefilled from a detector's box and nobody spent time on it.

    This follows the rule of `assignments.is_untouched`.
    """
    prompts = mask["prompts"] or []
    boxed = len(prompts) == 1 and prompts[0]["kind"] == "box"
    return mask["source"] == "assisted" and mask["parent"] is None and mask["seconds"] == 0 and boxed


LAST_HOUR = timedelta(hours=1)

LEAST_COMMITS = 5
"""Minimum number of commits for a pace, however long they took.

Parallel writers commit in bursts, so the time between a few commits doesn't indicate the pace."""

MOST_COMMITS = 200
"""Maximum number of commits for a pace. Reading their counts takes time, so the number is limited."""


@dataclass(frozen=True)
class Pace:
    """Output of the last commits, and the time that they took."""

    shards: int
    rows: int
    images: int
    masks: int
    since: datetime  # time of the commit before the counted commits
    last: datetime

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return (self.last - self.since).total_seconds()

    @property
    def rows_per_s(self) -> float:
        """Rows per second, including rejected rows, because they affect the remaining time as well."""
        return self.rows / self.seconds

    @property
    def images_per_s(self) -> float:
        """Images per second."""
        return self.images / self.seconds

    @property
    def masks_per_s(self) -> float:
        """Masks per second."""
        return self.masks / self.seconds


@dataclass(frozen=True)
class LastCommits:
    """Commits that a pace is computed from."""

    shards: Sequence[int]  # in order of time; the commit at `since` isn't included
    since: datetime
    last: datetime


def first_commits(listed: Iterable[ListedCommit]) -> dict[int, datetime]:
    """Return when a build first committed each shard, in chronological order. Unknown times are omitted.

    `listed` contains the files of all commits, in order. A correction deletes a shard's previous commit, so the
    original time is lost. Because builds commit shards in order, this function interpolates such times. It takes the
    last uncorrected shard before the corrected shards and the first uncorrected shard after them. If these two times
    are in order, the corrected shards get evenly spaced times in between.
    """
    times: dict[int, datetime] = {}
    before: ListedCommit | None = None  # the last uncorrected commit
    corrected: list[ListedCommit] = []  # corrected commits since `before`
    for _, generations in groupby(listed, key=lambda commit: commit.shard):
        first = next(generations)
        if first.generation > 1 or first.modified == NO_TIME:
            corrected.append(first)
            continue
        if before is not None and before.modified <= first.modified:
            each = (first.modified - before.modified) / (first.shard - before.shard)
            for commit in corrected:
                if before.modified <= commit.modified:
                    evenly = before.modified + each * (commit.shard - before.shard)
                    times[commit.shard] = min(evenly, commit.modified)
        times[first.shard], before, corrected = first.modified, first, []
    return dict(sorted(times.items(), key=lambda item: (item[1], item[0])))


def last_commits(first: Mapping[int, datetime]) -> LastCommits | None:
    """Choose the commits of the hour before the latest commit. `first` maps shards to times, chronologically.

    Returns `LEAST_COMMITS` to `MOST_COMMITS` commits, not counting the commit that starts the hour. Returns None if
    there are fewer, or if all commits have the same time.
    """
    shards = list(first)[-MOST_COMMITS - 1 :]
    if len(shards) <= LEAST_COMMITS:
        return None
    times = [first[shard] for shard in shards]
    recent = sum(time >= times[-1] - LAST_HOUR for time in times)
    taken = max(recent, LEAST_COMMITS + 1)
    since, last = times[-taken], times[-1]
    return LastCommits(shards[len(shards) - taken + 1 :], since, last) if since < last else None


def pace_of(commits: LastCommits, sums: CommitSums) -> Pace:
    """Compute the pace of these commits from their sums."""
    counts = sums.counts
    return Pace(
        shards=len(commits.shards),
        rows=counts.get("rows", 0),
        images=counts.get("images", 0),
        masks=counts.get("masks", 0),
        since=commits.since,
        last=commits.last,
    )
