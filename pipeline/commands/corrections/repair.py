"""`segmint repair`: restore missing and damaged files."""

from typing import Annotated

import typer

from segmint.pipeline.commands.common.arguments import AsJson, Dataset, build_of
from segmint.pipeline.commands.common.console import guarded, print_checked
from segmint.pipeline.commands.common.extras import needs


@guarded
@needs("build")
def repair(
    dataset: Dataset,
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="CONFIG",
            help="The build's configuration, for its storage options and to rebuild files that can't be restored.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Restore missing or damaged files to their committed bytes.

    Exits with code 1 if some files can't be restored.
    """
    from segmint.infra.storage.location import Location
    from segmint.pipeline.corrections.repair import repair as repair_files

    build, storage = build_of(config)
    repaired = repair_files(Location(storage, dataset), build)
    print_checked(repaired, as_json, (*repaired.not_repaired, *repaired.lost, *repaired.unfinished))
