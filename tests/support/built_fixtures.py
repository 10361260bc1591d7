"""A small dataset that the command built, once for a whole session; tests that change it take a copy."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.parallel import made_once

IN_TWOS = {"images_per_shard": 2}
"""The sizes of the dataset's shards."""


@dataclass(frozen=True)
class BuiltDataset:
    """A catalog, the configuration of its build, the dataset, and what the command printed."""

    catalog: Path
    config: Path
    dataset: Path
    printed: str


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, processes: None) -> BuiltDataset:
    """Six rows in shards of two, by one segment actor: row 3 refused for its license, row 6 not found."""
    from tests.support.builds import segmint, small_catalog, write_config

    def make(folder: Path) -> None:
        catalog = small_catalog(folder / "photos", count=6)
        config = write_config(folder / "build.yaml", catalog, folder / "dataset", **IN_TWOS)
        (folder / "printed.txt").write_text(segmint("build", config))

    folder = made_once(tmp_path_factory, "built", make)
    catalog = folder / "photos" / "catalog.jsonl"
    return BuiltDataset(catalog, folder / "build.yaml", folder / "dataset", (folder / "printed.txt").read_text())
