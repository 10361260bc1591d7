"""Drift: whether the last shards look like those before them, by a measure that is simple enough to trust.

Four numbers: masks, faces and plates an image, and the share of refused rows. What is before is exact for masks and
refused rows. Faces and plates are not in commits: they are read from the `images` tables of the last shards, and of
some that are spread evenly over those before. A number is unusual if it differs by more than three standard errors, by
how much it varies from shard to shard.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

from segmint.catalogs.dataset.commits import Commit
from segmint.pipeline.building.status.totals import Totals

LAST_SHARDS = 20
"""The most shards that count as the last ones; at most a quarter of all."""

SAMPLED_SHARDS = 100
"""The most shards before them that are read one by one."""

LEAST_SHARDS = 8
"""Fewer shards are not compared."""

LEAST_SAMPLED = LEAST_SHARDS - LEAST_SHARDS // 4
"""By fewer shards before the last ones no number is called unusual: how much they vary is not known."""

UNUSUAL = 3.0
"""Standard errors."""


@dataclass(frozen=True)
class ShardNumbers:
    """The numbers of a shard; `faces` and `plates` are None where its table cannot be read."""

    rows: int
    images: int
    masks: int
    faces: int | None
    plates: int | None

    @classmethod
    def of(cls, commit: Commit, faces: int | None, plates: int | None) -> "ShardNumbers":
        """Return the numbers of a commit, with those that its `images` table has."""
        counts = commit.counts
        return cls(counts.get("rows", 0), counts.get("images", 0), counts.get("masks", 0), faces, plates)


@dataclass(frozen=True)
class DriftValue:
    """One number, in the last shards and in those before; None where it is not known."""

    name: str
    last: float | None
    before: float | None
    error: (
        float | None
    )  # the standard error of their difference, by how the number varies from shard to shard, if known

    @property
    def unusual(self) -> bool:
        """Whether they differ by more than `UNUSUAL` standard errors."""
        if self.last is None or self.before is None or self.error is None:
            return False
        return abs(self.last - self.before) > max(UNUSUAL * self.error, 1e-9)


@dataclass(frozen=True)
class Drift:
    """The last shards beside those before them."""

    shards: int  # the last ones
    before: int  # all others
    sampled: int  # of these, read one by one
    unread: int  # shards whose `images` table could not be read
    compared: Sequence[DriftValue]


def last_and_sample(built: Sequence[int], committed: Sequence[int]) -> tuple[list[int], list[int]] | None:
    """Choose the last shards, and a sample of those before them; None if there are too few.

    `built` are the shards in order of time, `committed` all of them, in order.
    """
    count = min(LAST_SHARDS, len(committed) // 4, len(built))
    if len(committed) < LEAST_SHARDS or not count:
        return None
    last = set(built[-count:])
    before = [shard for shard in committed if shard not in last]
    taken = min(SAMPLED_SHARDS, len(before))
    return sorted(last), [before[index * len(before) // taken] for index in range(taken)]


def compare(totals: Totals, late: Sequence[ShardNumbers], early: Sequence[ShardNumbers]) -> Drift:
    """Compare the last shards with those before, of which `early` are a sample; `totals` are of all shards."""
    images = totals.written - sum(shard.images for shard in late)
    masks = totals.masks - sum(shard.masks for shard in late)
    refused = sum(totals.rejected.values()) - sum(shard.rows - shard.images for shard in late)
    compared = [
        _compare("masks an image", late, early, lambda shard: (shard.masks, shard.images), _ratio(masks, images)),
        _compare("faces an image", late, early, lambda shard: (shard.faces, shard.images)),
        _compare("plates an image", late, early, lambda shard: (shard.plates, shard.images)),
        _compare(
            "share refused",
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
    """Compare a share of sums; `before` is exact, or None where only a sample says it."""
    pairs = [[pair for pair in map(part, shards) if pair[0] is not None and pair[1]] for shards in (late, early)]
    last, sampled = (_ratio(sum(top or 0 for top, _ in some), sum(below for _, below in some)) for some in pairs)
    each = [(top or 0) / below for top, below in pairs[1]]
    error = None
    if len(each) >= LEAST_SAMPLED and pairs[0]:
        error = statistics.stdev(each) * sqrt(1 / len(pairs[0]) + 1 / len(each))
    return DriftValue(name, last, sampled if before is None else before, error)


def _ratio(top: float, below: float) -> float | None:
    return top / below if below else None
