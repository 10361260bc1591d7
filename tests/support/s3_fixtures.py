"""Fixtures around a real S3 server: `s3_server` (one a session), `s3_bucket` (an empty one a test)."""

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.support.s3_server import ACCESS_KEY, SECRET_KEY, S3Server


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Put the end of the S3 server's log into the report of a test that failed with it."""
    outcome = yield
    report = outcome.get_result()
    server = getattr(item, "funcargs", {}).get("s3_server")
    if report.failed and isinstance(server, S3Server):
        report.sections.append(("the S3 server's log", server.log()[-4000:]))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A running SeaweedFS; its credentials are in this process's environment, which children inherit.

    All clients of this process share what botocore knows of S3: tests make many, and each would parse it again.
    """
    from botocore.loaders import create_loader

    credentials = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    old = {name: os.environ.get(name) for name in (*credentials, "AWS_DEFAULT_REGION", "AWS_EC2_METADATA_DISABLED")}
    os.environ.update(credentials, AWS_DEFAULT_REGION="us-east-1", AWS_EC2_METADATA_DISABLED="true")
    server = S3Server(Path(tmp_path_factory.mktemp("s3")))
    try:
        with patch("botocore.session.create_loader", cache(create_loader)):
            server.start()
            yield server
    finally:
        server.stop()
        for name, value in old.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@pytest.fixture
def make_bucket(s3_server: S3Server) -> Iterator[Callable[..., str]]:
    """Make an empty bucket and return its name; it is removed with its objects when the test ends."""
    made: list[str] = []

    def make(prefix: str = "test") -> str:
        made.append(s3_server.make_bucket(prefix))
        return made[-1]

    yield make
    if s3_server.running:
        for name in made:
            s3_server.remove_bucket(name)


@pytest.fixture
def s3_bucket(make_bucket: Callable[..., str]) -> str:
    """The name of an empty bucket."""
    return make_bucket()


@pytest.fixture
def s3_options(s3_server: S3Server) -> dict[str, dict[str, str]]:
    """Storage options that lead every s3:// URI to the server."""
    return {"s3://": {"endpoint_url": s3_server.endpoint_url}}
