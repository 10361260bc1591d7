"""Commands of the data engine: `annotate`, `evaluate`, `train`, and `study`."""

import inspect
import os
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from segmint.infra.errors import UsageError
from segmint.operators.evaluate.settings import FirstClick, PointsSettings, SeveralClicks, TruthSelection
from segmint.pipeline.commands.console import (
    AsJson,
    Browser,
    Config,
    Dataset,
    DatasetOrFolder,
    Device,
    Ignore,
    Overrides,
    Port,
    Printable,
    Select,
    build_of,
    guarded,
    needs,
    print_checked,
    print_line,
    print_message,
    print_next,
    print_result,
    storage_of,
)
from segmint.pipeline.engine.study.files import IMAGES, StudyKind

if TYPE_CHECKING:
    from segmint.infra.storage.storage import Storage
    from segmint.pipeline.engine.evaluate.edges import EdgesResult
    from segmint.pipeline.engine.evaluate.instances import InstancesResult
    from segmint.pipeline.engine.evaluate.proposals import ProposalsResult
    from segmint.pipeline.engine.evaluate.run import EvaluateOptions
    from segmint.pipeline.engine.evaluate.scores import PointsResult


@guarded
@needs("web")
def annotate(
    dataset: DatasetOrFolder,
    stage: Annotated[
        Literal["assisted", "semi", "rate"],
        typer.Option(
            help="Task: make and correct masks with the model's help (assisted), add masks that are missing from the "
            "dataset's locked ones (semi), or rate single masks from 1 to 10 (rate)."
        ),
    ] = "assisted",
    select: Annotated[
        str | None,
        typer.Option(metavar="EXPR", help="Serve only images that match this SQL expression, as in 'masks < 10'."),
    ] = None,
    order: Annotated[
        Literal["number", "fewest", "lowest", "random"],
        typer.Option(help="Order: number, fewest masks first, lowest mean predicted IoU first, or random."),
    ] = "number",
    study: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Serve only the images or masks that `segmint study sample` drew."),
    ] = None,
    overlap: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of images that two people annotate independently.")
    ] = 0.0,
    names: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="WHO", help="Annotator name for submissions; repeatable, one address each."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="NAME|PATH", help="Weights of the model. Default: those that made the dataset."),
    ] = None,
    device: Device = "auto",
    prefill: Annotated[
        str | None,
        typer.Option(
            metavar="detector:PATH",
            help="Prefill confident masks of the objects that this TorchScript detector finds (stage semi).",
        ),
    ] = None,
    masks: Annotated[
        int | None, typer.Option(metavar="N", help="Masks to rate, balanced over sources (stage rate). Default: 200.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Random seed (stage rate). Default: 0.")] = None,
    port: Port = 8765,
    origin: Annotated[
        str | None,
        typer.Option(metavar="URL", help="URL of a proxy in front of the server, as in https://annotate.example.org."),
    ] = None,
    browser: Browser = True,
    config: Config = None,
) -> None:
    """Make, correct, or rate masks in a web browser.

    Submissions are saved in the dataset, or in the JSON files of a folder. Press Ctrl-C to stop the server.
    """
    # A click consists of many small steps. Waking a thread for each step takes longer than the step, so torch's threads
    # spin until the next step, for up to 2 to 10 ms depending on the CPU. Longer spinning would take cores from other
    # processes. torch's thread library reads this variable only once, when it loads.
    os.environ.setdefault("GOMP_SPINCOUNT", "200000")

    from segmint.catalogs.dataset.submissions import check_name
    from segmint.infra.storage.location import Location
    from segmint.infra.wording import counted
    from segmint.pipeline.engine.annotate.app import AnnotateOptions, make_app, open_view, serve
    from segmint.pipeline.engine.annotate.queue import QueueOptions
    from segmint.pipeline.engine.annotate.requests import parse_origin

    given = {
        "--order": order != "number",
        "--study": study is not None,
        "--overlap": overlap != 0,
        "--weights": weights is not None,
        "--device": device != "auto",
        "--prefill": prefill is not None,
        "--masks": masks is not None,
        "--seed": seed is not None,
    }
    refuse_needless(stage, {option for option, is_given in given.items() if is_given})
    kind, _, detector = (prefill or "").partition(":")
    if prefill is not None and (kind != "detector" or not detector):
        raise UsageError(f"--prefill {prefill!r}: expected detector:PATH, with a TorchScript object detector")
    who = [check_name(name) for name in names or ["annotator"]]
    public = None if origin is None else parse_origin(origin)
    place = Location(storage_of(config), dataset)
    from segmint.pipeline.commands.folder import check_place, folder_to_correct
    from segmint.pipeline.corrections.folder import is_photograph_folder

    check_place(dataset)
    is_folder = is_photograph_folder(dataset)

    def show(addresses: Mapping[str, str]) -> None:
        for name, address in addresses.items():
            print_line(address if len(addresses) == 1 else f"{name}: {address}")
        print_message("each address opens one browser, once; press Ctrl-C to stop")
        what, target = "masks", "the dataset" if study is None else study
        if stage == "rate":
            what = "ratings"
        if is_folder and stage != "rate":
            target = "the JSON files of the folder"
        elif is_folder and study is None:
            target = str(place)
        print_message(f"{what} are saved to {target}")

    serve_team = partial(serve, port=port, names=who, origin=public, open_browser=browser, on_ready=show)
    with ExitStack() as stack:
        files = None
        if is_folder:
            files = stack.enter_context(folder_to_correct(dataset))
            place = files.location
        else:
            print_message(f"reading the tables of {dataset}")
        if stage == "rate":
            from segmint.pipeline.engine.annotate.rating import SampleOptions, make_rating_app, open_rater_view
            from segmint.pipeline.engine.study.ratings import load_ratings

            if study is not None and (masks, seed, select) != (None, None, None):
                raise UsageError("--study sets the masks to rate: remove --masks, --seed, and --select")
            options = SampleOptions(200 if masks is None else masks, seed or 0, select)
            rated = None if study is None else load_ratings(Location(place.storage, study))
            annotator_view = stack.enter_context(open_rater_view(place, options, rated))
            print_message(f"{counted(len(annotator_view), 'mask')} to rate")
            serve_team(lambda team: make_rating_app(annotator_view, team))
            return
        sample = None if study is None else Location(place.storage, study)
        queue = QueueOptions(select, order, sample, overlap)
        opened = stack.enter_context(
            open_view(place, AnnotateOptions(queue, stage, weights, device, detector or None, files))
        )
        if opened.note is not None:
            print_message(f"note: {opened.note}")
        left = max(map(opened.annotator_view.left, who))
        print_message(f"{counted(left, 'image')} to annotate with {opened.annotator_view.about.weights}")
        serve_team(lambda team: make_app(opened.annotator_view, team))


