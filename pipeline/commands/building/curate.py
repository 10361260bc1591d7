"""`segmint catalog curate`: mark duplicates, unfit images, and opted-out images before a build."""

from typing import Annotated

import typer

from segmint.pipeline.commands.common.arguments import AsJson
from segmint.pipeline.commands.common.console import guarded, print_next, print_result
from segmint.pipeline.commands.common.extras import needs


@guarded
@needs("build")
def curate(
    catalog: Annotated[str, typer.Argument(metavar="CATALOG", help="The catalog, as a path or URI.")],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="The curated catalog: a .parquet beside the catalog.")
    ],
    config: Annotated[
        str,
        typer.Option(
            "--config", metavar="CONFIG", help="A build's configuration: its parts curate, license, ingest and storage."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="K=V", help="Override a key, as in --set curate.duplicates.mirror=true."),
    ] = None,
    distributions: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Only draw how the images' measures are distributed, as .png, .svg or .pdf; write no catalog.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Reject the duplicates and unfit images of a catalog."""
    from segmint.pipeline.building.curate.curate import run_curate
    from segmint.pipeline.building.curate.distributions import ending
    from segmint.pipeline.config.config import load_config

    loaded = load_config(config, overrides or [])
    if distributions is not None:
        ending(distributions)
    print_result(run_curate(loaded, catalog, output, distributions=distributions), as_json)
    if distributions is None:
        print_next(as_json, "catalog", "check", output, config=config)
