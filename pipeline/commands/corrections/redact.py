"""`segmint redact`: redact more regions of released images."""

from typing import Annotated

import typer

from segmint.pipeline.commands.common.arguments import AsJson, At, Config, Dataset, DryRun, Yes, build_of
from segmint.pipeline.commands.common.console import confirmation, guarded, print_checked, print_dry_run, print_result
from segmint.pipeline.commands.common.extras import needs


@guarded
@needs("build")
def redact(
    dataset: Dataset,
    regions: Annotated[
        str | None,
        typer.Option(
            "--regions", metavar="FILE", help="JSON Lines or Parquet file: id, kind, x, y, w, h in released pixels."
        ),
    ] = None,
    proved: Annotated[
        str | None,
        typer.Option(
            "--prove",
            metavar="ID",
            help="Search for a redacted image's former JPEGs; exit with code 1 if one is found.",
        ),
    ] = None,
    at: At = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Redact more regions, or prove that former JPEGs are gone."""
    from segmint.infra.errors import UsageError
    from segmint.infra.storage.location import Location
    from segmint.pipeline.config.config import LOCAL
    from segmint.pipeline.corrections.proof import prove_redaction
    from segmint.pipeline.corrections.redact import list_redaction
    from segmint.pipeline.corrections.redact import redact as redact_images

    build, storage = build_of(config)
    location = Location(storage, dataset)
    if (regions is None) == (proved is None) or (at and proved is None):
        raise UsageError("expected --regions FILE, or --prove ID, which also takes --at")
    if proved is not None:
        proof = prove_redaction(location, proved, at or ())
        print_checked(proof, as_json, proof.found, proof.not_checked)
        return
    wanted = Location(storage, str(regions))
    if dry_run:
        print_dry_run(list_redaction(location, wanted), as_json)
        return
    resources = LOCAL if build is None else build.resources
    print_result(redact_images(location, wanted, confirmation("redact", yes), resources), as_json)
