"""Cutting a stream of blocks at the borders of shards, by row counts alone."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from infra.errors import SegmintError, UsageError


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


@dataclass(frozen=True)
class Cut:
    """Rows `[start, stop)` of one block, which is a reference to data that the driver never sees."""

    block: Any
    start: int
    stop: int


class StreamLengthError(SegmintError):
    """The stream of blocks held more or fewer rows than its shards take: a bug, and the shard is not written."""


def cut_at_borders(
    blocks: Iterable[tuple[Any, int]], spans: Sequence[ShardSpan]
) -> Iterator[tuple[ShardSpan, list[Cut]]]:
    """Hands out each shard with its cuts as soon as the stream has brought its last row.

    `blocks` are (reference, number of rows) in stream order; `spans` are the shards in the same order. Raises
    `StreamLengthError` when the stream ends early or goes on after the last shard.
    """
    waiting = iter(spans)
    span = next(waiting, None)
    cuts: list[Cut] = []
    need = span.rows if span else 0
    for block, rows in blocks:
        at = 0
        while at < rows:
            if span is None:
                raise StreamLengthError(f"the stream holds {rows - at} rows or more after its last shard")
            take = min(need, rows - at)
            cuts.append(Cut(block, at, at + take))
            at += take
            need -= take
            if need == 0:
                yield span, cuts
                span, cuts = next(waiting, None), []
                need = span.rows if span else 0
    if span is not None:
        raise StreamLengthError(f"the stream ended {need} rows before the end of shard {span.shard}")
