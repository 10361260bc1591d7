"""`segmint takedown`, `redact`, `amend` and `repair`: corrections of a built dataset."""

from typing import Annotated

import typer

from segmint.pipeline.commands.common.arguments import AsJson, Config, Dataset, build_of
from segmint.pipeline.commands.common.confirm import confirm, require_terminal
from segmint.pipeline.commands.common.console import FINDINGS, answer_with, guarded
from segmint.pipeline.commands.common.extras import needs

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only list what would be changed.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask; needed where there is no terminal.")]


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
    """Remove images for good, or prove that they are gone.

    All that names them goes, but for a tombstone.
    """
    from segmint.catalogs.dataset.manifest import load_manifest
    from segmint.infra.errors import UsageError
    from segmint.infra.storage.location import Location
    from segmint.pipeline.corrections.correction import LOCAL
    from segmint.pipeline.corrections.proof import prove
    from segmint.pipeline.corrections.takedown import read_asked
    from segmint.pipeline.corrections.takedown import takedown as take_down
    from segmint.pipeline.corrections.takedown_list import list_takedown

    build, storage = build_of(config)
    location, file = Location(storage, dataset), None if ids is None else Location(storage, ids)
    if proved is not None:
        proof = prove(location, proved)
        answer_with(proof, as_json)
        if proof.found:
            raise typer.Exit(FINDINGS)
        return
    if reason is None:
        raise UsageError("--reason is missing: say why, for the tombstone")
    asked, catalog = read_asked(file, license_id, provider), None if build is None else build.catalog
    if dry_run:
        listed = list_takedown(location, load_manifest(location), asked, reason, catalog_uri=catalog)
        answer_with(listed, as_json)
        return
    if not yes:
        require_terminal("takedown")
    resources = LOCAL if build is None else build.resources
    ask = None if yes else confirm
    answer_with(take_down(location, asked, reason, None, catalog, ask, resources), as_json)


@guarded
@needs("build")
def redact(
    dataset: Dataset,
    regions: Annotated[
        str,
        typer.Option(
            "--regions", metavar="FILE", help="JSON Lines or Parquet: id, kind, x, y, w, h in released pixels."
        ),
    ],
    dry_run: DryRun = False,
    yes: Yes = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Redact more regions of released images for good."""
    from segmint.infra.storage.location import Location
    from segmint.pipeline.corrections.correction import LOCAL
    from segmint.pipeline.corrections.redact import list_redaction
    from segmint.pipeline.corrections.redact import redact as redact_images

    build, storage = build_of(config)
    location, wanted = Location(storage, dataset), Location(storage, regions)
    if dry_run:
        answer_with(list_redaction(location, wanted), as_json)
        return
    if not yes:
        require_terminal("redact")
    resources = LOCAL if build is None else build.resources
    answer_with(redact_images(location, wanted, None if yes else confirm, resources), as_json)


@guarded
@needs("build")
def amend(
    dataset: Dataset,
    catalog: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="CATALOG",
            help="A catalog with the right attribution, provider, source_url and country of images, by image_id.",
        ),
    ],
    reason: Annotated[
        str | None, typer.Option("--reason", metavar="TEXT", help="Why; recorded in the version.")
    ] = None,
    clear: Annotated[
        bool, typer.Option("--clear", help="An empty value removes what the dataset has; default: it stays.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Correct the credits and countries of images.

    Whom they are credited to, who supplied them, and where they are from; never a license.
    """
    from segmint.infra.errors import UsageError
    from segmint.infra.storage.location import Location
    from segmint.pipeline.corrections.amend import amend as amend_images
    from segmint.pipeline.corrections.amend import list_amendment
    from segmint.pipeline.corrections.correction import LOCAL

    build, storage = build_of(config)
    location, file = Location(storage, dataset), Location(storage, catalog)
    if not file.exists():
        raise UsageError(f"--from {catalog} does not exist: expected a catalog as Parquet, JSON Lines or CSV")
    if dry_run:
        answer_with(list_amendment(location, file, clear=clear), as_json)
        return
    if not yes:
        require_terminal("amend")
    resources = LOCAL if build is None else build.resources
    ask = None if yes else confirm
    answer_with(amend_images(location, file, reason, clear=clear, confirm=ask, resources=resources), as_json)


@guarded
@needs("build")
def repair(
    dataset: Dataset,
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="CONFIG",
            help="The build's configuration, for its storage options and to rebuild what cannot be restored.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Restore missing and damaged files to the committed bytes.

    Exit code 1 if some cannot be restored.
    """
    from segmint.infra.storage.location import Location
    from segmint.pipeline.corrections.repair import repair as repair_files

    build, storage = build_of(config)
    repaired = repair_files(Location(storage, dataset), build)
    answer_with(repaired, as_json)
    if repaired.left:
        raise typer.Exit(FINDINGS)
