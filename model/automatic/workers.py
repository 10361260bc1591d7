"""Threads that decode chunks of prompts side by side on a CPU.

Chunks are independent of each other, but the operations within one are short: a prompt takes hundreds, and torch's own
threads would have to synchronize at the end of each. So each chunk is decoded by one thread, in which torch starts no
others; on two cores that takes half the time of torch's own two threads. It also makes the arithmetic of a chunk, and
so its last bits, the same on any number of cores.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """Maps functions over items on a number of threads; within each, torch computes single-threaded."""

    def __init__(self, threads: int) -> None:
        """Start the threads, 1 or more."""
        own = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(threads, "segmint-decode", _compute_alone)
        # All must have started before torch's thread count is set back: new threads inherit the process-wide count.
        barrier = threading.Barrier(threads)
        list(self._pool.map(lambda _: barrier.wait(), range(threads)))
        torch.set_num_threads(own)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """The function's results in the order of the items; an exception is raised at its item's place."""
        yield from self._pool.map(function, items)


def _compute_alone() -> None:
    # A new thread takes the process-wide count when it first asks, which must happen before it sets its own.
    torch.get_num_threads()
    torch.set_num_threads(1)
