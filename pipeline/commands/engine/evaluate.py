"""`segmint evaluate`: compare weights with ground-truth masks, without training on them."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segmint.infra.errors import UsageError
from segmint.operators.evaluate.settings import FirstClick, PointsSettings, SeveralClicks
from segmint.pipeline.commands.common.arguments import AsJson, Config, Device, Ignore, Select, build_of
from segmint.pipeline.commands.common.console import guarded, print_checked
from segmint.pipeline.commands.common.extras import needs
from segmint.pipeline.engine.evaluate.kinds import TruthSelection

if TYPE_CHECKING:
    from segmint.infra.storage.storage import Storage
    from segmint.pipeline.engine.evaluate.edges.edges import EdgesResult
    from segmint.pipeline.engine.evaluate.instances.instances import InstancesResult
    from segmint.pipeline.engine.evaluate.points.result import PointsResult
    from segmint.pipeline.engine.evaluate.proposals.proposals import ProposalsResult
    from segmint.pipeline.engine.evaluate.session import EvaluateOptions

app = typer.Typer(name="evaluate", help="Evaluate weights against masks that people made.", no_args_is_help=True)

Targets = Annotated[
    list[str],
    typer.Argument(
        metavar="DATASET|FILE", help="Datasets, or COCO files and folders of label maps with --images; paths or URIs."
    ),
]
Images = Annotated[
    list[str] | None,
    typer.Option("--images", metavar="DIR", help="Folder with the files' images; once for all, or once for each."),
]
ChosenMasks = Annotated[TruthSelection, typer.Option("--truth", help="Masks of a dataset to use as ground truth.")]
WeightsNames = Annotated[
    list[str] | None,
    typer.Option(
        "--weights",
        metavar="NAME|PATH",
        help="Weights: mobile_sam (default), vit_b, vit_l, vit_h, or a path or URI; give it twice to compare.",
    ),
]
PredictionFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--predictions",
        metavar="FILE|DIR",
        help="Another model's predictions, with or without weights: COCO results, or a folder of edge maps for edges.",
    ),
]
Output = Annotated[
    str | None,
    typer.Option("-o", "--output", metavar="DIR", help="Folder for the page, results.parquet, JSON, and Markdown."),
]
Precision = Annotated[str, typer.Option(metavar="fp32|bf16", help="Precision; bf16 is faster on GPUs that support it.")]
OnRay = Annotated[
    bool | None,
    typer.Option(
        "--ray/--no-ray", help="Compute in Ray actors or in this process. Default: Ray for 500 images or more."
    ),
]
Seed = Annotated[int, typer.Option(metavar="S", min=0, help="Random seed of clicks, intervals, and tests.")]

LabelMaps = Annotated[
    list[str], typer.Argument(metavar="DIR", help="Folders of label maps, with --images; paths or URIs.")
]
IgnoreNear = Annotated[
    list[int] | None,
    typer.Option("--ignore", metavar="N", help="Number in label maps near which edges don't count; repeatable."),
]

FailIfWorse = Annotated[
    str | None,
    typer.Option(
        "--fail-if-worse",
        metavar="MEASURE",
        help="Exit with code 1 if the second weights are worse by this measure: the 95% interval of the difference is "
        "below 0. Exit with code 3 if there is no interval.",
    ),
]


def read_options(
    targets: Targets,
    images: Images = None,
    truth: ChosenMasks = TruthSelection.HUMAN,
    ignore: Ignore = None,
    select: Select = None,
    weights: WeightsNames = None,
    predictions: PredictionFiles = None,
    output: Output = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    ray: OnRay = None,
    fail_if_worse: FailIfWorse = None,
    config: Config = None,
) -> "tuple[EvaluateOptions, Storage]":
    """Return the common options of all evaluations, and access to stores."""
    from segmint.pipeline.config.config import ResourcesConfig
    from segmint.pipeline.engine.evaluate.run import RunOptions
    from segmint.pipeline.engine.evaluate.session import EvaluateOptions
    from segmint.pipeline.engine.evaluate.setup import ModelOptions, TruthOptions

    build, storage = build_of(config)
    run = RunOptions(ray, ResourcesConfig() if build is None else build.resources)
    names = weights or ([] if predictions else ["mobile_sam"])
    model = ModelOptions(tuple(names), tuple(predictions or ()), device, precision, run)
    masks = TruthOptions(tuple(targets), tuple(images or ()), truth, tuple(ignore or ()), select=select)
    return EvaluateOptions(masks, model, output, fail_if_worse), storage


def evaluation(**changes: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds a command.

    The command takes its own options, followed by the options of `read_options`. `changes` overrides the types of the
    options of `read_options`; None removes an option from the command. The decorated function receives the result of
    `read_options`, followed by the command's own options.
    """
    given = inspect.signature(read_options).parameters
    common = {name: each.replace(annotation=changes.get(name, each.annotation)) for name, each in given.items()}
    common = {name: each for name, each in common.items() if each.annotation is not None}
    as_json = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=AsJson)

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @guarded
        @needs("report")
        def run(as_json: bool, **values: Any) -> None:
            options, storage = read_options(**{name: values.pop(name) for name in common})
            result = command(options, storage, **values)
            print_checked(result, as_json, result.subject.worse, result.subject.not_checked)

        own = list(inspect.signature(command).parameters.values())[2:]
        parameters = [each.replace(kind=as_json.kind) for each in (*own, *common.values(), as_json)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # options for typer
        app.command(command.__name__, help=inspect.getdoc(command))(run)
        return command

    return decorate


@evaluation()
def points(
    options: "EvaluateOptions",
    storage: "Storage",
    clicks: Annotated[
        str, typer.Option(metavar="N,N,…", help="Click counts to measure masks after; ascending, starting with 1.")
    ] = "1,2,3,5,9",
    first_click: Annotated[
        FirstClick | None,
        typer.Option(help="First click: farthest from the boundary (center), or random (default with --groups)."),
    ] = None,
    several_clicks: Annotated[
        SeveralClicks,
        typer.Option(help="Output from two clicks on: the single mask, or the best of three by predicted IoU."),
    ] = SeveralClicks.SINGLE,
    groups: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN|FILE",
            help="Compare groups by a column of the images, by label or source of the masks, or by a .csv or .parquet "
            "file of image_id or annotation_id and a label.",
        ),
    ] = None,
    seed: Seed = 0,
) -> "PointsResult":
    """Measure the mIoU of masks after 1, 2, 3, 5, and 9 clicks.

    Follows the SAM paper. Also reports the best of three masks.
    """
    from segmint.pipeline.engine.evaluate.points.points import PointsOptions, evaluate_points

    settings = PointsSettings(parse_clicks(clicks), several=several_clicks, seed=seed)
    asked = PointsOptions(
        options.truth, options.model, settings, first_click, groups, options.output, options.fail_if_worse
    )
    return evaluate_points(asked, storage)


