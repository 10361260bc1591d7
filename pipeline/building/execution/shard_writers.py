"""Shard writers as Ray tasks. A few run at a time, each on one shard's slices of the stream of blocks."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray

from segmint.catalogs.shard_ranges import ShardSpan
from segmint.infra.errors import SegmintError
from segmint.operators.shards.write import write_shard

ShardWriter = Callable[..., Any]
"""Function that writes one shard from a task and slices of blocks, as `segmint.operators.shards.write.write_shard`."""

LOOK_S = 5.0
"""Seconds between checks while waiting for a writer. Also the grace period for writers if a window ends early."""


@dataclass(frozen=True)
class BlockSlice:
    """Rows `[start, stop)` of a block. `block` is a reference; the driver never fetches its data."""

    block: Any
    start: int
    stop: int


class StreamLengthError(SegmintError):
    """Raised when the stream has more or fewer rows than its shards need. This is a bug. The shard isn't written."""


def cut_at_borders(
    blocks: Iterable[tuple[Any, int]], spans: Iterable[ShardSpan]
) -> Iterator[tuple[ShardSpan, list[BlockSlice]]]:
    """Yield each shard with its slices as soon as the shard's last row has arrived.

    `blocks` yields references to blocks with their row counts. `spans` yields the shards in the stream's order. Raises
    `StreamLengthError` if the stream ends early or continues after the last shard.
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


class ShardWriters:
    """Shard writers, at most `limit` at a time. The limit also bounds the number of blocks in the object store.

    If a writer's node dies, Ray retries the writer. If a writer raises an error, Ray doesn't retry it, and the window
    ends.

    If blocks are lost with a node, Ray waits forever for another node to recompute them. Therefore, while this class
    waits for a writer, it calls `check` every `LOOK_S` seconds. `check` raises an error if the wait takes too long.
    """

    def __init__(self, limit: int, check: Callable[[], None], write: ShardWriter = write_shard) -> None:
        self._limit = limit
        self._check = check
        self._remote: Callable[..., Any] = ray.remote(num_cpus=1, max_retries=3)(write).remote
        self.in_flight: list[Any] = []

    def submit(self, task: Any, cuts: list[BlockSlice]) -> Iterator[Any]:
        """Start a shard's writer once fewer than `limit` are running. Yield the results that arrive in the meantime."""
        yield from self._finished()
        while len(self.in_flight) >= self._limit:
            yield self._next()
        self.in_flight.append(self._remote(task, [(cut.start, cut.stop) for cut in cuts], *[cut.block for cut in cuts]))

    def drain(self) -> Iterator[Any]:
        """Wait for all running writers and yield their results."""
        while self.in_flight:
            yield self._next()

    def close(self) -> None:
        """Wait up to `LOOK_S` seconds for the running writers, then cancel the rest. Does nothing after `drain`.

        If a window ends early, a writer may still be waiting for lost blocks, which Ray would recompute later.
        Canceling the writer prevents this.
        """
        if self.in_flight:
            _, late = ray.wait(self.in_flight, num_returns=len(self.in_flight), timeout=LOOK_S)
            for writer in late:
                ray.cancel(writer)
            self.in_flight = []

    def _finished(self) -> Iterator[Any]:
        if self.in_flight:
            done, self.in_flight = ray.wait(self.in_flight, num_returns=len(self.in_flight), timeout=0)
            yield from ray.get(done)

    def _next(self) -> Any:
        done: list[Any] = []
        while not done:
            done, self.in_flight = ray.wait(self.in_flight, num_returns=1, timeout=LOOK_S)
            if not done:
                self._check()
        return ray.get(done[0])
