"""Deadlines that work even if native code hangs, because the kernel kills the process."""

import atexit
import functools
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Deadline:
    """Timer that kills this process with SIGALRM if a piece of work takes longer than `seconds`.

    If `seconds` is None, there's no limit. A signal is needed because Python can't interrupt a native function that
    hangs. A watchdog thread wouldn't help either: such a function holds the GIL, so the thread could never run. Several
    pieces of work may run at once, each in its own thread. The process must not change its SIGALRM handler.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._ends: dict[object, float] = {}  # of the pieces of work that are running

    @contextmanager
    def running(self, times: int = 1) -> Iterator[None]:
        """Run the block as one piece of work, which may take `times` times as long as the deadline says."""
        if self._seconds is None:
            yield
            return
        piece = object()
        with self._lock:
            self._ends[piece] = time.monotonic() + self._seconds * times
            self._set()
        try:
            yield
        finally:
            with self._lock:
                del self._ends[piece]
                self._set()

    def _set(self) -> None:
        """Set the timer to the earliest deadline. A process has only one such timer."""
        left = min(self._ends.values()) - time.monotonic() if self._ends else 0.0
        signal.setitimer(signal.ITIMER_REAL, max(left, 0.001) if self._ends else 0.0)


@functools.cache
def exit_within(seconds: float) -> None:
    """Kill this process with SIGALRM if it is still running `seconds` after it begins to exit.

    Native exit handlers can wait forever. The timer starts in a Python exit handler, and handlers run in reverse order
    of registration, so only handlers that are registered later run before it.
    """
    atexit.register(signal.setitimer, signal.ITIMER_REAL, seconds)
