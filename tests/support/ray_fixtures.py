"""A local Ray that tests share, for parts that need one but no whole build."""

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # every test run loads this file, and some have no Ray
    from segmint.infra.ray_session import Cluster

_running = ExitStack()
_clusters: "list[Cluster]" = []


@pytest.fixture
def local_ray() -> "Cluster":
    """A local Ray for all tests that ask for it: they run after the others, and it ends with the last of them."""
    from segmint.infra.ray_session import ray_session

    if not _clusters:
        _clusters.append(_running.enter_context(ray_session("local", object_store_memory=200_000_000)))
    return _clusters[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one Ray follow one another, so that no other test finds it running."""
    items.sort(key=_uses_it)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    if nextitem is None or not _uses_it(nextitem):
        _clusters.clear()
        _running.close()


def _uses_it(item: pytest.Item) -> bool:
    return "local_ray" in getattr(item, "fixturenames", ())