def refuse_needless(stage: str, given: Collection[str]) -> None:
    """Raise `UsageError` for options that have no effect in a stage."""

    rates = {"--masks", "--seed"}
    needless = set(given) - {*rates, "--study"} if stage == "rate" else set(given) & rates
    if stage == "assisted":
        needless |= set(given) & {"--prefill"}
    if needless:
        raise UsageError(f"{', '.join(sorted(needless))} can't be used with --stage {stage}")


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
    from segmint.pipeline.engine.evaluate.run import EvaluateOptions, ModelOptions, RunOptions, TruthOptions

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
    from segmint.pipeline.engine.evaluate.points import evaluate_points

    settings = PointsSettings(parse_clicks(clicks), several=several_clicks, seed=seed)
    return evaluate_points(options, settings, storage, first_click, groups)


@evaluation()
def proposals(
    options: "EvaluateOptions",
    storage: "Storage",
    points_per_side: Annotated[int, typer.Option(metavar="N", help="Points along each side of the grid.")] = 64,
) -> "ProposalsResult":
    """Measure the average recall of masks made without prompts.

    Measured at 10, 100, and 1,000 masks and by size, following the SAM paper.
    """
    from segmint.pipeline.engine.evaluate.proposals import evaluate_proposals

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
    from segmint.pipeline.engine.evaluate.edges import EdgesMeasure, evaluate_edges

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
    from segmint.pipeline.engine.evaluate.instances import evaluate_instances

    return evaluate_instances(options, boxes, refine, storage)


def parse_clicks(text: str) -> tuple[int, ...]:
    """Parse "1,3,5". Raises `UsageError` unless the numbers ascend and start at 1."""
    parts = [part.strip() for part in text.split(",")]
    numbers = [int(part) for part in parts if part.isascii() and part.isdecimal() and len(part) < 4]
    if len(numbers) != len(parts) or numbers[:1] != [1] or sorted(set(numbers)) != numbers:
        raise UsageError(f"--clicks {text!r}: expected ascending numbers that begin with 1, as in 1,2,3,5,9")
    return tuple(numbers)


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
    from segmint.pipeline.engine.train.settings import load_train_config

    loaded = load_train_config(config, [*(overrides or []), *([] if task is None else [f"task={task}"])])
    if not dry_run and (gpus, flops, price, share) != (None, None, None, None):
        raise UsageError("--gpus, --flops, --price, and --share only have an effect with --dry-run")
    if dry_run:
        from segmint.pipeline.engine.train.run import TrainPlanOptions, plan_train

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


study_app = typer.Typer(
    name="study", help="Have people judge a sample of images, and score the results.", no_args_is_help=True
)


