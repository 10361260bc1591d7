"""A local Ray that tests share, for parts that need one, and for builds in this process."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from tests.support.s3_server import ACCESS_KEY, SECRET_KEY

if TYPE_CHECKING:  # every test run loads this file, and some have no Ray
    from segmint.infra.ray_session import Cluster

_running = ExitStack()
_clusters: "list[Cluster]" = []


@pytest.fixture
def worker_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose Python files the workers of `local_ray` can import."""
    folder = tmp_path_factory.getbasetemp() / "modules"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def local_ray(worker_modules: Path) -> "Cluster":
    """A local Ray for all tests that ask for it: they run after the others, and it ends with the last of them.

    Its workers have the credentials of the S3 server.
    """
    from segmint.infra.ray_session import ray_session

    if not _clusters:
        credentials = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
        region = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
        paths = [str(worker_modules), os.environ.get("PYTHONPATH")]
        with mock.patch.dict(os.environ, {**credentials, **region, "PYTHONPATH": os.pathsep.join(filter(None, paths))}):
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
