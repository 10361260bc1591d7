"""A line for each of many items, with the time left: below the lines as a bar on a terminal, elsewhere in each line."""

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

import typer

from segmint.infra.wording import duration
from segmint.pipeline.commands.common.console import printable

if TYPE_CHECKING:
    import rich.progress


class ItemLines:
    """Prints a line as each of `total` items is done. A context manager; a single item has neither bar nor count.

    `stream` is standard error by default.
    """

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self._total = total
        self._done = 0
        self._stream = stream if stream is not None else sys.stderr
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> Self:
        if self._total > 1 and self._stream.isatty():
            self._bar = _make_bar(self._stream, self._total)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def add(self, text: str, left_s: float | None) -> None:
        """Print the line of the next item; `left_s` are the seconds that the others will take, None if not known."""
        self._done += 1
        left = "" if not left_s else f"about {duration(round(left_s))} left"
        if self._bar is not None:
            self._bar.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)
            self._bar.update(self._bar.task_ids[0], completed=self._done, left=left, refresh=True)
            return
        number = f"[{self._done:,}/{self._total:,}] " if self._total > 1 else ""
        typer.echo(printable(f"{number}{text}{'; ' * bool(left)}{left}"), file=self._stream)


def _make_bar(stream: TextIO, total: int) -> "rich.progress.Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        console=Console(file=stream, force_terminal=True),
        transient=True,
    )
    bar.add_task("", total=total, left="")
    return bar
