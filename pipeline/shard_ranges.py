"""Ranges of shards: what `--shards` names, and the ordinals of each shard."""

import re
from dataclasses import dataclass

from segmint.infra.errors import UsageError


@dataclass(frozen=True)
class ShardSpan:
    """A shard and its ordinals `[start, stop)`."""

    shard: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many rows the shard takes."""
        return self.stop - self.start


@dataclass(frozen=True)
class ShardPart:
    """Part `index`, from 0, of all shards in `parts` parts: disjoint, whole together, and alike but for one shard."""

    index: int
    parts: int

    def of(self, shards: int) -> range:
        """The part of so many shards; empty where there are fewer shards than parts."""
        return range(shards * self.index // self.parts, shards * (self.index + 1) // self.parts)


def choose_shards(count: int, wanted: tuple[int, int] | ShardPart | None) -> range:
    """The shards `[first, last)` that were asked for out of `count`, a part of all, or all.

    Raises `UsageError` for a range without a shard; a part may be empty, where there are more parts than shards.
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
    """Shards A to B-1 from "A:B", part K of N from "K/N"; raises `UsageError` for anything else."""
    match = re.fullmatch(r"(\d+)([:/])(\d+)", text.strip())
    if match is None or int(match[1]) >= int(match[3]):
        raise UsageError(
            f"--shards {text!r}: expected A:B with A < B, such as 0:10 for the first ten shards, or K/N with K < N, "
            "such as 0/4 for the first quarter"
        )
    first, second = int(match[1]), int(match[3])
    return (first, second) if match[2] == ":" else ShardPart(first, second)
