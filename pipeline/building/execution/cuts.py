"""Cuts a stream of blocks at the borders of shards, by row counts alone."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from segmint.catalogs.shard_ranges import ShardSpan
from segmint.infra.errors import SegmintError


@dataclass(frozen=True)
class BlockSlice:
    """Rows `[start, stop)` of one block, which is a reference to data that the driver never sees."""

    block: Any
    start: int
    stop: int


class StreamLengthError(SegmintError):
    """The stream of blocks had more or fewer rows than its shards need: a bug, and the shard is not written."""


def cut_at_borders(
    blocks: Iterable[tuple[Any, int]], spans: Sequence[ShardSpan]
) -> Iterator[tuple[ShardSpan, list[BlockSlice]]]:
    """Yield each shard with its cuts as soon as its last row has arrived.

    `blocks` are (reference, number of rows) in stream order; `spans` are the shards in the same order. Raises
    `StreamLengthError` if the stream ends early or goes on after the last shard.
    """
    waiting = iter(spans)
    span = next(waiting, None)
    cuts: list[BlockSlice] = []
    need = span.rows if span else 0
    for block, rows in blocks:
        at = 0
        while at < rows:
            if span is None:
                raise StreamLengthError(f"the stream holds {rows - at} rows or more after its last shard")
            take = min(need, rows - at)
            cuts.append(BlockSlice(block, at, at + take))
            at += take
            need -= take
            if need == 0:
                yield span, cuts
                span, cuts = next(waiting, None), []
                need = span.rows if span else 0
    if span is not None:
        raise StreamLengthError(f"the stream ended {need} rows before the end of shard {span.shard}")
