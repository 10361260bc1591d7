"""Clean exit of a command after SIGTERM or Ctrl-C.

The first signal raises `KeyboardInterrupt` in the main thread, because Ray only passes this exception and `SystemExit`
through its blocking calls. Libraries may swallow it or turn it into other exceptions, so commands check `is_stopping`
instead. A thread reads the signals, even while native code blocks the main thread. It ends the process when the time is
up or Ctrl-C is pressed again.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

STOP_S = 14.0
"""Seconds from the first signal after which the process ends without further cleanup."""

EXIT_CODE = 3

_AGAIN_S = 0.2  # a wrapper such as `timeout` sends a signal to the process and once more to its group
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_OUTSIDE = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]
_LINE = "interrupted: finished work is kept; run the same command again to resume"


class _State:
    installed = False
    requested = False
    raised = False
    printed = False
    line = threading.Lock()  # held by the thread that prints the line
    terminal = 2  # standard error; a copy, because descriptor 2 is redirected while Ray starts
    held = 1  # signals don't raise while this is positive


def stop_on_signals() -> None:
    """Handle SIGTERM and SIGINT from now on, for a process that runs a command. Call this in the main thread.

    If this process ignores a signal, the signal stays ignored. Signals only raise inside `interruptible`. Forked
    children get the default handlers. Does nothing on Windows.
    """
    if _State.installed or not hasattr(os, "register_at_fork"):
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(OSError):  # standard error may be closed
        _State.terminal = os.dup(2)
    threading.Thread(target=_watch, args=[reader], name="stopping", daemon=True).start()
    os.register_at_fork(after_in_child=release_signals)
    _State.installed = True
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)


def release_signals() -> None:
    """Restore Python's handlers, for a server that exits through its own handlers, and for forked children."""
    if not _State.installed:
        return
    _State.installed = False
    signal.set_wakeup_fd(-1)
    handlers: tuple[Any, ...] = (signal.SIG_DFL, signal.default_int_handler)
    for number, handler in zip(_SIGNALS, handlers, strict=True):
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, handler)


def reinstall_handlers() -> bool:
    """Install the handlers again after native code has replaced them. Return False if this process doesn't use them."""
    for number in _SIGNALS if _State.installed else ():
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, _interrupt)
    return _State.installed


def is_stopping() -> bool:
    """Return whether this process got SIGTERM or SIGINT."""
    return _State.requested


def check_stopping() -> None:
    """Raise `KeyboardInterrupt` if this process got a signal, in case a library has swallowed the first exception."""
    if _State.requested:
        _State.raised = True
        raise KeyboardInterrupt


def print_stop_line(write: Callable[[str], None]) -> None:
    """Write the line that tells the user how to resume. Doesn't return if the process is already ending."""
    with _State.line:
        write(_LINE)
        _State.printed = True


@contextmanager
def interruptible() -> Iterator[None]:
    """Let signals raise `KeyboardInterrupt` in the block, which must be in the main thread.

    Once a signal has arrived, any exception of the block becomes a `KeyboardInterrupt`.
    """
    held, _State.held = _State.held, 0
    try:
        check_stopping()
        yield
    except BaseException as error:
        if _State.requested and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    finally:
        _State.held = held


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Complete the block before a signal raises `KeyboardInterrupt`; the time limit still applies."""
    _State.held += 1
    try:
        yield
    finally:
        _State.held -= 1
    check_stopping()


def outlive_signals() -> None:
    """Ignore SIGTERM, SIGINT, and SIGHUP in this process, because its death would be blamed on an image.

    Ray ends its workers by other means. Does nothing outside the main thread, because Python only allows it there.
    """
    if threading.current_thread() is threading.main_thread():
        for number in _OUTSIDE:
            signal.signal(number, signal.SIG_IGN)


def was_stopped(exit_code: int | None) -> bool:
    """Return whether a child's exit code says that SIGTERM, SIGINT, or SIGHUP killed it, so no image is to blame."""
    return exit_code is not None and -exit_code in _OUTSIDE


def _interrupt(_number: int, _frame: Any) -> None:
    _State.requested = True
    if not _State.held and not _State.raised:
        _State.raised = True
        raise KeyboardInterrupt


def _watch(reader: int) -> None:
    """Read the numbers of arriving signals. End the process if it takes too long to stop or Ctrl-C is pressed again."""
    first: float | None = None
    while True:
        left = None if first is None else max(0.0, first + STOP_S - time.monotonic())
        if not select.select([reader], [], [], left)[0]:
            _end()
        for number in os.read(reader, 64):
            now = time.monotonic()
            if number not in _SIGNALS or not _State.installed:
                continue
            if first is None:
                first, _State.requested = now, True
                signal.alarm(0)  # Ray's own handler, active while Ray starts, sets an alarm that aborts after 3 seconds
            elif number == signal.SIGINT and now - first > _AGAIN_S:
                _end()


def _end() -> None:
    """End the process after the line was printed. A thread that is printing it has a second to finish."""
    if _State.line.acquire(timeout=1.0) and not _State.printed:
        with suppress(OSError):
            os.write(_State.terminal, f"{_LINE}\n".encode())
    os._exit(EXIT_CODE)
