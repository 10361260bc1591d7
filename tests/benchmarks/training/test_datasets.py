"""Scenes are written as datasets that training tells apart by their names."""

from pathlib import Path

import numpy as np

from benchmarks.training.datasets import write_scenes
from benchmarks.training.scenes import LabeledScene
from segmint.catalogs.dataset.manifest import load_manifest
from tests.support.committed import ROWS, masks, pixels
from tests.support.locations import location_of


def test_a_dataset_of_scenes_has_the_name_of_its_folder(tmp_path: Path) -> None:
    scenes = [LabeledScene(f"scene-{number}", pixels(number), np.stack(masks(number))) for number in range(ROWS)]
    write_scenes(tmp_path / "scenes-0", scenes, "imported")
    assert load_manifest(location_of(tmp_path / "scenes-0")).name == "scenes-0"
