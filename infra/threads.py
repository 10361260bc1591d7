"""Work in threads whose results are consumed in order, by a caller that may stop early."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int, name: str
) -> Generator[Result, None, None]:
    """`function(item)` of each item, in order, computed by `threads` threads named `name`.

    At most `ahead` results, 1 or more, are finished or in progress at a time; `items` is read in the caller's
    thread. An error is raised at its item's place, and ends the iteration. If the caller stops early, running
    items are left to their threads, and the rest is not started.
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
        # Do not wait for the threads: an abandoned generator may be closed by the garbage collector, in any thread,
        # even one that holds the lock which another thread needs to end. Then no thread could start in this process.
        pool.shutdown(wait=False, cancel_futures=True)
