"""Writers of shards as Ray tasks, a few in flight."""

from collections.abc import Callable, Iterator
from typing import Any

import ray

from operators.write_shard import ShardResult, ShardTask, write_shard
from pipeline.windows import Cut


class ShardWriters:
    """At most `limit` shard writers in flight: the object store holds the blocks of no more shards than that.

    A writer that a dead node takes along is retried by Ray; one that raises is not, and its error ends the window.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._remote: Callable[..., Any] = ray.remote(num_cpus=1, max_retries=3)(write_shard).remote
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

    def _finished(self) -> Iterator[ShardResult]:
        if self._in_flight:
            done, self._in_flight = ray.wait(self._in_flight, num_returns=len(self._in_flight), timeout=0)
            yield from ray.get(done)

    def _next(self) -> ShardResult:
        (done, *_), self._in_flight = ray.wait(self._in_flight, num_returns=1)
        result: ShardResult = ray.get(done)
        return result
