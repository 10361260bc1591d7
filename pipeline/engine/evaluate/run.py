"""Execution of a measure over its truths, in this process or in Ray actors. Results are in the order of the truths.

Truths and weights of an evaluation, opened from the user's options.

Run of a measure, which collects its rows as they arrive and describes the evaluation at the end.
"""

import heapq
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from segmint.catalogs.layout import MANIFEST
from segmint.catalogs.lineage import lineage_of
from segmint.infra.device import resolve_compute
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.log import get_logger
from segmint.infra.progress import Progress
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.wording import listed
from segmint.model.sam.predictor import Predictor
from segmint.operators.evaluate.points import share_equal_encoders
from segmint.operators.evaluate.settings import TruthSelection
from segmint.operators.images import JpegDecoder
from segmint.operators.rows import Row
from segmint.operators.segment.models import load_model
from segmint.pipeline.building.execution.actors import ItemActor, item_results, item_tables, map_tables
from segmint.pipeline.config.config import ResourcesConfig
from segmint.pipeline.engine.evaluate.result import (
    EvaluatedWeights,
    EvaluateTask,
    EvaluationSubject,
    Measure,
    Model,
    OutputFolder,
    PartlyMeasuredError,
    PartResult,
    Predictions,
    check_measured,
)
from segmint.pipeline.engine.evaluate.truth import (
    Decoders,
    PendingImage,
    SkippedTruth,
    Truth,
    TruthImage,
    TruthPart,
    UnreadableTruthError,
    open_coco_truth,
    open_dataset_truth,
    open_label_maps_truth,
)

RAY_IMAGES = 500
"""Minimum number of images for a run with Ray actors, unless the user decides otherwise."""

WINDOW_PARTS = 2_000
"""Maximum number of parts per Ray Data execution. It limits how many are in the driver's memory."""

_THREADS, _AHEAD = 2, 3  # threads that prefetch, and images that they prefetch, within a part


@dataclass(frozen=True)
class RunOptions:
    """Execution options of a run. If `ray` is None, a run with at least `RAY_IMAGES` images uses Ray actors."""

    ray: bool | None = None
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)


class _NumberedPart(NamedTuple):
    """Part of a truth, with the truth's index in the run."""

    truth: int
    part: TruthPart


def run_measure(task: EvaluateTask, truths: Sequence[Truth], options: RunOptions) -> Generator[PartResult, None, None]:
    """Measure all parts, and yield their results in order.

    Raises `UsageError` if the weights can't be loaded, and `UnfinishedError` if Ray fails.
    """
    names = [truth.name for truth in truths]
    parts = [_NumberedPart(number, part) for number, truth in enumerate(truths) for part in truth.parts]
    images = sum(truth.images for truth in truths)
    if options.ray or (options.ray is None and images >= RAY_IMAGES and len(parts) > 1):
        yield from _by_ray(task, names, parts, options.resources)
        return
    with Progress() as progress, closing(Evaluator(task, names)) as evaluator:
        progress.stage("evaluate", images)
        before = 0
        for truth, part in parts:
            yield evaluator.measure(truth, part, partial(_show, progress, before))
            before += part.images


def _show(progress: Progress, before: int, done: int) -> None:
    progress.update("evaluate", before + done)


class _ReadResult(NamedTuple):
    """Result of reading an image: the image, or the reason why it can't be read."""

    name: str
    image: TruthImage | None
    why: str = ""


