"""`segmint catalog curate`: mark duplicates, unfit images, and opted-out images before a build."""

from typing import Annotated

import typer

from segmint.pipeline.commands.common.arguments import AsJson
from segmint.pipeline.commands.common.console import guarded, print_next, print_result
from segmint.pipeline.commands.common.extras import needs


@guarded
@needs("build")
def curate(
    catalog: Annotated[str, typer.Argument(metavar="CATALOG", help="Path or URI of the catalog.")],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="Curated .parquet catalog, next to the original.")
    ],
    config: Annotated[
        str,
        typer.Option(
            "--config", metavar="CONFIG", help="Build configuration: its curate, license, ingest, and storage parts."
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
            help="Plot the distributions of the images' measures (.png, .svg, or .pdf); write no catalog.",
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
