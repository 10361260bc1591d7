"""Growth rate of a dataset. Commits contain no times, so the rate is based on when the store received them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby

from segmint.catalogs.dataset.commits import ListedCommit
from segmint.catalogs.dataset.summaries import CommitSums
from segmint.infra.storage.stores import NO_TIME

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
