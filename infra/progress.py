"""Progress of several stages: bars on a terminal, otherwise a plain line every few seconds."""

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, TextIO, TypeVar

from segmint.infra.wording import duration, fit, is_terminal, open_stream

if TYPE_CHECKING:
    import rich.progress

T = TypeVar("T")

LONGEST_SILENCE_S = 60.0
"""Maximum time in seconds between two progress lines."""

BAR_AFTER_S = 1.0
"""Seconds after which `track` shows a bar. Without this delay, fast commands would flash a bar."""


class Bars:
    """State of this process's bars: whether `track` may show one, and what occupies the terminal's last lines."""

    enabled = False
    holder: "Progress | _DelayedBar | None" = None


def enable_bars() -> None:
    """Let `track` show bars. Only commands call this, so segmint shows no bars when it's used as a library."""
    Bars.enabled = True


@contextmanager
def ending_bar() -> Iterator[None]:
    """Close the bar of `track` when the block ends, even if an exception keeps the generator of `track` alive."""
    try:
        yield
    finally:
        if isinstance(Bars.holder, _DelayedBar):
            Bars.holder.close()


def track(items: Iterable[T], name: str, total: int | None = None) -> Iterator[T]:
    """Yield `items`, and show their progress on standard error if it's a terminal and `enable_bars` was called.

    The bar appears after `BAR_AFTER_S` seconds, unless another bar is already shown. If a `Progress` with bars starts,
    it replaces this bar.
    """
    if not Bars.enabled or Bars.holder is not None or not is_terminal(sys.stderr):
        yield from items
        return
    with closing(_DelayedBar(name, total)) as bar:
        for done, item in enumerate(items, 1):
            yield item
            bar.update(done)


class _DelayedBar:
    """Bar that a timer shows after a delay, even if the first item takes long. Thread-safe."""

    def __init__(self, name: str, total: int | None) -> None:
        self._name, self._total, self._done = name, total, 0
        self._lock = threading.Lock()
        self._bars: rich.progress.Progress | None = None
        self._is_closed = False
        Bars.holder = self
        self._timer = threading.Timer(BAR_AFTER_S, self._show)
        self._timer.daemon = True
        self._timer.start()

    def _show(self) -> None:
        with self._lock:
            if not self._is_closed:
                self._bars = _make_bars(sys.stderr)
                self._bars.add_task(self._name, total=self._total, completed=self._done)
                self._bars.start()

    def update(self, done: int) -> None:
        """Set the number of finished items."""
        with self._lock:
            self._done = done
            if self._bars is not None:
                self._bars.update(self._bars.task_ids[0], completed=done)

    def close(self) -> None:
        """Remove the bar, or cancel it if it hasn't appeared yet."""
        self._timer.cancel()
        with self._lock:
            self._is_closed = True
            if self._bars is not None:
                self._bars.stop()
                self._bars = None
        if Bars.holder is self:
            Bars.holder = None


@dataclass
class _StageProgress:
    total: int | None
    done: int = 0
    shown: int = -1
    started: float = field(default_factory=time.monotonic)


class Progress:
    """Context manager that shows the progress of each stage. Thread-safe.

    ```
    with Progress() as progress:
        progress.stage("prepare", total=5000)
        progress.update("prepare", done=120)
    ```

    `stream` defaults to standard error. If `bars` is None, bars are shown if the stream is a terminal. Without bars,
    progress lines are printed at least `interval_s` seconds apart, and every minute if nothing changes and `wait` is
    called.
    """

    def __init__(self, stream: TextIO | None = None, interval_s: float = 5.0, bars: bool | None = None) -> None:
        self._stream = open_stream(stream if stream is not None else sys.stderr)
        self._interval_s = interval_s
        self._bars_wanted = is_terminal(self._stream) if bars is None else bars
        self._bars: rich.progress.Progress | None = None
        self._tasks: dict[str, rich.progress.TaskID] = {}
        self._stages: dict[str, _StageProgress] = {}
        self._last_line = self._last_move = time.monotonic()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        if self._bars_wanted:
            if isinstance(Bars.holder, _DelayedBar):
                Bars.holder.close()
            Bars.holder = self
            self._bars = _make_bars(self._stream)
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._bars is not None:
                self._bars.stop()
                self._bars = None
                Bars.holder = None
                self._tasks.clear()
            else:
                self._print_lines()

    def stage(self, name: str, total: int | None = None) -> None:
        """Start a stage, or change the total of a stage that is running. None means that the total is unknown."""
        with self._lock:
            stage = self._stages.setdefault(name, _StageProgress(total))
            stage.total = total
            if self._bars is not None:
                if name not in self._tasks:
                    self._tasks[name] = self._bars.add_task(name, total=total)
                self._bars.update(self._tasks[name], total=total)

    def done(self, name: str) -> int:
        """Return the number of finished items of a stage, or 0 if the stage hasn't started."""
        with self._lock:
            return self._stages[name].done if name in self._stages else 0

    def update(self, name: str, done: int) -> None:
        """Set the number of finished items of a stage. If the stage is new, start it."""
        if name not in self._stages:
            self.stage(name)
        with self._lock:
            self._stages[name].done = done
            self._last_move = time.monotonic()
            if self._bars is not None:
                self._bars.update(self._tasks[name], completed=done)
            elif time.monotonic() - self._last_line >= self._interval_s:
                self._print_lines()

    def wait(self) -> None:
        """Print the unfinished stages if no line was printed for `LONGEST_SILENCE_S` seconds.

        Call this every few seconds while nothing moves.
        """
        with self._lock:
            now = time.monotonic()
            if self._bars is None and now - self._last_line >= LONGEST_SILENCE_S:
                stages = [_line(name, stage) for name, stage in self._stages.items() if stage.done != stage.total]
                waiting = "; ".join(stages) or "the last shards"
                self._write(f"waiting for {waiting}: no change for {duration(now - self._last_move, rough=True)}")
                self._last_line = now

    def line(self, text: str) -> None:
        """Print a line. If bars are shown, the line appears above them."""
        with self._lock:
            if self._bars is not None:
                shown = fit(text, self._stream)
                self._bars.console.print(shown, markup=False, emoji=False, highlight=False, soft_wrap=True)
            else:
                self._write(text)

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()

    def _print_lines(self) -> None:
        moved = [(name, stage) for name, stage in self._stages.items() if stage.done != stage.shown]
        if moved:
            self._write("; ".join(_line(name, stage) for name, stage in moved))
        for _, stage in moved:
            stage.shown = stage.done
        self._last_line = time.monotonic()


def _line(name: str, stage: _StageProgress) -> str:
    rate = stage.done / max(time.monotonic() - stage.started, 1e-3)
    if stage.total is None:
        return f"{name} {stage.done} ({rate:.3g}/s)"
    left = stage.total - stage.done
    share = 1.0
    if left > 0:
        share = min(stage.done / stage.total, 0.999)  # 100.0% is only shown at the end
    ends = f", {duration(left / rate, rough=True)} left" if left > 0 and rate > 0 else ""
    return f"{name} {stage.done}/{stage.total} ({share:.1%}, {rate:.3g}/s{ends})"


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
        redirect_stderr=is_terminal(sys.stderr),
        redirect_stdout=is_terminal(sys.stdout),  # don't print results above the bars if they go to a file or pipe
    )
