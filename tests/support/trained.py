"""The parts of a training run before its first step, put together as the run does."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segmint.infra.storage.location import Location
from segmint.pipeline.engine.train.images import (
    DatasetContents,
    SkippedImages,
    TrainingDataset,
    TrainingImages,
    find_images,
    open_datasets,
)
from segmint.pipeline.engine.train.settings import TrainConfig, load_train_config, with_preset
from tests.support.locations import location_of
from tests.support.trainable import train_yaml


@dataclass(frozen=True)
class DatasetInputs:
    """What a run finds in its datasets."""

    config: TrainConfig
    datasets: list[TrainingDataset]
    images: TrainingImages
    held: dict[str, DatasetContents]
    skipped: SkippedImages


def find(folder: Path, dataset: Path, kept: Location | None = None, **changes: Any) -> DatasetInputs:
    """Find the images of a dataset with a configuration of these keys, written to `folder`."""
    config = load_train_config(str(train_yaml(folder / "train.yaml", [dataset], folder / "run", **changes)))
    config = with_preset(config, "mobile_sam")
    skipped = SkippedImages()
    datasets = open_datasets(config, location_of(dataset).storage)
    images, held = find_images(config, datasets, kept, skipped)
    return DatasetInputs(config, datasets, images, held, skipped)
