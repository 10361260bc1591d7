"""Ranges of shards for `--shards`, and the ordinals of each shard."""

import re
from dataclasses import dataclass

from segmint.infra.errors import UsageError


@dataclass(frozen=True)
class ShardSpan:
    """Shard with its ordinals [start, stop)."""

    shard: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of rows in the shard."""
        return self.stop - self.start


@dataclass(frozen=True)
class ShardPart:
    """One of `parts` disjoint parts of all shards.

    The parts differ in size by at most one shard. `index` counts from 0.
    """

    index: int
    parts: int

    def of(self, shards: int) -> range:
        """Return the shards in this part, out of `shards` shards. It is empty if there are fewer shards than parts."""
        return range(shards * self.index // self.parts, shards * (self.index + 1) // self.parts)


def choose_shards(count: int, wanted: tuple[int, int] | ShardPart | None) -> range:
    """Return the requested shards out of `count`: the range [first, last), a part, or all shards.

    Raises `UsageError` if the range contains no shard. A part may be empty.
    """
    whole = range(count)
    if wanted is None:
        return whole
    if isinstance(wanted, ShardPart):
        return wanted.of(count)
    chosen = range(max(wanted[0], 0), min(wanted[1], count))
    if not chosen:
        raise UsageError(f"--shards {wanted[0]}:{wanted[1]} names no shard: the dataset has shards 0 to {count - 1}")
    return chosen


def parse_shards(text: str) -> tuple[int, int] | ShardPart:
    """Parse "A:B" (shards A to B - 1) or "K/N" (part K of N parts). Raises `UsageError` for any other text."""
    match = re.fullmatch(r"([0-9]{1,18})([:/])([0-9]{1,18})", text.strip())
    if match is None or int(match[1]) >= int(match[3]):
        raise UsageError(
            f"--shards {text!r}: expected A:B with A < B, such as 0:10 for the first ten shards, or K/N with K < N, "
            "such as 0/4 for the first quarter"
        )
    first, second = int(match[1]), int(match[3])
    return (first, second) if match[2] == ":" else ShardPart(first, second)
