"""Progress of several stages: bars on a terminal, otherwise a plain line every few seconds."""

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, TextIO, TypeVar

if TYPE_CHECKING:
    import rich.progress

T = TypeVar("T")

BAR_AFTER_S = 1.0
"""Seconds after which `track` shows a bar, so that fast commands don't flash one."""


class _Bar:
    """State of the one bar that `track` may show in this process."""

    enabled = False
    shown = False


def enable_bars() -> None:
    """Let `track` show bars; commands call it, so that Python code that uses segmint as a library shows none."""
    _Bar.enabled = True


def track(items: Iterable[T], name: str, total: int | None = None) -> Iterator[T]:
    """Yield `items`, and show a bar of them on standard error if that is a terminal and `enable_bars` was called.

    Shows nothing inside another bar, or if all items take less than `BAR_AFTER_S`.
    """
    if not _Bar.enabled or _Bar.shown or not sys.stderr.isatty():
        yield from items
        return
    started, progress = time.monotonic(), None
    with ExitStack() as stack:
        for done, item in enumerate(items):
            if progress is None and not _Bar.shown and time.monotonic() - started >= BAR_AFTER_S:
                progress = stack.enter_context(Progress(bars=True))
                progress.stage(name, total)
                _Bar.shown = True
                stack.callback(setattr, _Bar, "shown", False)
            if progress is not None:
                progress.update(name, done)
            yield item
        if progress is not None:
            progress.update(name, done + 1)


@dataclass
class _StageProgress:
    total: int | None
    done: int = 0
    shown: int = -1
    started: float = field(default_factory=time.monotonic)


class Progress:
    """Context manager that shows the progress of each stage; thread-safe.

    ```
    with Progress() as progress:
        progress.stage("prepare", total=5000)
        progress.update("prepare", done=120)
    ```

    `stream` is standard error by default; `interval_s` is the minimum number of seconds between two plain lines; `bars`
    None means bars if the stream is a terminal.
    """

    def __init__(self, stream: TextIO | None = None, interval_s: float = 5.0, bars: bool | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._interval_s = interval_s
        self._bars_wanted = self._stream.isatty() if bars is None else bars
        self._bars: rich.progress.Progress | None = None
        self._tasks: dict[str, rich.progress.TaskID] = {}
        self._stages: dict[str, _StageProgress] = {}
        self._last_line = time.monotonic()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        if self._bars_wanted:
            self._bars = _make_bars(self._stream)
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._bars is not None:
                self._bars.stop()
                self._bars = None
                self._tasks.clear()
            else:
                self._print_lines()

    def stage(self, name: str, total: int | None = None) -> None:
        """Start a stage, or change the total of a running one (None: unknown)."""
        with self._lock:
            stage = self._stages.setdefault(name, _StageProgress(total))
            stage.total = total
            if self._bars is not None:
                if name not in self._tasks:
                    self._tasks[name] = self._bars.add_task(name, total=total)
                self._bars.update(self._tasks[name], total=total)

    def done(self, name: str) -> int:
        """Return the number of finished items of a stage; 0 if it has not started."""
        with self._lock:
            return self._stages[name].done if name in self._stages else 0

    def update(self, name: str, done: int) -> None:
        """Set the number of finished items of a stage, starting the stage if it is new."""
        if name not in self._stages:
            self.stage(name)
        with self._lock:
            self._stages[name].done = done
            if self._bars is not None:
                self._bars.update(self._tasks[name], completed=done)
            elif time.monotonic() - self._last_line >= self._interval_s:
                self._print_lines()

    def line(self, text: str) -> None:
        """Print a line, above the bars if there are any."""
        with self._lock:
            if self._bars is not None:
                self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                self._stream.write(text + "\n")
                self._stream.flush()

    def _print_lines(self) -> None:
        moved = [(name, stage) for name, stage in self._stages.items() if stage.done != stage.shown]
        if moved:
            self._stream.write("; ".join(_line(name, stage) for name, stage in moved) + "\n")
            self._stream.flush()
        for _, stage in moved:
            stage.shown = stage.done
        self._last_line = time.monotonic()


def _line(name: str, stage: _StageProgress) -> str:
    rate = stage.done / max(time.monotonic() - stage.started, 1e-3)
    if stage.total is None:
        return f"{name} {stage.done} ({rate:.3g}/s)"
    share = stage.done / stage.total if stage.total else 1.0
    return f"{name} {stage.done}/{stage.total} ({share:.1%}, {rate:.3g}/s)"


def _make_bars(stream: TextIO) -> "rich.progress.Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Remaining

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        Remaining(),
        console=Console(file=stream, force_terminal=True),
    )
