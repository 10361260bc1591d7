"""`segmint redact`: redact more regions of released images."""

from typing import Annotated

import typer

from segmint.pipeline.commands.common.arguments import AsJson, Config, Dataset, DryRun, Yes, build_of
from segmint.pipeline.commands.common.console import confirmation, guarded, print_result
from segmint.pipeline.commands.common.extras import needs


@guarded
@needs("build")
def redact(
    dataset: Dataset,
    regions: Annotated[
        str,
        typer.Option(
            "--regions", metavar="FILE", help="JSON Lines or Parquet file: id, kind, x, y, w, h in released pixels."
        ),
    ],
    dry_run: DryRun = False,
    yes: Yes = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Permanently redact more regions of released images."""
    from segmint.infra.storage.location import Location
    from segmint.pipeline.config.config import LOCAL
    from segmint.pipeline.corrections.redact import list_redaction
    from segmint.pipeline.corrections.redact import redact as redact_images

    build, storage = build_of(config)
    location, wanted = Location(storage, dataset), Location(storage, regions)
    if dry_run:
        print_result(list_redaction(location, wanted), as_json)
        return
    resources = LOCAL if build is None else build.resources
    print_result(redact_images(location, wanted, confirmation("redact", yes), resources), as_json)
