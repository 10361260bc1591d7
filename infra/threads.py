"""Work in threads whose results are taken one after another, by someone who may stop in the middle."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int, name: str
) -> Generator[Result, None, None]:
    """`function(item)` of each item, in their order, computed by `threads` threads, called `name`.

    At most `ahead` results, 1 or more, are there or on the way at a time; `items` are taken in the thread of the
    caller. An error is raised in its item's place, and ends it. Who stops before the end leaves what is being
    computed to its threads, and the rest is not begun.
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
        # Nothing waits for the threads: a generator that was left in the middle may be ended by the garbage collector,
        # in any thread, even one that holds the lock which the end of another thread needs. No thread could then start
        # in this process any more.
        pool.shutdown(wait=False, cancel_futures=True)
