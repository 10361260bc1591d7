"""Parallel map over threads. The caller consumes the results in order and may stop early."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int, name: str
) -> Generator[Result, None, None]:
    """Yield `function(item)` for each item, in order, computed by `threads` threads named `name`.

    At most `ahead` results (at least 1) are finished or in progress at a time. `items` is read in the caller's thread.
    An error is raised at its item's position and ends the iteration. If the caller stops early, running items finish in
    their threads, and the rest aren't started.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # Don't wait for the threads. The garbage collector may close an abandoned generator in any thread, even in one
        # that holds a lock that another thread needs to finish. Waiting would then keep any thread from starting in
        # this process.
        pool.shutdown(wait=False, cancel_futures=True)
