"""`segmint engine`: the loop of datasets and weights, round by round."""

from typing import Annotated

import typer

from segmint.pipeline.commands.common.arguments import AsJson, Config, storage_of
from segmint.pipeline.commands.common.console import answer_with, guarded
from segmint.pipeline.commands.common.extras import needs

app = typer.Typer(
    name="engine", help="The loop: masks make weights better, and weights make masks.", no_args_is_help=True
)


@app.callback()
def engine() -> None:
    """Keep `status` a command with a name."""


@app.command()
@guarded
@needs("audit")
def status(
    datasets: Annotated[list[str], typer.Argument(metavar="DATASET", help="Datasets of the rounds: paths or URIs.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show rounds as a table.

    Images, masks by source, seconds a mask, and mIoU at one click before and after.
    """
    from segmint.infra.storage.location import Location
    from segmint.pipeline.engine.rounds.status import read_engine

    storage = storage_of(config)
    answer_with(read_engine([Location(storage, dataset) for dataset in datasets]), as_json)
