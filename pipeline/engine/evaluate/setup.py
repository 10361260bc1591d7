"""What every evaluation begins with: the truths and the weights that a user named."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from segmint.catalogs.layout import MANIFEST
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.pipeline.engine.evaluate.dataset_truth import open_dataset_truth
from segmint.pipeline.engine.evaluate.file_truth import open_coco_truth, open_label_maps_truth
from segmint.pipeline.engine.evaluate.kinds import TruthSelection
from segmint.pipeline.engine.evaluate.measure import EvaluatedWeights, EvaluateTask, Measure
from segmint.pipeline.engine.evaluate.run import RunOptions
from segmint.pipeline.engine.evaluate.truth import Truth

MOST_WEIGHTS = 2


@dataclass(frozen=True)
class TruthOptions:
    """Which masks are the truth.

    `images` are folders of the images of files that are no datasets: one for all of them, or one for each in order.
    `chosen` is for datasets, `ignore` (numbers that are no masks) for label maps. `only` has ids of images by dataset,
    as the user names it: of such a dataset no other image is evaluated. `empty`: also COCO files' images without a
    mask.
    """

    targets: tuple[str, ...]
    images: tuple[str, ...] = ()
    chosen: TruthSelection = TruthSelection.HUMAN
    ignore: tuple[int, ...] = ()
    only: Mapping[str, Collection[int]] = field(default_factory=dict)
    empty: bool = False
    images_option: str = "--images"  # as messages name it


@dataclass(frozen=True)
class ModelOptions:
    """Which weights are evaluated, and where they compute."""

    weights: tuple[str, ...] = ("mobile_sam",)
    device: str = "auto"
    precision: str = "fp32"
    run: RunOptions = field(default_factory=RunOptions)

    def task(self, measure: Measure) -> EvaluateTask:
        """Find the weights; raises `UsageError` for more than two, and `AssetError` if they are not there."""
        if not 1 <= len(self.weights) <= MOST_WEIGHTS:
            raise UsageError(f"--weights was given {len(self.weights)} times: expected once, or twice to compare two")
        return EvaluateTask(measure, tuple(map(EvaluatedWeights.of, self.weights)), self.device, self.precision)


def open_truths(options: TruthOptions, storage: Storage, columns: Sequence[str] = ()) -> list[Truth]:
    """Open what the user named, each by what it is: a dataset, a COCO file (.json), or a folder of label maps.

    `columns` are those of datasets' images to keep. Raises `UsageError` for anything else, and without images.
    """
    locations = [Location(storage, target) for target in options.targets]
    datasets = [(location / MANIFEST).exists() for location in locations]
    folders = iter(
        _folders(options, [target for target, is_one in zip(options.targets, datasets, strict=True) if not is_one])
    )
    truths = []
    for number, (target, location, is_dataset) in enumerate(zip(options.targets, locations, datasets, strict=True)):
        if is_dataset:
            only = options.only.get(target)
            truths.append(open_dataset_truth(location, number, options.chosen, columns, only))
        elif target.lower().endswith(".json"):
            truths.append(open_coco_truth(location, Location(storage, next(folders)), number, options.empty))
        else:
            truths.append(open_label_maps_truth(location, Location(storage, next(folders)), number, options.ignore))
    return truths


def _folders(options: TruthOptions, files: Sequence[str]) -> list[str]:
    """The folder of images for each file or folder that is no dataset."""
    for target in files:
        if "://" not in target and not Path(target).exists():
            raise UsageError(f"{target}: no such dataset, COCO file or folder of label maps")
    if not files:
        return []
    if not options.images:
        raise UsageError(
            f"{files[0]} is no segmint dataset (it has no {MANIFEST}): for a COCO file or a folder of label maps also "
            f"name the folder of its images with {options.images_option}"
        )
    if len(options.images) not in (1, len(files)):
        raise UsageError(
            f"{options.images_option} was given {len(options.images)} times for {len(files)} files that need it: "
            "expected once, or once for each, in their order"
        )
    return list(options.images) * (len(files) if len(options.images) == 1 else 1)
