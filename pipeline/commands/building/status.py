"""`segmint status`: show build progress from any machine that can read the dataset."""

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from segmint.infra.errors import SegmintError, UsageError
from segmint.pipeline.commands.common.arguments import AsJson, Config, storage_of
from segmint.pipeline.commands.common.console import exit_unless_clean, guarded, print_checked, print_line, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from segmint.pipeline.building.status.result import Status, StatusTable


@guarded
def status(
    datasets: Annotated[
        list[str],
        typer.Argument(metavar="DATASET", help="Dataset folders or bucket prefixes; several become a table."),
    ],
    watch: Annotated[bool, typer.Option("--watch", help="Repeat until all datasets are complete.")] = False,
    every: Annotated[float, typer.Option("--every", metavar="S", help="Seconds between updates of --watch.")] = 30.0,
    price: Annotated[
        float | None, typer.Option(metavar="X", help="Hourly price per GPU or, without --gpus, of the whole cluster.")
    ] = None,
    gpus: Annotated[int, typer.Option(metavar="N", help="Number of GPUs of the build, each at --price.")] = 1,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show the progress of builds.

    Shows progress, pace, remaining time and cost, rejections, drift, shards on hold, annotated masks, and trainings.
    """
    if watch and as_json:
        raise UsageError("--watch can't be combined with --json")
    if not 1 <= every <= 86_400:
        raise UsageError(f"--every is {every:g}: expected 1 to 86400 seconds")
    from segmint.infra.storage.location import Location
    from segmint.pipeline.building.status.result import Prices, StatusTable
    from segmint.pipeline.building.status.status import StatusReader

    storage, prices = storage_of(config), Prices(price, gpus)
    readers = [StatusReader(Location(storage, dataset), prices) for dataset in datasets]

    def read() -> "Status | StatusTable":
        rows = [reader.read() for reader in readers]
        return rows[0] if len(rows) == 1 else StatusTable(rows)

    if watch:
        exit_unless_clean((), _watch(read, every))
        return
    now = read()
    print_checked(now, as_json, not_checked=now.not_checked)


def _watch(read: "Callable[[], Status | StatusTable]", every: float) -> list[str]:
    """Show the status until all datasets are complete, and return the parts that couldn't be read.

    Ctrl-C also ends the display and doesn't count as an error here. A terminal shows one display, which is updated in
    place. Any other output receives a new copy each time. Faults after the first read don't end the display.
    """
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    now = read()
    with suppress(KeyboardInterrupt), Live(console=Console(file=sys.stdout), auto_refresh=False) as live:
        shown = now.lines()
        while True:
            if live.console.is_terminal:
                live.update(Text("\n".join(map(printable, shown))), refresh=True)
            else:
                print_line("\n".join([*shown, ""]))
            if now.complete:
                return now.not_checked
            time.sleep(every)
            try:
                now = read()
                shown = now.lines()
            except SegmintError as error:
                shown = [*now.lines(), f"couldn't be updated: {error}"]
    return []
