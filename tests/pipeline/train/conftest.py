"""A small dataset to train on, written once."""

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
