"""`segmint takedown`: remove images for good, and prove that they are gone."""

from typing import Annotated

import typer

from segmint.pipeline.commands.common.arguments import AsJson, Config, Dataset, DryRun, Yes, build_of
from segmint.pipeline.commands.common.console import FINDINGS, confirmation, guarded, print_result
from segmint.pipeline.commands.common.extras import needs


@guarded
@needs("build")
def takedown(
    dataset: Dataset,
    reason: Annotated[
        str | None, typer.Option("--reason", metavar="TEXT", help="Why; recorded in the tombstone.")
    ] = None,
    ids: Annotated[
        str | None, typer.Option("--ids", metavar="FILE", help="A text file with one image_id or id per line.")
    ] = None,
    license_id: Annotated[
        str | None, typer.Option("--license", metavar="L", help="All images with this license.")
    ] = None,
    provider: Annotated[
        str | None, typer.Option("--provider", metavar="P", help="All images from this provider.")
    ] = None,
    proved: Annotated[
        str | None,
        typer.Option("--prove", metavar="ID", help="Look for an image that was taken down; exit code 1 if found."),
    ] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Remove images permanently, or prove that they're gone.

    Everything that names them is removed, except for a tombstone.
    """
    from segmint.catalogs.dataset.manifest import load_manifest
    from segmint.infra.errors import UsageError
    from segmint.infra.storage.location import Location
    from segmint.pipeline.config.config import LOCAL
    from segmint.pipeline.corrections.proof import prove
    from segmint.pipeline.corrections.takedown import read_request
    from segmint.pipeline.corrections.takedown import takedown as take_down
    from segmint.pipeline.corrections.takedown_list import list_takedown

    build, storage = build_of(config)
    location, file = Location(storage, dataset), None if ids is None else Location(storage, ids)
    if proved is not None:
        proof = prove(location, proved)
        print_result(proof, as_json)
        if proof.found:
            raise typer.Exit(FINDINGS)
        return
    if reason is None:
        raise UsageError("--reason is missing: say why, for the tombstone")
    asked, catalog = read_request(file, license_id, provider), None if build is None else build.catalog
    if dry_run:
        listed = list_takedown(location, load_manifest(location), asked, reason, catalog_uri=catalog)
        print_result(listed, as_json)
        return
    resources = LOCAL if build is None else build.resources
    ask = confirmation("takedown", yes)
    print_result(take_down(location, asked, reason, None, catalog, ask, resources), as_json)
