"""Execution of a measure over its truths, in this process or in Ray actors. Results are in the order of the truths."""

import math
import pickle
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from typing import NamedTuple

import pyarrow as pa

from segmint.infra.device import resolve_compute
from segmint.infra.errors import SegmintError, UnfinishedError, UsageError, last_line
from segmint.infra.log import get_logger
from segmint.infra.progress import Progress
from segmint.infra.threads import map_ahead
from segmint.model.sam.predictor import Predictor
from segmint.operators.decoding import JpegDecoder
from segmint.operators.evaluate.encoders import share_equal_encoders
from segmint.operators.rows import Row
from segmint.operators.segment.models import load_model
from segmint.pipeline.config.config import ResourcesConfig
from segmint.pipeline.engine.evaluate.measure import (
    EvaluatedWeights,
    EvaluateTask,
    Model,
    PartlyMeasuredError,
    PartResult,
    Predictions,
)
from segmint.pipeline.engine.evaluate.truth import (
    Decoders,
    PendingImage,
    SkippedTruth,
    Truth,
    TruthImage,
    TruthPart,
    UnreadableTruthError,
)

RAY_IMAGES = 500
"""Minimum number of images for a run with Ray actors, unless the user decides otherwise."""

WINDOW_PARTS = 2_000
"""Maximum number of parts per Ray Data execution. It limits how many are in the driver's memory."""

_PART, _RESULT = (pa.schema([pa.field(name, pa.large_binary())]) for name in ("part", "result"))

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

    Raises `UsageError` if the measure doesn't fit the truths or the weights can't be loaded, and `UnfinishedError` if
    Ray fails.
    """
    task.measure.check(truths)
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


class EvaluateParts:
    """Ray Data actor that measures pickled parts. For each part, it returns a pickled `PartResult` or error."""

    def __init__(self, task: EvaluateTask, names: Sequence[str]) -> None:
        self._task = task
        self._names = names

    def __call__(self, parts: pa.Table) -> pa.Table:
        """Measure the parts of a block."""
        results = [self._measure(pickle.loads(part)) for part in parts.column("part").to_pylist()]
        return pa.table([results], schema=_RESULT)

    def _measure(self, part: _NumberedPart) -> bytes:
        try:
            return pickle.dumps(self._evaluator.measure(part.truth, part.part))
        except SegmintError as error:  # the driver raises this error
            return pickle.dumps(error)

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
    import ray.exceptions

    from segmint.infra.ray_session import ray_session
    from segmint.pipeline.building.dataset.cpu_actors import actors_that_fit

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
            try:
                for numbered, result in zip(
                    window, _window(task, names, window, workers, bool(gpus), progress), strict=True
                ):
                    done += numbered.part.images
                    progress.update("evaluate", done)
                    yield result
            except ray.exceptions.RayError as error:
                raise UnfinishedError(f"Ray failed before the evaluation finished: {last_line(error)}") from error


def _window(
    task: EvaluateTask,
    names: Sequence[str],
    window: list[_NumberedPart],
    workers: int,
    on_gpu: bool,
    progress: Progress,
) -> Iterator[PartResult]:
    import ray.data

    from segmint.infra.ray_session import RETRIES
    from segmint.pipeline.building.execution.stage_watch import watched

    blocks = [pa.table([[pickle.dumps(part)]], schema=_PART) for part in window]
    workers = min(len(window), workers)
    results = ray.data.from_arrow(blocks).map_batches(
        EvaluateParts,
        fn_constructor_args=(task, list(names)),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, initial_size=workers),
        batch_size=None,
        batch_format="pyarrow",
        udf_modifying_row_count=False,
        num_cpus=1,
        num_gpus=1 if on_gpu else None,
        max_restarts=RETRIES,
        max_task_retries=RETRIES,
    )
    with watched(progress, len(window), math.inf, stages={}) as watch:  # images are counted as results arrive
        for table in results.iter_batches(batch_size=None, batch_format="pyarrow"):
            watch.moved()
            for data in table.column("result").to_pylist():
                result = pickle.loads(data)
                if isinstance(result, Exception):
                    raise result
                yield result
