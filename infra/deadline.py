"""Deadlines that native code cannot sleep through: the kernel ends this process."""

import atexit
import functools
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Deadline:
    """Ends this process by SIGALRM when a piece of work in it takes more than `seconds`; None: never.

    Python cannot interrupt a native function that hangs, and a thread that watched would wait for the interpreter's
    lock with it. Several pieces may run at once, each in its own thread. The process must leave SIGALRM as it was
    started with.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._ends: dict[object, float] = {}  # of the pieces that run

    @contextmanager
    def running(self) -> Iterator[None]:
        """One piece of work, from here to the end of the block."""
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
        """Sets the process's one timer to the piece that ends first."""
        left = min(self._ends.values()) - time.monotonic() if self._ends else 0.0
        signal.setitimer(signal.ITIMER_REAL, max(left, 0.001) if self._ends else 0.0)


@functools.cache
def exit_within(seconds: float) -> None:
    """From now on, where this process exits and is not gone `seconds` later, SIGALRM ends it.

    Exit handlers of native code may wait for ever. Exit handlers of Python that are registered later run before this.
    """
    atexit.register(signal.setitimer, signal.ITIMER_REAL, seconds)