@study_app.command()
@guarded
def sample(
    dataset: Dataset,
    output: Annotated[str, typer.Option("-o", "--output", metavar="DIR", help="Output folder or bucket prefix.")],
    kind: Annotated[
        StudyKind,
        typer.Option(
            help="Kind of study: correct masks, mark missed faces and plates (privacy), or rate models (ratings)."
        ),
    ] = StudyKind.MASKS,
    count: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--images",
            metavar="N",
            min=1,
            help="Number of images, or of masks for ratings. Default: 500, or 3000 for privacy.",
        ),
    ] = None,
    predictions: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="COCO results of a model to rate, as for `evaluate points`; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="S", help="Random seed of the sample.")] = 0,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Draw a sample of images for people to inspect.

    People correct masks, or mark missed faces and plates, in COCO tools, CVAT, Label Studio, or `segmint annotate`.
    """
    from segmint.infra.storage.location import Location

    storage = storage_of(config)
    wanted = IMAGES[kind] if count is None else count
    if predictions and kind is not StudyKind.RATINGS:
        raise UsageError("--predictions needs --kind ratings")
    if kind is StudyKind.RATINGS:
        from segmint.pipeline.engine.study.ratings import sample_ratings

        models = [Location(storage, file) for file in predictions or ()]
        study = sample_ratings(Location(storage, dataset), models, wanted, seed, Location(storage, output))
        _print_sample(study, as_json, len(study.objects), count)
        print_next(as_json, "annotate", dataset, "--stage", "rate", "--study", output, config=config)
    elif kind is StudyKind.PRIVACY:
        from segmint.pipeline.engine.study.privacy import sample_privacy

        privacy = sample_privacy(Location(storage, dataset), wanted, seed, Location(storage, output))
        _print_sample(privacy, as_json, privacy.images, count)
    else:
        from segmint.pipeline.engine.study.sample import sample_study

        masks = sample_study(Location(storage, dataset), wanted, seed, Location(storage, output))
        _print_sample(masks, as_json, masks.images, count)
        print_next(as_json, "annotate", dataset, "--study", output, config=config)
    answers = [] if kind is StudyKind.RATINGS else ["--corrected", "FILE" if kind is StudyKind.PRIVACY else dataset]
    print_next(as_json, "study", "score", output, *answers, config=config)


def _print_sample(sample: Printable, as_json: bool, drawn: int, asked: int | None) -> None:
    print_result(sample, as_json)
    if asked is not None and drawn < asked and not as_json:
        print_message(f"only {drawn:,} of {asked:,} could be drawn")


@study_app.command()
@guarded
def score(
    study: Annotated[str, typer.Argument(metavar="DIR", help="Folder that `segmint study sample` wrote.")],
    corrected: Annotated[
        str | None,
        typer.Option(
            "--corrected",
            metavar="FILE",
            help="COCO or Label Studio JSON, or the dataset, for its submissions. Default: DIR/corrected.json.",
        ),
    ] = None,
    regions: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write marked regions to this file, for `segmint redact` (kind privacy)."),
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Compare masks with the corrected ones, following the SAM paper.

    For a privacy sample, computes the upper confidence bound on the share of images with a miss. For ratings, compares
    the models with one another and with the ground truth.
    """
    from segmint.infra.storage.location import Location
    from segmint.pipeline.engine.study.files import kind_of

    storage = storage_of(config)
    folder = Location(storage, study)
    answers, written = (None if uri is None else Location(storage, uri) for uri in (corrected, regions))
    kind = kind_of(folder)
    if kind is StudyKind.RATINGS:
        from segmint.pipeline.engine.study.ratings import score_ratings

        if corrected or regions:
            raise UsageError(f"{study} is a ratings study: remove --corrected and --regions")
        ratings = score_ratings(folder)
        print_checked(ratings, as_json, not_checked=ratings.not_checked)
        return
    if kind is StudyKind.PRIVACY:
        from segmint.pipeline.engine.study.privacy import score_privacy

        privacy = score_privacy(folder, answers, written)
        print_checked(privacy, as_json, not_checked=privacy.not_checked)
        return
    from segmint.pipeline.engine.study.score import score_study

    if written is not None:
        raise UsageError(f"{study} is a mask study, which has no marked regions: remove --regions")
    masks = score_study(folder, answers)
    print_checked(masks, as_json, not_checked=masks.not_checked)


@study_app.command()
@guarded
def plan(
    difference: Annotated[float, typer.Option(metavar="X", help="Difference of mean ratings to detect.")],
    deviation: Annotated[
        float, typer.Option(metavar="X", help="Assumed standard deviation of the masks' differences.")
    ] = 2.0,
    power: Annotated[float, typer.Option(metavar="X", help="Probability of detecting the difference.")] = 0.9,
    comparisons: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="Pairs, ground truth included.")] = 1,
) -> None:
    """Compute the number of masks to rate."""
    from segmint.pipeline.engine.study.ratings import CONFIDENCE, masks_for

    if not (0.001 <= difference <= 9 and 0 < deviation <= 9 and 0 < power < 1):
        raise UsageError("expected --difference from 0.001 to 9, --deviation over 0 to 9, and --power between 0 and 1")
    masks = masks_for(difference, deviation, power, 1 - (1 - CONFIDENCE) / comparisons)
    print_line(
        f"{masks:,} masks, each from a different image. If differences between ratings have a standard deviation "
        f"of {deviation:g}, a paired t-test at {100 * (1 - CONFIDENCE) / comparisons:.3g}% detects a mean "
        f"difference of {difference:g} with a probability of {power:g}"
    )
