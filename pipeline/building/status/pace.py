"""How fast a dataset grows, by the times at which the store got its commits: they hold nothing of time themselves."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby

from segmint.catalogs.dataset.commits import ListedCommit
from segmint.catalogs.dataset.summaries import CommitSums
from segmint.infra.storage.stores import NO_TIME

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


def first_commits(listed: Iterable[ListedCommit]) -> dict[int, datetime]:
    """Return when builds first committed each shard, in order of time; without those whose time is not known.

    `listed` are the files of all commits, in order. A correction removes the commit before its own, and with it that
    one's time. But builds commit in order: where the nearest shards on both sides were not corrected, and one was
    committed after the other, those between them are taken as spread evenly over that time.
    """
    times: dict[int, datetime] = {}
    before: ListedCommit | None = None  # the last one that was not corrected
    corrected: list[ListedCommit] = []  # since that one
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
    """Choose the commits of the hour before the last one; `first` has the time of each shard's, in order of time.

    At least `LEAST_COMMITS`, at most `MOST_COMMITS`. None where no time lies between them.
    """
    shards = list(first)[-MOST_COMMITS - 1 :]
    if not shards:
        return None
    times = [first[shard] for shard in shards]
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
