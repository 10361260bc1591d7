"""A dataset of twenty small shards, and ranks of a run in one process."""

import pytest


@pytest.fixture(scope="package")
def many(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A local folder with twenty committed shards of two images each: only for tests that change nothing in it."""
    # A machine that collects only the tests marked `cuda` has few packages.
    from tests.support.committed import write_dataset
    from tests.support.locations import location_of

    uri = str(tmp_path_factory.mktemp("reading") / "dataset")
    write_dataset(location_of(uri), shards=20)
    return uri


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the rank of the environment that runs the tests."""
    for variable in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(variable, raising=False)
