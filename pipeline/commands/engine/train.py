"""`segmint train`: fine-tune SAM on the masks of datasets."""

from enum import StrEnum
from typing import Annotated

import typer

from segmint.pipeline.commands.common.arguments import AsJson, Overrides
from segmint.pipeline.commands.common.console import guarded, print_message, print_result
from segmint.pipeline.commands.common.extras import needs


class TrainingTarget(StrEnum):
    """Model to train."""

    MASKS = "masks"
    OBJECTS = "objects"


@guarded
@needs("train")
def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="Path or URI of the run's YAML configuration.")],
    task: Annotated[
        TrainingTarget | None,
        typer.Option(
            help="Model: SAM (masks), or a one-class detector of their boxes (objects). Default: the key `task`."
        ),
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train SAM or an object detector, or resume a run."""
    from segmint.pipeline.engine.train.settings import load_train_config

    loaded = load_train_config(config, [*(overrides or []), *([] if task is None else [f"task={task}"])])
    if loaded.task == "objects":
        from segmint.pipeline.engine.train.objects import run_objects

        print_result(run_objects(loaded, print_message), as_json)
        return
    from segmint.pipeline.engine.train.run import run_train

    print_result(run_train(loaded, print_message), as_json)
