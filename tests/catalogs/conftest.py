"""A committed dataset for tests that read one: real files by the real writer, without a model."""

from pathlib import Path

import pytest


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """A local folder with three committed shards of three rows each, one of them refused."""
    # A machine that collects only the tests marked `cuda` has few packages.
    from tests.support.committed import write_dataset
    from tests.support.locations import location_of

    uri = str(tmp_path / "dataset")
    write_dataset(location_of(uri), shards=3)
    return uri