@evaluation()
def proposals(
    options: "EvaluateOptions",
    storage: "Storage",
    points_per_side: Annotated[int, typer.Option(metavar="N", help="Points along each side of the grid.")] = 64,
) -> "ProposalsResult":
    """Measure the average recall of masks made without prompts.

    Measured at 10, 100, and 1,000 masks and by size, following the SAM paper.
    """
    from segmint.pipeline.engine.evaluate.proposals.proposals import evaluate_proposals

    return evaluate_proposals(options, points_per_side, storage)


@evaluation(targets=LabelMaps, truth=None, ignore=IgnoreNear, select=None)
def edges(
    options: "EvaluateOptions",
    storage: "Storage",
    annotators: Annotated[
        list[str] | None,
        typer.Option(
            "--annotator", metavar="DIR", help="Folder with another annotator's maps of these images; repeatable."
        ),
    ] = None,
    points_per_side: Annotated[int, typer.Option(metavar="N", help="Points along each side of the grid.")] = 16,
    tolerance: Annotated[
        float, typer.Option(metavar="SHARE", help="Maximum distance of matched edges, as a share of the diagonal.")
    ] = 0.0075,
    thresholds: Annotated[int, typer.Option(metavar="N", help="Number of thresholds; fewer are faster.")] = 99,
) -> "EdgesResult":
    """Measure edges found without prompts: ODS, OIS, AP, and R50.

    Follows the SAM paper. Compares edges with the boundaries in label maps.
    """
    from segmint.pipeline.engine.evaluate.edges.edges import evaluate_edges
    from segmint.pipeline.engine.evaluate.edges.measure import EdgesMeasure

    return evaluate_edges(options, EdgesMeasure(points_per_side, thresholds, tolerance), annotators or (), storage)


@evaluation()
def instances(
    options: "EvaluateOptions",
    storage: "Storage",
    boxes: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="COCO results with a detector's boxes. Default: the ground-truth boxes."),
    ] = None,
    refine: Annotated[
        bool, typer.Option("--refine/--no-refine", help="Prompt a second time with the box and the mask's logits.")
    ] = True,
) -> "InstancesResult":
    """Measure masks prompted by boxes: COCO AP or mean IoU.

    Follows the SAM paper. Reports the AP for a detector's boxes, which have scores.
    """
    from segmint.pipeline.engine.evaluate.instances.instances import evaluate_instances

    return evaluate_instances(options, boxes, refine, storage)


def parse_clicks(text: str) -> tuple[int, ...]:
    """Parse "1,3,5". Raises `UsageError` unless the numbers ascend and start at 1."""
    parts = [part.strip() for part in text.split(",")]
    numbers = [int(part) for part in parts if part.isascii() and part.isdecimal() and len(part) < 4]
    if len(numbers) != len(parts) or numbers[:1] != [1] or sorted(set(numbers)) != numbers:
        raise UsageError(f"--clicks {text!r}: expected ascending numbers that begin with 1, as in 1,2,3,5,9")
    return tuple(numbers)
