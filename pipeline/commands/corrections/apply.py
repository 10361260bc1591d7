"""`segmint apply`: run a segmenter or a stage over a finished dataset."""

import json
from typing import Annotated

import typer

from segmint.pipeline.commands.common.arguments import AsJson, Dataset, DryRun, Select, Yes, build_of
from segmint.pipeline.commands.common.console import (
    confirmation,
    exit_unless_clean,
    guarded,
    print_dry_run,
    print_next,
    print_result,
)
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
    stage: Annotated[
        str | None,
        typer.Option("--stage", metavar="CLASS", help="Dotted name of the stage's class, whose column is added."),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the column that the stage added.")] = False,
    arguments: Annotated[
        str, typer.Option("--arguments", metavar="JSON", help="Arguments of the class, as a JSON object.")
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
    """Make masks in a finished dataset's images with another segmenter, or add a column of a stage.

    Masks that people made, changed, or labeled stay.
    """
    from pydantic import ValidationError

    from segmint.infra.errors import UsageError
    from segmint.infra.storage.location import Location
    from segmint.pipeline.config.config import LOCAL, Config, SegmenterConfig
    from segmint.pipeline.corrections.apply.change import MasksMode
    from segmint.pipeline.corrections.apply.engine import STALL_TIMEOUT_S
    from segmint.pipeline.corrections.apply.masks import apply_masks, list_masks

    if remove and (stage is None or arguments != "{}" or select is not None):
        raise UsageError("--remove needs --stage CLASS, and neither --arguments nor --select")
    if stage is not None:
        if masks is not None or segmenter is not None:
            raise UsageError("--stage adds a column: it can't be combined with --masks or --segmenter")
        apply_stage(dataset, stage, arguments, config, select, remove, dry_run, yes, as_json)
        return
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
        print_dry_run(list_masks(location, maker, mode, select), as_json)
        return
    resources, stall_timeout = LOCAL, STALL_TIMEOUT_S
    if build is not None:
        resources, stall_timeout = build.resources, build.stall_timeout
    confirm = confirmation("apply", yes)
    result = apply_masks(location, maker, mode, select, confirm, resources=resources, stall_timeout=stall_timeout)
    print_result(result, as_json)
    print_next(as_json, "audit", dataset, config=config)
    exit_unless_clean((), result.not_done)


def apply_stage(
    dataset: str,
    stage: str,
    arguments: str,
    config: str | None,
    select: str | None,
    remove: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Add, fill in, or remove a stage's column. The arguments are those of `apply`."""
    from pydantic import ValidationError

    from segmint.infra.errors import UsageError
    from segmint.infra.storage.location import Location
    from segmint.pipeline.config.config import LOCAL, StageConfig
    from segmint.pipeline.corrections.apply.columns import apply_column, list_column, list_removal, remove_column
    from segmint.pipeline.corrections.apply.engine import STALL_TIMEOUT_S

    build, storage = build_of(config)
    location = Location(storage, dataset)
    resources, stall_timeout = LOCAL, STALL_TIMEOUT_S
    if build is not None:
        resources, stall_timeout = build.resources, build.stall_timeout
    if remove:
        if dry_run:
            print_dry_run(list_removal(location, stage), as_json)
            return
        result = remove_column(location, stage, confirmation("apply", yes), resources=resources)
    else:
        described = [] if build is None or arguments != "{}" else [each for each in build.stages if each.stage == stage]
        try:
            found = described[0] if described else StageConfig(stage=stage, arguments=json.loads(arguments))
        except ValidationError as error:
            raise UsageError(f"--stage {stage!r}: {error.errors()[0]['msg']}") from error
        except ValueError as error:
            raise UsageError(f"--arguments {arguments!r} isn't a JSON object: {error}") from error
        if dry_run:
            print_dry_run(list_column(location, found, select), as_json)
            return
        confirm = confirmation("apply", yes)
        result = apply_column(location, found, select, confirm, resources=resources, stall_timeout=stall_timeout)
    print_result(result, as_json)
    print_next(as_json, "audit", dataset, config=config)
    exit_unless_clean((), result.examples)
