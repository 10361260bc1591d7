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
    """Run `function` on the items in `threads` threads named `name`, and yield the results in order.

    At most `ahead` results (at least 1) are in progress or waiting to be consumed. The caller's thread iterates over
    `items`. If the function raises an error, the error is raised at the item's position, and the iteration ends. If the
    caller stops early, items that are already running finish in their threads, and no others start.
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
        # Don't wait for the threads. The garbage collector may close an abandoned generator in any thread, even while
        # that thread holds a lock that one of our threads needs to finish. Waiting would then prevent new threads from
        # starting in this process.
        pool.shutdown(wait=False, cancel_futures=True)
