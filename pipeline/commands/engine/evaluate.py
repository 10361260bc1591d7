"""`segmint evaluate`: compare weights with ground-truth masks, without training on them."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from segmint.infra.errors import UsageError
from segmint.operators.evaluate.settings import FirstClick, PointsSettings, SeveralClicks
from segmint.pipeline.commands.common.arguments import AsJson, Config, Device, build_of
from segmint.pipeline.commands.common.console import guarded, print_checked
from segmint.pipeline.commands.common.extras import needs
from segmint.pipeline.engine.evaluate.kinds import TruthSelection


class RequiredVerdict(StrEnum):
    """Verdicts of the gate that a caller may require."""

    BETTER = "better"


if TYPE_CHECKING:
    from segmint.infra.storage.storage import Storage
    from segmint.pipeline.engine.evaluate.setup import ModelOptions, TruthOptions

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
Ignore = Annotated[
    list[int] | None,
    typer.Option("--ignore", metavar="N", help="Number in label maps to ignore, besides 0; repeatable."),
]
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


@app.command()
@guarded
@needs("report")
def points(
    targets: Targets,
    images: Images = None,
    truth: ChosenMasks = TruthSelection.HUMAN,
    ignore: Ignore = None,
    weights: WeightsNames = None,
    predictions: PredictionFiles = None,
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
    gate: Annotated[
        bool,
        typer.Option(
            "--gate",
            help="Decide on held-out annotated masks whether the second weights may replace the first: better, worse, "
            "no difference shown, or no independent truth.",
        ),
    ] = False,
    require: Annotated[
        RequiredVerdict | None,
        typer.Option(help="Exit with code 1 for any other verdict of the gate; implies --gate."),
    ] = None,
    guard: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATASET|FILE",
            help="Ordinary photographs on which the second weights must not be worse; repeatable, implies --gate.",
        ),
    ] = None,
    guard_images: Annotated[
        list[str] | None, typer.Option(metavar="DIR", help="Like --images, for the files of --guard.")
    ] = None,
    seed: Seed = 0,
    output: Output = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    ray: OnRay = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Measure the mIoU of masks after 1, 2, 3, 5, and 9 clicks.

    Follows the SAM paper. Also reports the best of three masks.
    """
    from segmint.pipeline.engine.evaluate.points.points import PointsOptions, evaluate_points

    settings = PointsSettings(parse_clicks(clicks), several=several_clicks, seed=seed)
    model, storage = model_options(weights, predictions, device, precision, ray, config)
    options = PointsOptions(truth_options(targets, images, truth, ignore), model, settings, first_click, groups, output)
    if predictions and (gate or require or guard):
        raise UsageError("--predictions can't be used with the gate, which compares weights")
    if guard_images and not guard:
        raise UsageError("--guard-images has no effect without --guard, which names the files of these images")
    if not (gate or require or guard):
        result = evaluate_points(options, storage)
        print_checked(result, as_json, not_checked=result.subject.skipped)
        return
    from segmint.pipeline.engine.evaluate.gate.gate import GateOptions, evaluate_gate

    judged = evaluate_gate(GateOptions(options, tuple(guard or ()), tuple(guard_images or ())), storage)
    verdict = judged.judgment.verdict
    rejected = [] if require is None or verdict.value == require.value else [verdict]
    print_checked(judged, as_json, rejected, [*judged.subject.skipped, *judged.judgment.not_checked])


