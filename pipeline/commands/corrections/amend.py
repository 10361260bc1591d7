"""`segmint amend`: correct the credits and countries of images."""

from typing import Annotated

import typer

from segmint.pipeline.commands.common.arguments import AsJson, Config, Dataset, DryRun, Yes, build_of
from segmint.pipeline.commands.common.console import confirmation, guarded, print_dry_run, print_result
from segmint.pipeline.commands.common.extras import needs


@guarded
@needs("build")
def amend(
    dataset: Dataset,
    catalog: Annotated[
        str,
        typer.Argument(
            metavar="CATALOG",
            help="Catalog with the corrected attribution, provider, source_url, and country, by image_id.",
        ),
    ],
    reason: Annotated[
        str | None, typer.Option("--reason", metavar="TEXT", help="Reason to record in the version.")
    ] = None,
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove the dataset's values where the catalog's are empty.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Correct the credits and countries of images.

    Amends attribution, provider, source URL, and country, but never the license.
    """
    from segmint.catalogs.source.files import require_catalog
    from segmint.infra.storage.location import Location
    from segmint.pipeline.config.config import LOCAL
    from segmint.pipeline.corrections.amend import amend as amend_images
    from segmint.pipeline.corrections.amend import list_amendment

    build, storage = build_of(config)
    location, file = Location(storage, dataset), Location(storage, catalog)
    require_catalog(file)
    if dry_run:
        print_dry_run(list_amendment(location, file, clear=clear), as_json)
        return
    resources = LOCAL if build is None else build.resources
    ask = confirmation("amend", yes)
    print_result(amend_images(location, file, reason, clear=clear, confirm=ask, resources=resources), as_json)
