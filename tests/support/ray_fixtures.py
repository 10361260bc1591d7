"""A local Ray that tests share, for parts that need one but no whole build."""

from collections.abc import Iterator

import pytest

from segmint.infra.ray_session import Cluster, ray_session


@pytest.fixture(scope="module")
def local_ray() -> Iterator[Cluster]:
    """A local Ray for the tests of one module."""
    with ray_session("local", object_store_memory=200_000_000) as cluster:
        yield cluster
