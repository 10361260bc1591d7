"""A small real dataset that tests share; copy it to change it."""

import shutil
from pathlib import Path

import pytest

from tests.support.parallel import made_once

SMALL_MASKS = {"points_per_side": 2, "crop_n_layers": 0, "pred_iou_thresh": 0.7, "stability_score_thresh": 0.8}
"""The small dataset's mask settings."""


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory, weights: None) -> Path:
    """Eight rows in shards of three: images 1, 2, 4 to 7; row 3 refused for its license, row 8 not found.

    Its configuration is `build.yaml` next to it.
    """
    from tests.support.builds import small_catalog, write_config
    from tests.support.embedded_once import encoding_once
    from tests.support.small_dataset import build_dataset

    def make(folder: Path) -> None:
        catalog = small_catalog(folder / "photos")
        with encoding_once(tmp_path_factory):
            build_dataset(write_config(folder / "build.yaml", catalog, folder / "dataset", masks=SMALL_MASKS))

    return made_once(tmp_path_factory, "small", make) / "dataset"


@pytest.fixture
def dataset(small_dataset: Path, tmp_path: Path) -> Path:
    """A copy of the small real dataset, to change; without the notes of other tests' reports and exports."""
    from segmint.catalogs.dataset.outputs import OUTPUTS

    shutil.copytree(small_dataset, tmp_path / "dataset", ignore=shutil.ignore_patterns(OUTPUTS))
    return tmp_path / "dataset"
