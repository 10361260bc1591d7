"""Clean exit of a command, deadlines for calls, and threads that work ahead.

Clean exit of a command after SIGTERM or Ctrl-C.

The first signal raises `KeyboardInterrupt` in the main thread. Ray's blocking calls pass on only this exception and
`SystemExit`. Libraries may swallow the exception or turn it into another one, so commands check `is_stopping` instead.
A separate thread reads the signals, which works even while native code blocks the main thread. It ends the process if
the time is up or if the user presses Ctrl-C again.

Parallel map over threads. The caller consumes the results in order and may stop early.
"""

import atexit
import functools
import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

STOP_S = 14.0
"""Seconds from the first signal until the process ends without further cleanup."""

EXIT_CODE = 3

_AGAIN_S = 0.2  # a wrapper such as `timeout` sends each signal twice: to the process and to its group
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_OUTSIDE = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]
_LINE = "interrupted: finished work is kept; run the same command again to resume"


class State:
    """State of this process's handlers."""

    installed = False
    requested = False
    raised = False
    printed = False
    line = threading.Lock()  # held by the thread that prints `_LINE`
    terminal = 2  # copy of standard error, because descriptor 2 is redirected while Ray starts
    held = 1  # signals don't raise while this is positive


def stop_on_signals() -> None:
    """Start handling SIGTERM and SIGINT in a process that runs a command. Call this in the main thread.

    Signals that this process ignores stay ignored. Signals raise exceptions only inside `interruptible`. Forked
    children get the default handlers. On Windows, this function does nothing.
    """
    if State.installed or not hasattr(os, "register_at_fork"):
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(OSError):  # standard error may be closed
        State.terminal = os.dup(2)
    threading.Thread(target=_watch, args=[reader], name="stopping", daemon=True).start()
    os.register_at_fork(after_in_child=release_signals)
    State.installed = True
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)


def release_signals() -> None:
    """Restore Python's handlers, for forked children and for servers that exit through their own handlers."""
    if not State.installed:
        return
    State.installed = False
    signal.set_wakeup_fd(-1)
    handlers: tuple[Any, ...] = (signal.SIG_DFL, signal.default_int_handler)
    for number, handler in zip(_SIGNALS, handlers, strict=True):
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, handler)


def reinstall_handlers() -> bool:
    """Install our handlers again after native code replaced them.

    Returns False if this process doesn't use our handlers.
    """
    for number in _SIGNALS if State.installed else ():
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, _interrupt)
    return State.installed


def is_stopping() -> bool:
    """Return whether this process has received SIGTERM or SIGINT."""
    return State.requested


def check_stopping() -> None:
    """Raise `KeyboardInterrupt` if a signal has arrived, because a library may have swallowed the first exception."""
    if State.requested:
        State.raised = True
        raise KeyboardInterrupt


def print_stop_line(write: Callable[[str], None]) -> None:
    """Write the line that explains how to resume. If the process is already ending, this function never returns."""
    with State.line:
        write(_LINE)
        State.printed = True


@contextmanager
def interruptible() -> Iterator[None]:
    """Let signals raise `KeyboardInterrupt` in this block. The block must run in the main thread.

    Once a signal has arrived, any exception that the block raises becomes a `KeyboardInterrupt`.
    """
    held, State.held = State.held, 0
    try:
        check_stopping()
        yield
    except BaseException as error:
        if State.requested and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    finally:
        State.held = held


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let the block finish before a signal raises `KeyboardInterrupt`. The time limit still applies."""
    State.held += 1
    try:
        yield
    finally:
        State.held -= 1
    check_stopping()


def outlive_signals() -> None:
    """Ignore SIGTERM, SIGINT, and SIGHUP in this process. If one killed the process, an image would be blamed for it.

    Ray doesn't need these signals to end its workers. Outside the main thread, this function does nothing, because
    Python lets only the main thread set handlers.
    """
    if threading.current_thread() is threading.main_thread():
        for number in _OUTSIDE:
            signal.signal(number, signal.SIG_IGN)


def was_stopped(exit_code: int | None) -> bool:
    """Return whether a child's exit code shows that SIGTERM, SIGINT, or SIGHUP killed it, so no image is to blame."""
    return exit_code is not None and -exit_code in _OUTSIDE


def _interrupt(_number: int, _frame: Any) -> None:
    State.requested = True
    if not State.held and not State.raised:
        State.raised = True
        raise KeyboardInterrupt


def _watch(reader: int) -> None:
    """Read arriving signals, and end the process if stopping takes too long or the user presses Ctrl-C again."""
    first: float | None = None
    while True:
        left = None if first is None else max(0.0, first + STOP_S - time.monotonic())
        if not select.select([reader], [], [], left)[0]:
            _end()
        for number in os.read(reader, 64):
            now = time.monotonic()
            if number not in _SIGNALS or not State.installed:
                continue
            if first is None:
                first, State.requested = now, True
                signal.alarm(0)  # while Ray starts, its own handler sets an alarm that aborts after 3 seconds
            elif number == signal.SIGINT and now - first > _AGAIN_S:
                _end()


def _end() -> None:
    """End the process, but print the stop line first. A thread that is already printing it gets a second to finish."""
    if State.line.acquire(timeout=1.0) and not State.printed:
        with suppress(OSError):
            os.write(State.terminal, f"{_LINE}\n".encode())
    os._exit(EXIT_CODE)


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