class Evaluator:
    """Evaluator with a run's weights, in one process. `close` stops the decoders' child processes."""

    def __init__(self, task: EvaluateTask, names: Sequence[str]) -> None:
        """Load the weights. `names` are the names of the truths, for the list of skipped items."""
        self._task = task
        self._names = names
        compute = resolve_compute(task.device, task.precision, task.threads)
        self._computed_on = f"{compute.device}, {compute.precision}"
        models = {each: load_model(each.find(), compute) for each in loaded(task)}
        share_equal_encoders(list(models.values()))
        self._models: list[Model] = [
            each if isinstance(each, Predictions) else Predictor(models[each]) for each in task.weights
        ]
        self._decoders = Decoders(JpegDecoder(own=True, processes=1), JpegDecoder(own=False, processes=1))

    def measure(self, truth: int, part: TruthPart, done: Callable[[int], None] = lambda images: None) -> PartResult:
        """Measure the images of a part. `truth` is the truth's index in the run.

        `done` is called after each image with the number of images so far. Images that can't be read or measured are
        listed and don't stop the run.
        """
        started = time.monotonic()
        rows: list[Row] = []
        skipped: list[SkippedTruth] = []
        measured = 0
        for count, read in enumerate(self._read(part), start=1):
            why = [read.why] if read.image is None else [*read.image.skipped]
            if read.image is not None:
                try:
                    rows += self._rows(read.image)
                    measured += 1
                except PartlyMeasuredError as error:
                    rows += _with_head(read.image, error.rows)
                    measured += 1
                    why.append(str(error))
                except ValueError as error:
                    why.append(str(error))
                except Exception as error:
                    if _is_lost_device(error):
                        raise
                    get_logger("evaluate").warning("image failed", image=read.name, exc_info=True)
                    why.append(f"{type(error).__name__}: {error}")
            skipped += [SkippedTruth(self._names[truth], read.name, each) for each in why]
            done(count)
        table = pa.Table.from_pylist(rows, schema=self._task.measure.schema)
        return PartResult(table, skipped, measured, self._computed_on, time.monotonic() - started)

    def _rows(self, image: TruthImage) -> list[Row]:
        return _with_head(image, self._task.measure.rows(self._models, image))

    def _read(self, part: TruthPart) -> Iterator[_ReadResult]:
        """Yield a part's images in order, while threads read and decode ahead.

        If the rest of the part is unreadable, the last result gives the reason.
        """
        broken: list[str] = []

        def pending() -> Iterator[PendingImage]:
            try:
                yield from part.pending()
            except (SegmintError, OSError) as error:
                broken.append(f"the rest of it can't be read: {error}")

        yield from map_ahead(self._load, pending(), _THREADS, _AHEAD, "truth")
        for why in broken:
            yield _ReadResult(part.name, None, why)

    def _load(self, pending: PendingImage) -> _ReadResult:
        try:
            return _ReadResult(pending.name, pending.load(self._decoders))
        except UnreadableTruthError as error:
            return _ReadResult(pending.name, None, str(error))
        except Exception as error:  # noqa: BLE001 - one image must not stop the others
            return _ReadResult(pending.name, None, f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """Stop the decoders' child processes."""
        for decoder in self._decoders:
            decoder.close()


def loaded(task: EvaluateTask) -> list[EvaluatedWeights]:
    """Return a task's weights, without the predictions of other models."""
    return [each for each in task.weights if not isinstance(each, Predictions)]


def _with_head(image: TruthImage, rows: Sequence[Row]) -> list[Row]:
    head = {"truth": image.truth, "image_id": image.image_id, "image": image.name}
    return [{**head, **row} for row in rows]


def _is_lost_device(error: Exception) -> bool:
    """Return whether this process has lost its GPU, which is true for all GPU errors except lack of memory."""
    import torch

    return isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.cuda.OutOfMemoryError)


class EvaluateParts(ItemActor):
    """Ray Data actor that measures numbered parts."""

    raised = SegmintError

    def __init__(self, task: EvaluateTask, names: Sequence[str]) -> None:
        self._task = task
        self._names = names

    def handle(self, item: _NumberedPart) -> PartResult:
        """Measure a part."""
        return self._evaluator.measure(item.truth, item.part)

    @cached_property
    def _evaluator(self) -> Evaluator:
        return Evaluator(self._task, self._names)

    def __del__(self) -> None:
        if "_evaluator" in self.__dict__:
            self._evaluator.close()


def _by_ray(
    task: EvaluateTask, names: Sequence[str], parts: Sequence[_NumberedPart], resources: ResourcesConfig
) -> Iterator[PartResult]:
    import ray.data  # noqa: F401 - before the session, which quiets the logger that this import sets up

    from segmint.infra.ray_session import ray_session
    from segmint.pipeline.building.first_numerics import actors_that_fit

    waiting = iter(parts)
    with (
        ray_session(resources.address, object_store_memory=resources.object_store_memory) as cluster,
        Progress() as progress,
    ):
        gpus = int(cluster.gpus) if task.device != "cpu" else 0
        if task.device.startswith("cuda") and not gpus:
            raise UsageError("--device cuda was requested, but Ray found no GPU. Use --device cpu")
        workers = gpus or actors_that_fit(
            cluster.most_workers, sum(weights.find().stat().st_size for weights in loaded(task))
        )
        # Fix the threads, because they would otherwise depend on the actor's CPUs in Ray. A GPU actor uses one GPU.
        task = replace(task, device="cuda", threads=1) if gpus else replace(task, device="cpu", threads=1)
        progress.stage("evaluate", sum(part.images for _, part in parts))
        done = 0
        while window := list(islice(waiting, WINDOW_PARTS)):
            arguments, num_gpus = (task, list(names)), 1 if gpus else None
            tables = map_tables(EvaluateParts, arguments, item_tables(window), workers, progress, {}, num_gpus)
            for numbered, result in zip(window, item_results(tables, "evaluation"), strict=True):
                done += numbered.part.images  # images are counted as results arrive
                progress.update("evaluate", done)
                yield result