@app.command()
@guarded
@needs("report")
def proposals(
    targets: Targets,
    images: Images = None,
    truth: ChosenMasks = TruthSelection.HUMAN,
    ignore: Ignore = None,
    weights: WeightsNames = None,
    predictions: PredictionFiles = None,
    points_per_side: Annotated[int, typer.Option(metavar="N", help="Points along each side of the grid.")] = 64,
    output: Output = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    ray: OnRay = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Measure the average recall of masks made without prompts.

    Measured at 10, 100, and 1,000 masks and by size, following the SAM paper.
    """
    from segmint.pipeline.engine.evaluate.proposals.proposals import evaluate_proposals
    from segmint.pipeline.engine.evaluate.session import EvaluateOptions

    model, storage = model_options(weights, predictions, device, precision, ray, config)
    options = EvaluateOptions(truth_options(targets, images, truth, ignore), model, output)
    result = evaluate_proposals(options, points_per_side, storage)
    print_checked(result, as_json, not_checked=result.subject.skipped)


@app.command()
@guarded
@needs("report")
def edges(
    targets: Annotated[
        list[str], typer.Argument(metavar="DIR", help="Folders of label maps, with --images; paths or URIs.")
    ],
    images: Images = None,
    annotators: Annotated[
        list[str] | None,
        typer.Option(
            "--annotator", metavar="DIR", help="Folder with another annotator's maps of these images; repeatable."
        ),
    ] = None,
    ignore: Annotated[
        list[int] | None,
        typer.Option("--ignore", metavar="N", help="Number in label maps near which edges don't count; repeatable."),
    ] = None,
    weights: WeightsNames = None,
    predictions: PredictionFiles = None,
    points_per_side: Annotated[int, typer.Option(metavar="N", help="Points along each side of the grid.")] = 16,
    tolerance: Annotated[
        float, typer.Option(metavar="SHARE", help="Maximum distance of matched edges, as a share of the diagonal.")
    ] = 0.0075,
    thresholds: Annotated[int, typer.Option(metavar="N", help="Number of thresholds; fewer are faster.")] = 99,
    output: Output = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    ray: OnRay = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Measure edges found without prompts: ODS, OIS, AP, and R50.

    Follows the SAM paper. Compares edges with the boundaries in label maps.
    """
    from segmint.pipeline.engine.evaluate.edges.edges import evaluate_edges
    from segmint.pipeline.engine.evaluate.edges.measure import EdgesMeasure
    from segmint.pipeline.engine.evaluate.session import EvaluateOptions

    model, storage = model_options(weights, predictions, device, precision, ray, config)
    options = EvaluateOptions(truth_options(targets, images, TruthSelection.HUMAN, ignore), model, output)
    measure = EdgesMeasure(points_per_side, thresholds, tolerance)
    result = evaluate_edges(options, measure, annotators or (), storage)
    print_checked(result, as_json, not_checked=result.subject.skipped)


@app.command()
@guarded
@needs("report")
def instances(
    targets: Targets,
    images: Images = None,
    boxes: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="COCO results with a detector's boxes. Default: the ground-truth boxes."),
    ] = None,
    refine: Annotated[
        bool, typer.Option("--refine/--no-refine", help="Prompt a second time with the box and the mask's logits.")
    ] = True,
    truth: ChosenMasks = TruthSelection.HUMAN,
    ignore: Ignore = None,
    weights: WeightsNames = None,
    predictions: PredictionFiles = None,
    output: Output = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    ray: OnRay = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Measure masks prompted by boxes: COCO AP or mean IoU.

    Follows the SAM paper. Reports the AP for a detector's boxes, which have scores.
    """
    from segmint.pipeline.engine.evaluate.instances.instances import evaluate_instances
    from segmint.pipeline.engine.evaluate.session import EvaluateOptions

    model, storage = model_options(weights, predictions, device, precision, ray, config)
    options = EvaluateOptions(truth_options(targets, images, truth, ignore), model, output)
    result = evaluate_instances(options, boxes, refine, storage)
    print_checked(result, as_json, not_checked=result.subject.skipped)


@app.command()
@guarded
@needs("report")
def text(
    targets: Annotated[list[str], typer.Argument(metavar="DATASET", help="Datasets with labels; paths or URIs.")],
    clip: Annotated[str, typer.Option(metavar="FOLDER", help="CLIP, as transformers' save_pretrained writes it.")],
    projection: Annotated[str, typer.Option(metavar="FILE", help="Projection trained with the CLIP and the weights.")],
    weights: WeightsNames = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "fp32",
    ray: OnRay = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Measure masks from labels, from no text, and from a point."""
    from segmint.pipeline.engine.evaluate.session import EvaluateOptions
    from segmint.pipeline.engine.evaluate.text import evaluate_text

    model, storage = model_options(weights, None, device, precision, ray, config)
    options = EvaluateOptions(truth_options(targets, None, TruthSelection.HUMAN, None), model)
    result = evaluate_text(options, clip, projection, seed, storage)
    print_checked(result, as_json, not_checked=result.subject.skipped)


def parse_clicks(text: str) -> tuple[int, ...]:
    """Parse "1,3,5". Raises `UsageError` unless the numbers ascend and begin with 1."""
    parts = [part.strip() for part in text.split(",")]
    numbers = [int(part) for part in parts if part.isascii() and part.isdecimal() and len(part) < 4]
    if len(numbers) != len(parts) or numbers[:1] != [1] or sorted(set(numbers)) != numbers:
        raise UsageError(f"--clicks {text!r}: expected ascending numbers that begin with 1, as in 1,2,3,5,9")
    return tuple(numbers)


def truth_options(
    targets: list[str], images: list[str] | None, chosen: TruthSelection, ignore: list[int] | None
) -> "TruthOptions":
    """Return the options of every evaluation that select the ground truth."""
    from segmint.pipeline.engine.evaluate.setup import TruthOptions

    return TruthOptions(tuple(targets), tuple(images or ()), chosen, tuple(ignore or ()))


def model_options(
    weights: list[str] | None,
    predictions: list[str] | None,
    device: str,
    precision: str,
    ray: bool | None,
    config: str | None,
) -> "tuple[ModelOptions, Storage]":
    """Return the options of every evaluation that select weights and resources, and access to stores."""
    from segmint.pipeline.config.config import ResourcesConfig
    from segmint.pipeline.engine.evaluate.run import RunOptions
    from segmint.pipeline.engine.evaluate.setup import ModelOptions

    build, storage = build_of(config)
    run = RunOptions(ray, ResourcesConfig() if build is None else build.resources)
    names = weights or ([] if predictions else ["mobile_sam"])
    return ModelOptions(tuple(names), tuple(predictions or ()), device, precision, run), storage
