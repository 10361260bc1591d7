"""A small dataset to train on, and a run on a smaller one, made once."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.parallel import made_once


@pytest.fixture(scope="session")
def trainable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images in four shards, each with three masks: a manual one, one of the model, and one too large."""
    from tests.support.locations import location_of
    from tests.support.trainable import write_trainable

    def make(folder: Path) -> None:
        write_trainable(location_of(folder / "dataset"))

    return made_once(tmp_path_factory, "trainable", make) / "dataset"


@dataclass(frozen=True)
class FinishedRun:
    """A run that has ended: its configuration, its dataset, its output, and the lines that it printed."""

    config: Path
    dataset: Path
    output: Path
    printed: list[str]


@pytest.fixture(scope="session")
def ended(tmp_path_factory: pytest.TempPathFactory, weights: None) -> FinishedRun:
    """Two steps of MobileSAM on two images of three each, with a checkpoint at each, and embeddings in `cache`."""
    from tests.support.embedded_once import encoding_once
    from tests.support.locations import location_of
    from tests.support.trainable import SHORTEST, train_yaml, write_three

    def make(folder: Path) -> None:
        from segmint.pipeline.engine.train.run import run_train
        from segmint.pipeline.engine.train.settings import load_train_config

        write_three(location_of(folder / "dataset"))
        config = train_yaml(
            folder / "train.yaml",
            [folder / "dataset"],
            folder / "run",
            **{**SHORTEST, "batch": {"images": 2, "masks": 2, "masks_per_image": 1}},
            checkpoints={"every": 1},
            cache={"folder": str(folder / "cache")},
        )
        printed: list[str] = []
        with encoding_once(tmp_path_factory):
            run_train(load_train_config(str(config)), printed.append)
        (folder / "printed.txt").write_text("\n".join(printed))

    folder = made_once(tmp_path_factory, "ended", make)
    printed = (folder / "printed.txt").read_text().splitlines()
    return FinishedRun(folder / "train.yaml", folder / "dataset", folder / "run", printed)
