"""Drift check: compares the last shards with those before them, using a simple, robust measure.

The check compares four numbers: masks, faces, and plates per image, and the fraction of rejected rows. The commits
contain the masks and rejected rows, so these two numbers cover all earlier shards. Faces and plates must be read from
the `images` tables, so these two numbers only cover a sample, spread evenly over the earlier shards. A number is
unusual if it differs by more than three standard errors. The standard error is estimated from the variation between
shards.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import sqrt

from segmint.catalogs.dataset.commits import Commit
from segmint.pipeline.building.status.totals import Totals

LAST_SHARDS = 20
"""Maximum number of shards that count as the last shards. At most a quarter of all shards do."""

SAMPLED_SHARDS = 100
"""Maximum number of earlier shards to read individually."""

LEAST_SHARDS = 8
"""Minimum number of shards for a comparison."""

LEAST_SAMPLED = LEAST_SHARDS - LEAST_SHARDS // 4
"""Minimum number of earlier shards with a value. If there are fewer, no number counts as unusual."""

UNUSUAL = 3.0
"""Threshold in standard errors."""


@dataclass(frozen=True)
class ShardNumbers:
    """Counts of a shard. `faces` and `plates` are None if the shard's table can't be read."""

    rows: int
    images: int
    masks: int
    faces: int | None
    plates: int | None

    @classmethod
    def of(cls, commit: Commit, faces: int | None, plates: int | None) -> "ShardNumbers":
        """Return the counts of a commit. `faces` and `plates` come from the commit's `images` table."""
        counts = commit.counts
        return cls(counts.get("rows", 0), counts.get("images", 0), counts.get("masks", 0), faces, plates)


@dataclass(frozen=True)
class DriftValue:
    """A number in the last shards and in the earlier shards, or None if unknown."""

    name: str
    last: float | None
    before: float | None
    error: float | None  # standard error of the difference, from the variation between shards, if known

    @property
    def unusual(self) -> bool:
        """True if the two values differ by more than `UNUSUAL` standard errors."""
        if self.last is None or self.before is None or self.error is None:
            return False
        return abs(self.last - self.before) > max(UNUSUAL * self.error, 1e-9)


@dataclass(frozen=True)
class Drift:
    """Comparison of the last shards with the earlier shards."""

    shards: int  # number of last shards
    before: int  # number of earlier shards
    sampled: int  # earlier shards that were read individually
    unread: int  # shards whose `images` table could not be read
    compared: Sequence[DriftValue]


def last_and_sample(built: Sequence[int], committed: Sequence[int]) -> tuple[list[int], list[int]] | None:
    """Choose the last shards and a sample of the earlier shards. Return None if there are too few shards.

    `built` contains the shards with known build times, in chronological order. `committed` contains all shards in
    ascending order.
    """
    count = min(LAST_SHARDS, len(committed) // 4, len(built))
    if len(committed) < LEAST_SHARDS or not count:
        return None
    last = set(built[-count:])
    before = [shard for shard in committed if shard not in last]
    taken = min(SAMPLED_SHARDS, len(before))
    return sorted(last), [before[index * len(before) // taken] for index in range(taken)]


def compare(totals: Totals, late: Sequence[ShardNumbers], early: Sequence[ShardNumbers]) -> Drift:
    """Compare the last shards, `late`, with `early`, a sample of the earlier shards. `totals` covers all shards."""
    images = totals.written - sum(shard.images for shard in late)
    masks = totals.masks - sum(shard.masks for shard in late)
    refused = sum(totals.rejected.values()) - sum(shard.rows - shard.images for shard in late)
    compared = [
        _compare("masks per image", late, early, lambda shard: (shard.masks, shard.images), _ratio(masks, images)),
        _compare("faces per image", late, early, lambda shard: (shard.faces, shard.images)),
        _compare("plates per image", late, early, lambda shard: (shard.plates, shard.images)),
        _compare(
            "share rejected",
            late,
            early,
            lambda shard: (shard.rows - shard.images, shard.rows),
            _ratio(refused, images + refused),
        ),
    ]
    unread = sum(shard.faces is None for shard in (*late, *early))
    return Drift(len(late), totals.shards - len(late), len(early), unread, compared)


def _compare(
    name: str,
    late: Sequence[ShardNumbers],
    early: Sequence[ShardNumbers],
    part: Callable[[ShardNumbers], tuple[int | None, int]],
    before: float | None = None,
) -> DriftValue:
    """Compare a ratio of sums. `before` is the ratio over all earlier shards, or None if only a sample is available."""
    last, of_late = _ratios(map(part, late))
    sampled, of_early = _ratios(map(part, early))
    if before is None:
        before = sampled
    error = None
    if len(of_early) >= LEAST_SAMPLED and of_late:
        error = statistics.stdev(of_early) * sqrt(1 / len(of_late) + 1 / len(of_early))
    return DriftValue(name, last, before, error)


def _ratios(pairs: Iterable[tuple[int | None, int]]) -> tuple[float | None, list[float]]:
    """Return the ratio of the sums, and the ratio of each pair. Pairs with an unknown number or over 0 don't count."""
    tops = belows = 0
    ratios = []
    for top, below in pairs:
        if top is not None and below:
            tops += top
            belows += below
            ratios.append(top / below)
    return _ratio(tops, belows), ratios


def _ratio(top: float, below: float) -> float | None:
    if not below:
        return None
    return top / below