MOST_WEIGHTS = 2


@dataclass(frozen=True)
class TruthOptions:
    """Options that choose the ground truth.

    `images` contains the image folders of the truths that aren't datasets: one folder for all of them, or one folder
    per truth, in order. `chosen` selects the masks of datasets. `ignore` lists values in label maps that aren't masks.
    With `empty`, images without masks in COCO files are included. `select` limits datasets to some images; see
    `choose_images`.
    """

    targets: tuple[str, ...]
    images: tuple[str, ...] = ()
    chosen: TruthSelection = TruthSelection.HUMAN
    ignore: tuple[int, ...] = ()
    empty: bool = False
    select: str | None = None


@dataclass(frozen=True)
class ModelOptions:
    """Weights and prediction files to evaluate, and how to run the evaluation."""

    weights: tuple[str, ...] = ("mobile_sam",)
    predictions: tuple[str, ...] = ()
    device: str = "auto"
    precision: str = "fp32"
    run: RunOptions = field(default_factory=RunOptions)

    def task(self, measure: Measure, predictions: Sequence[Predictions] = ()) -> EvaluateTask:
        """Resolve the weights, and append `predictions` to them.

        Raises `UsageError` if there are more than two models in total, and `AssetError` if weights don't exist.
        """
        given = len(self.weights) + len(self.predictions)
        if not 1 <= given <= MOST_WEIGHTS:
            options = "--weights and --predictions were" if self.predictions else "--weights was"
            raise UsageError(f"{options} given {given} times: expected once, or twice to compare two")
        models = (*map(EvaluatedWeights.of, self.weights), *predictions)
        return EvaluateTask(measure, models, self.device, self.precision)


def check_fail_if_worse(measure: str | None, model: ModelOptions, names: Sequence[str]) -> None:
    """Raise `UsageError` if `--fail-if-worse` names a measure that isn't in `names`, or if there aren't two weights."""
    if measure is None:
        return
    if measure not in names:
        raise UsageError(f"--fail-if-worse {measure}: expected {', '.join(names)}")
    if len(model.weights) != 2 or model.predictions:
        raise UsageError("--fail-if-worse compares two sets of weights: pass --weights twice, first the weights in use")


def open_truths(options: TruthOptions, storage: Storage, columns: Sequence[str] = ()) -> list[Truth]:
    """Open each target as a dataset, a COCO file (.json), or a folder of label maps.

    `columns` names the image columns of datasets to keep. Raises `UsageError` if a target is anything else or has no
    images.
    """
    locations = [Location(storage, target) for target in options.targets]
    datasets = [(location / MANIFEST).exists() for location in locations]
    folders = iter(
        _folders(options, [target for target, is_one in zip(options.targets, datasets, strict=True) if not is_one])
    )
    if options.select is not None and not all(datasets):
        raise UsageError("--select chooses images of datasets, but not all ground truths are datasets")
    truths = []
    for number, (target, location, is_dataset) in enumerate(zip(options.targets, locations, datasets, strict=True)):
        if is_dataset:
            truths.append(open_dataset_truth(location, number, options.chosen, columns, options.select))
        elif target.lower().endswith(".json"):
            truths.append(open_coco_truth(location, Location(storage, next(folders)), number, options.empty))
        else:
            truths.append(open_label_maps_truth(location, Location(storage, next(folders)), number, options.ignore))
    return truths


