"""Writers of shards as Ray tasks, a few in flight."""

from collections.abc import Callable, Iterator
from typing import Any

import ray

from segmint.operators.shards.write import ShardResult, ShardTask, write_shard
from segmint.pipeline.execution.cuts import Cut

ShardWriter = Callable[..., ShardResult]
"""What writes one shard: `segmint.operators.shards.write.write_shard`, or another function that takes the same."""

LOOK_S = 5.0
"""Seconds between two looks at a writer that is waited for, and for it to end in when its window ends early."""


class ShardWriters:
    """At most `limit` shard writers in flight: the object store holds the blocks of no more shards than that.

    A writer that a dead node takes along is retried by Ray; one that raises is not, and its error ends the window.
    While a writer is waited for, `check` is asked every `LOOK_S` seconds, and raises where that takes too long: the
    blocks of a shard may be gone with a node, and Ray waits for ever for one that could make them again.
    """

    def __init__(self, limit: int, check: Callable[[], None], write: ShardWriter = write_shard) -> None:
        self._limit = limit
        self._check = check
        self._remote: Callable[..., Any] = ray.remote(num_cpus=1, max_retries=3)(write).remote
        self._in_flight: list[Any] = []

    def submit(self, task: ShardTask, cuts: list[Cut]) -> Iterator[ShardResult]:
        """Starts the writer of one shard as soon as there is a place; yields the results that come meanwhile."""
        yield from self._finished()
        while len(self._in_flight) >= self._limit:
            yield self._next()
        self._in_flight.append(
            self._remote(task, [(cut.start, cut.stop) for cut in cuts], *[cut.block for cut in cuts])
        )

    def drain(self) -> Iterator[ShardResult]:
        """Waits for all that are in flight."""
        while self._in_flight:
            yield self._next()

    def close(self) -> None:
        """Lets those in flight end within `LOOK_S` seconds and gives the others up; does nothing after `drain`.

        When a window ends early, one may wait for lost blocks, and Ray would make them again beside the next window.
        """
        if self._in_flight:
            _, late = ray.wait(self._in_flight, num_returns=len(self._in_flight), timeout=LOOK_S)
            for writer in late:
                ray.cancel(writer)
            self._in_flight = []

    def _finished(self) -> Iterator[ShardResult]:
        if self._in_flight:
            done, self._in_flight = ray.wait(self._in_flight, num_returns=len(self._in_flight), timeout=0)
            yield from ray.get(done)

    def _next(self) -> ShardResult:
        done: list[Any] = []
        while not done:
            done, self._in_flight = ray.wait(self._in_flight, num_returns=1, timeout=LOOK_S)
            if not done:
                self._check()
        result: ShardResult = ray.get(done[0])
        return result
