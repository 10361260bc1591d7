"""`segmint apply`: run a segmenter over a finished dataset."""

import json
from typing import Annotated

import typer

from segmint.pipeline.commands.common.arguments import AsJson, Dataset, DryRun, Select, Yes, build_of
from segmint.pipeline.commands.common.console import confirmation, guarded, print_revision
from segmint.pipeline.commands.common.extras import needs


@guarded
@needs("build")
def apply(
    dataset: Dataset,
    masks: Annotated[
        str | None,
        typer.Option("--masks", metavar="replace|add", help="Replace the automatic masks, or add masks to them."),
    ] = None,
    segmenter: Annotated[
        str | None, typer.Option("--segmenter", metavar="CLASS", help="Dotted name of the segmenter's class.")
    ] = None,
    arguments: Annotated[
        str, typer.Option("--arguments", metavar="JSON", help="Arguments of the segmenter, as a JSON object.")
    ] = "{}",
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="CONFIG",
            help="Make the masks with the segmenter, or the SAM and mask settings, of this build configuration. With "
            "--segmenter, only take storage options and the Ray address from it.",
        ),
    ] = None,
    select: Select = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Make masks in a finished dataset's images with another segmenter.

    Masks that people made, changed, or labeled stay.
    """
    from pydantic import ValidationError

    from segmint.infra.errors import UsageError
    from segmint.infra.storage.location import Location
    from segmint.pipeline.config.config import LOCAL, Config, SegmenterConfig
    from segmint.pipeline.corrections.apply.change import MasksMode
    from segmint.pipeline.corrections.apply.engine import STALL_TIMEOUT_S
    from segmint.pipeline.corrections.apply.masks import apply_masks, list_masks

    if masks not in set(MasksMode):
        raise UsageError(f"--masks {masks!r}: expected one of {', '.join(MasksMode)}")
    if segmenter is None and config is None:
        raise UsageError(
            "expected --segmenter CLASS, or --config CONFIG with the segmenter or SAM that makes the masks"
        )
    if segmenter is None and arguments != "{}":
        raise UsageError("--arguments needs --segmenter CLASS")
    build, storage = build_of(config)
    maker: SegmenterConfig | Config
    if segmenter is not None:
        try:
            maker = SegmenterConfig(stage=segmenter, arguments=json.loads(arguments))
        except ValidationError as error:
            raise UsageError(f"--segmenter {segmenter!r}: {error.errors()[0]['msg']}") from error
        except ValueError as error:
            raise UsageError(f"--arguments {arguments!r} isn't a JSON object: {error}") from error
    else:
        assert build is not None
        maker = build.segmenter or build
    location, mode = Location(storage, dataset), MasksMode(masks)
    if dry_run:
        print_revision(list_masks(location, maker, mode, select), as_json, dataset, config)
        return
    resources, stall_timeout = LOCAL, STALL_TIMEOUT_S
    if build is not None:
        resources, stall_timeout = build.resources, build.stall_timeout
    confirm = confirmation("apply", yes)
    result = apply_masks(location, maker, mode, select, confirm, resources=resources, stall_timeout=stall_timeout)
    print_revision(result, as_json, dataset, config)
