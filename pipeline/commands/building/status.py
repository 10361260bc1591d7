"""`segmint status`: how far a build is, from any machine that reaches the dataset."""

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from segmint.infra.errors import SegmintError, UsageError
from segmint.pipeline.commands.common.arguments import AsJson, Config, Dataset, storage_of
from segmint.pipeline.commands.common.console import answer, answer_with, guarded, printable

if TYPE_CHECKING:
    from segmint.pipeline.building.status.status import StatusReader


@guarded
def status(
    dataset: Dataset,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again, until it is complete.")] = False,
    every: Annotated[float, typer.Option("--every", metavar="S", help="Seconds between two looks of --watch.")] = 30.0,
    price: Annotated[
        float | None, typer.Option(metavar="X", help="Price of a GPU-hour, or of an hour of the whole cluster.")
    ] = None,
    gpus: Annotated[int, typer.Option(metavar="N", help="GPUs that the build has, each at --price.")] = 1,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show how far a build is, from its commits.

    Done, pace, time and cost left, refusals, drift, and what is held back.
    """
    if watch and as_json:
        raise UsageError("--watch is for people, and --json for programs: give one of them")
    if every < 1:
        raise UsageError(f"--every is {every:g}: expected seconds from 1")
    from segmint.infra.storage.location import Location
    from segmint.pipeline.building.status.answer import Prices
    from segmint.pipeline.building.status.status import StatusReader

    reader = StatusReader(Location(storage_of(config), dataset), Prices(price, gpus))
    if watch:
        _watch(reader, every)
    else:
        answer_with(reader.read(), as_json)


def _watch(reader: "StatusReader", every: float) -> None:
    """Show the status until the dataset is complete, or until Ctrl-C, which is no failure here.

    On a terminal it is drawn in place, elsewhere printed again. Once it was read, a fault does not end it.
    """
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    now = reader.read()
    with suppress(KeyboardInterrupt), Live(console=Console(file=sys.stdout), auto_refresh=False) as live:
        shown = now.lines()
        while True:
            if live.console.is_terminal:
                live.update(Text("\n".join(map(printable, shown))), refresh=True)
            else:
                answer("\n".join([*shown, ""]))
            if now.complete:
                return
            time.sleep(every)
            try:
                now = reader.read()
                shown = now.lines()
            except SegmintError as error:
                shown = [*now.lines(), f"could not be read again: {error}"]
