"""`segmint apply`: run a segmenter or a stage over a finished dataset."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from segmint.pipeline.commands.common.arguments import AsJson, Dataset, DryRun, Select, Yes, build_of
from segmint.pipeline.commands.common.console import confirmation, guarded, print_revision
from segmint.pipeline.commands.common.extras import needs

if TYPE_CHECKING:
    from segmint.pipeline.config.config import SegmenterConfig, StageConfig

Settings = TypeVar("Settings", "SegmenterConfig", "StageConfig")


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
    """Make masks in a finished dataset, or add a column of a stage.

    Masks that people made, changed, or labeled stay.
    """
    from functools import partial

    from segmint.infra.errors import UsageError
    from segmint.infra.storage.location import Location
    from segmint.pipeline.config.config import LOCAL, Config, SegmenterConfig, StageConfig
    from segmint.pipeline.corrections.apply.change import MasksMode
    from segmint.pipeline.corrections.apply.columns import apply_column, list_column, list_removal, remove_column
    from segmint.pipeline.corrections.apply.engine import STALL_TIMEOUT_S
    from segmint.pipeline.corrections.apply.masks import apply_masks, list_masks

    if stage is not None and (masks is not None or segmenter is not None):
        raise UsageError("--stage adds a column: it can't be combined with --masks or --segmenter")
    if remove and (stage is None or arguments != "{}" or select is not None):
        raise UsageError("--remove needs --stage CLASS, and neither --arguments nor --select")
    build, storage = build_of(config)
    resources, stall_timeout = LOCAL, STALL_TIMEOUT_S
    if build is not None:
        resources, stall_timeout = build.resources, build.stall_timeout
    location = Location(storage, dataset)
    planned: Callable[[], Any]
    work: Callable[..., Any]
    if stage is not None and remove:
        planned, work = partial(list_removal, location, stage), partial(remove_column, location, stage)
    elif stage is not None:
        of_build = [] if build is None or arguments != "{}" else [each for each in build.stages if each.stage == stage]
        found = of_build[0] if of_build else _settings(StageConfig, "--stage", stage, arguments)
        planned = partial(list_column, location, found, select)
        work = partial(apply_column, location, found, select, stall_timeout=stall_timeout)
    else:
        if masks not in set(MasksMode):
            raise UsageError(f"--masks {masks!r}: expected one of {', '.join(MasksMode)}")
        maker: SegmenterConfig | Config
        if segmenter is not None:
            maker = _settings(SegmenterConfig, "--segmenter", segmenter, arguments)
        elif arguments != "{}":
            raise UsageError("--arguments needs --segmenter CLASS or --stage CLASS")
        elif build is not None:
            maker = build.segmenter or build
        else:
            raise UsageError(
                "expected --segmenter CLASS, or --config CONFIG with the segmenter or SAM that makes the masks"
            )
        planned = partial(list_masks, location, maker, MasksMode(masks), select)
        work = partial(apply_masks, location, maker, MasksMode(masks), select, stall_timeout=stall_timeout)
    done: Any = planned() if dry_run else work(confirm=confirmation("apply", yes), resources=resources)
    print_revision(done, as_json, dataset, config)


def _settings(kind: type[Settings], option: str, name: str, arguments: str) -> Settings:
    """Return the configuration of the class `name`. Raise `UsageError` if the arguments are invalid."""
    from pydantic import ValidationError

    from segmint.infra.errors import UsageError

    try:
        return kind(stage=name, arguments=json.loads(arguments))
    except ValidationError as error:
        raise UsageError(f"{option} {name!r}: {error.errors()[0]['msg']}") from error
    except ValueError as error:
        raise UsageError(f"--arguments {arguments!r} isn't a JSON object: {error}") from error
