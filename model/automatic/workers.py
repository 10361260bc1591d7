"""Threads that decode chunks of prompts side by side on a CPU.

Chunks are independent of each other, while the operations within one are short: a prompt takes hundreds, and torch's
own threads would have to meet at the end of each. So each chunk is the work of one thread, in which torch has no other
to wait for; on two cores that halves the time which torch's own two threads need. It also makes the arithmetic
of a chunk, and so its last bits, the same on any number of cores.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """Maps functions over items on a number of threads, in each of which torch computes with that thread alone."""

    def __init__(self, threads: int) -> None:
        """Starts the threads, 1 or more."""
        own = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(threads, "segmint-decode", _compute_alone)
        # All are started before torch's number for threads to come is set back: it is one for the process.
        barrier = threading.Barrier(threads)
        list(self._pool.map(lambda _: barrier.wait(), range(threads)))
        torch.set_num_threads(own)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """The function's results in the order of the items; its first exception is raised in its item's place."""
        yield from self._pool.map(function, items)


def _compute_alone() -> None:
    # A new thread takes the process's number when it first asks for it, which must not be after it got its own.
    torch.get_num_threads()
    torch.set_num_threads(1)
