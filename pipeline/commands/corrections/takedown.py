"""`segmint takedown`: remove images for good, and prove that they are gone."""

from typing import Annotated

import typer

from segmint.pipeline.commands.common.arguments import AsJson, At, Config, Dataset, DryRun, Yes, build_of
from segmint.pipeline.commands.common.console import confirmation, guarded, print_checked, print_dry_run, print_result
from segmint.pipeline.commands.common.extras import needs


@guarded
@needs("build")
def takedown(
    dataset: Dataset,
    reason: Annotated[
        str | None, typer.Option("--reason", metavar="TEXT", help="Reason to record in the tombstone.")
    ] = None,
    ids: Annotated[
        str | None, typer.Option("--ids", metavar="FILE", help="Text file with one image_id or id to remove per line.")
    ] = None,
    license_id: Annotated[
        str | None, typer.Option("--license", metavar="L", help="Remove all images with this license.")
    ] = None,
    provider: Annotated[
        str | None, typer.Option("--provider", metavar="P", help="Remove all images from this provider.")
    ] = None,
    with_copies: Annotated[
        bool,
        typer.Option("--with-copies", help="Also remove images with the same bytes from other providers or licenses."),
    ] = False,
    with_similar: Annotated[
        bool, typer.Option("--with-similar", help="Also remove images that look like the requested ones.")
    ] = False,
    without_fingerprints: Annotated[
        bool, typer.Option("--without-fingerprints", help="Don't store hashes that recognize copies of the images.")
    ] = False,
    forgotten: Annotated[
        str | None,
        typer.Option("--forget-fingerprints", metavar="ID", help="Remove the stored hashes of an image for good."),
    ] = None,
    other: Annotated[
        str | None,
        typer.Option(
            "--other-picture", metavar="ID", help="Record that an image isn't a copy of a tombstone's pictures."
        ),
    ] = None,
    of: Annotated[
        str | None, typer.Option("--of", metavar="TOMBSTONE", help="Tombstone for --other-picture, by its file name.")
    ] = None,
    proved: Annotated[
        str | None,
        typer.Option("--prove", metavar="ID", help="Search for a taken-down image; exit with code 1 if it's found."),
    ] = None,
    at: At = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Remove images permanently, or prove that they're gone.

    Removes everything that names the images, except for a tombstone.
    """
    from segmint.catalogs.dataset.manifest import load_manifest
    from segmint.infra.errors import UsageError
    from segmint.infra.storage.location import Location
    from segmint.pipeline.config.config import LOCAL
    from segmint.pipeline.corrections.fingerprints import forget, tell_apart
    from segmint.pipeline.corrections.proof import prove
    from segmint.pipeline.corrections.takedown import read_request
    from segmint.pipeline.corrections.takedown import takedown as take_down
    from segmint.pipeline.corrections.takedown_list import list_takedown

    build, storage = build_of(config)
    location, file = Location(storage, dataset), None if ids is None else Location(storage, ids)
    apart = {"--prove": proved, "--forget-fingerprints": forgotten, "--other-picture": other}
    given = [option for option, value in apart.items() if value is not None]
    others = ("--ids", "--license", "--provider", "--dry-run")
    if len(given) > 1 or (given and (ids or license_id or provider or (dry_run and proved is None))):
        raise UsageError(
            f"{given[0]} doesn't take down any images. Run it separately, without {', '.join([*given[1:], *others])}"
        )
    if proved is not None:
        proof = prove(location, proved, at or ())
        print_checked(proof, as_json, proof.found, proof.not_checked)
        return
    if at:
        raise UsageError("--at needs --prove")
    if (other is None) != (of is None):
        raise UsageError("--other-picture and --of must be used together")
    if forgotten is not None:
        print_result(forget(location, forgotten, confirmation("takedown", yes)), as_json)
        return
    if reason is None:
        raise UsageError("--reason is required, because the dataset records it")
    if other is not None and of is not None:
        print_result(tell_apart(location, other, of, reason), as_json)
        return
    asked = read_request(
        *(file, license_id, provider),
        with_copies=with_copies,
        with_similar=with_similar,
        fingerprints=not without_fingerprints,
    )
    catalog = None if build is None else build.catalog
    if dry_run:
        listed = list_takedown(location, load_manifest(location), asked, reason, catalog_uri=catalog)
        print_dry_run(listed, as_json)
        return
    resources = LOCAL if build is None else build.resources
    ask = confirmation("takedown", yes)
    print_result(take_down(location, asked, reason, None, catalog, ask, resources), as_json)
