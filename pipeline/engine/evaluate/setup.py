"""Truths and weights of an evaluation, opened from the user's options."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from segmint.catalogs.layout import MANIFEST
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.pipeline.engine.evaluate.kinds import TruthSelection
from segmint.pipeline.engine.evaluate.measure import EvaluatedWeights, EvaluateTask, Measure, Predictions
from segmint.pipeline.engine.evaluate.run import RunOptions
from segmint.pipeline.engine.evaluate.truth import Truth
from segmint.pipeline.engine.evaluate.truth_sources import open_coco_truth, open_dataset_truth, open_label_maps_truth

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
