"""How fast a dataset grows, by the times at which the store got its commits: they hold nothing of time themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from segmint.catalogs.dataset.summaries import CommitSums

LAST_HOUR = timedelta(hours=1)

LEAST_COMMITS = 5
"""A pace rests on at least so many commits, if there are as many, however long they took."""

MOST_COMMITS = 200
"""And on at most so many, whose counts are read."""


@dataclass(frozen=True)
class Pace:
    """What the last commits brought, and in which time."""

    shards: int
    rows: int
    images: int
    masks: int
    since: datetime  # of the commit before them
    last: datetime

    @property
    def seconds(self) -> float:
        """The time that they took."""
        return (self.last - self.since).total_seconds()

    @property
    def rows_per_s(self) -> float:
        """Rows a second, refused ones too: what decides when the rest is done."""
        return self.rows / self.seconds

    @property
    def images_per_s(self) -> float:
        """Images a second."""
        return self.images / self.seconds

    @property
    def masks_per_s(self) -> float:
        """Masks a second."""
        return self.masks / self.seconds


@dataclass(frozen=True)
class LastCommits:
    """The commits that a pace rests on."""

    shards: Sequence[int]  # in order of time, without the commit that the time is counted from
    since: datetime
    last: datetime


def first_commits(written: Mapping[tuple[int, int], datetime], committed: Mapping[int, int]) -> list[int]:
    """Return the shards as builds committed them, in order of time; without those that a correction has changed since.

    `written` are the times of the commits' files, `committed` is each shard with the generation that holds.
    """
    built = [(written[shard, 1], shard) for shard, generation in committed.items() if generation == 1]
    return [shard for _, shard in sorted(built)]


def last_commits(shards: Sequence[int], written: Mapping[tuple[int, int], datetime]) -> LastCommits | None:
    """Choose the commits of the hour before the last one; `shards` are in order of time.

    At least `LEAST_COMMITS`, at most `MOST_COMMITS`. None where no time lies between them.
    """
    times = [written[shard, 1] for shard in shards[-MOST_COMMITS - 1 :]]
    if not times:
        return None
    recent = sum(time >= times[-1] - LAST_HOUR for time in times)
    taken = min(max(recent, LEAST_COMMITS + 1), len(times))
    since, last = times[-taken], times[-1]
    return LastCommits(shards[len(shards) - taken + 1 :], since, last) if since < last else None


def pace_of(commits: LastCommits, sums: CommitSums) -> Pace:
    """Return the pace of these commits, whose sums are given."""
    counts = sums.counts
    return Pace(
        shards=len(commits.shards),
        rows=counts.get("rows", 0),
        images=counts.get("images", 0),
        masks=counts.get("masks", 0),
        since=commits.since,
        last=commits.last,
    )