def _folders(options: TruthOptions, files: Sequence[str]) -> list[str]:
    """Return the image folder of each target that isn't a dataset."""
    for target in files:
        if "://" not in target and not Path(target).exists():
            raise UsageError(f"{target}: no such dataset, COCO file or folder of label maps")
    if not files and options.images:
        raise UsageError("--images has no effect, because datasets contain their images. Remove it")
    if not files:
        return []
    if not options.images:
        raise UsageError(
            f"{files[0]} is not a segmint dataset (no {MANIFEST}). For a COCO file or a folder of label maps, also "
            "pass the folder of its images with --images"
        )
    if len(options.images) not in (1, len(files)):
        raise UsageError(
            f"--images was given {len(options.images)} times for {len(files)} files that need it: "
            "expected once, or once per file, in the same order"
        )
    return list(options.images) * (len(files) if len(options.images) == 1 else 1)


SEED = 0
"""Seed for resampling. It is fixed, so equal results always have equal intervals."""

SHOWN = 12
"""Number of lowest scores that a page lists for each set of weights."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of an evaluation. `output` is the folder for the results, or None.

    `fail_if_worse` names the measure by which the second weights must not be worse than the first ones, or is None.
    """

    truth: TruthOptions
    model: ModelOptions = field(default_factory=ModelOptions)
    output: str | None = None
    fail_if_worse: str | None = None


@dataclass(frozen=True, order=True)
class LowestScore:
    """Low score, with the image or mask that it belongs to."""

    score: float
    where: str


class EvaluationSession:
    """Evaluation of a task over its truths. `score_of` extracts the score of a row that `lowest` ranks."""

    def __init__(
        self,
        task: EvaluateTask,
        truths: Sequence[Truth],
        options: RunOptions,
        output: OutputFolder,
        score_of: Callable[[Row], float | None] = lambda row: None,
    ) -> None:
        """Store the task, and the output, which receives the rows as they arrive.

        Logs a warning if weights were trained on one of the truths.
        """
        warn_if_trained_on(task, truths)
        self._task = task
        self._truths = tuple(truths)
        self._options = options
        self._output = output
        self._score_of = score_of
        self._skipped: list[SkippedTruth] = [each for truth in truths for each in truth.skipped]
        self._images = 0
        self._seconds = 0.0
        self._computed_on: set[str] = set()
        self.lowest: list[list[LowestScore]] = [[] for _ in task.weights]  # complete once `tables` has ended

    def results(self) -> Iterator[PartResult]:
        """Yield each part's results in order. Raises `NothingMeasuredError` at the end if no image was measured."""
        for result in run_measure(self._task, self._truths, self._options):
            self._skipped += result.skipped
            self._images += result.images
            self._seconds += result.seconds
            self._computed_on.add(result.computed_on)
            yield result
        check_measured(self._images, self._skipped)

    def tables(self) -> Iterator[list[Row]]:
        """Yield the rows of `results` and add them to the output."""
        for result in self.results():
            self._output.add(result.table)
            rows: list[Row] = result.table.to_pylist()
            for row in rows:
                self._look_at(row)
            yield rows

    def subject(self, masks: int | None) -> EvaluationSubject:
        """Describe the evaluation after all results. `masks` is the number of masks, or None for whole images."""
        return EvaluationSubject(
            self._task.measure.name,
            self._truths,
            self._task.weights,
            listed(sorted(self._computed_on)),
            self._images,
            masks,
            tuple(self._skipped),
            self._seconds,
            self._output.page,
        )

    def _look_at(self, row: Row) -> None:
        score = self._score_of(row)
        if score is not None:
            where = f"{row['image']}, mask {row['mask']}" if "mask" in row else row["image"]
            home = self.lowest[row["weights"]]
            self.lowest[row["weights"]] = heapq.nsmallest(SHOWN, [*home, LowestScore(score, where)])


def warn_if_trained_on(task: EvaluateTask, truths: Sequence[Truth]) -> None:
    """Log a warning for weights whose `training.json` names the digest of a dataset among the truths."""
    for truth in truths:
        if truth.dataset is None:
            continue
        for weights in loaded(task):
            rounds = lineage_of(weights.name, weights.sha256, truth.dataset.storage)
            if truth.facts["digest"] in [each.digest for link in rounds for each in link.datasets]:
                get_logger("evaluate").warning(
                    "trained_on_truth",
                    weights=weights.label,
                    dataset=truth.name,
                    note="scores on images that weights were trained on are too high: use held-out data",
                )
