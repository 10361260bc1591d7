"""`segmint train`: fine-tune SAM on the masks of datasets."""

from typing import Annotated, Literal

import typer

from segmint.pipeline.commands.common.arguments import AsJson, Overrides
from segmint.pipeline.commands.common.console import guarded, print_message, print_next, print_result
from segmint.pipeline.commands.common.extras import needs


@guarded
@needs("train")
def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="Path or URI of the run's YAML configuration.")],
    task: Annotated[
        Literal["masks", "objects"] | None,
        typer.Option(
            help="Model: SAM (masks), or a one-class detector of their boxes (objects). Default: the key `task`."
        ),
    ] = None,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the schedule, memory, time, and cost without training.")
    ] = False,
    gpus: Annotated[
        int | None, typer.Option(metavar="N", help="Number of GPUs. Default: resources.workers. With --dry-run.")
    ] = None,
    flops: Annotated[
        float | None,
        typer.Option(metavar="X", help="Peak operations per second of one GPU. Default: measured. With --dry-run."),
    ] = None,
    price: Annotated[float | None, typer.Option(metavar="X", help="Price per GPU-hour. With --dry-run.")] = None,
    share: Annotated[
        float | None, typer.Option(metavar="X", help="Share of the peak to assume. With --dry-run.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train SAM or an object detector, or resume a run."""
    from segmint.infra.errors import UsageError
    from segmint.pipeline.engine.train.settings import load_train_config

    loaded = load_train_config(config, [*(overrides or []), *([] if task is None else [f"task={task}"])])
    if not dry_run and (gpus, flops, price, share) != (None, None, None, None):
        raise UsageError("--gpus, --flops, --price, and --share only have an effect with --dry-run")
    if dry_run:
        from segmint.pipeline.engine.train.plan import TrainPlanOptions, plan_train

        if loaded.task == "objects":
            raise UsageError("--dry-run counts the cost of task: masks, but the task is objects")
        options = TrainPlanOptions(gpus, flops, price, share)
        print_result(plan_train(loaded, options), as_json)
        return
    if loaded.task == "objects":
        from segmint.pipeline.engine.train.objects import run_objects

        print_result(run_objects(loaded, print_message), as_json)
        return
    from segmint.pipeline.engine.train.run import run_train

    trained = run_train(loaded, print_message)
    print_result(trained, as_json)
    if loaded.encoder_weights is None:
        weights = ("--weights", loaded.weights, "--weights", f"{trained.output}/{trained.record.file}")
        print_next(as_json, "evaluate", "points", "HELD_OUT_DATASET", *weights, "--fail-if-worse", "iou_1")
