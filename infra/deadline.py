"""Deadlines that work even if native code hangs, because the kernel kills the process."""

import atexit
import functools
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Deadline:
    """Timer that kills this process with SIGALRM if a piece of work takes longer than `seconds` (None: no limit).

    Python can't interrupt a native function that hangs, and a watchdog thread would wait for the GIL that such a
    function holds. Several may run at once, each in its own thread. The process must not change its SIGALRM handler.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._ends: dict[object, float] = {}  # of the running pieces

    @contextmanager
    def running(self) -> Iterator[None]:
        """Apply the deadline to the block as one piece of work."""
        if self._seconds is None:
            yield
            return
        piece = object()
        with self._lock:
            self._ends[piece] = time.monotonic() + self._seconds
            self._set()
        try:
            yield
        finally:
            with self._lock:
                del self._ends[piece]
                self._set()

    def _set(self) -> None:
        """Set the process's only timer to the earliest deadline."""
        left = min(self._ends.values()) - time.monotonic() if self._ends else 0.0
        signal.setitimer(signal.ITIMER_REAL, max(left, 0.001) if self._ends else 0.0)


@functools.cache
def exit_within(seconds: float) -> None:
    """Let SIGALRM kill this process if it is still running `seconds` after it starts to exit.

    Native exit handlers may wait forever. Only Python exit handlers that are registered later run first.
    """
    atexit.register(signal.setitimer, signal.ITIMER_REAL, seconds)
