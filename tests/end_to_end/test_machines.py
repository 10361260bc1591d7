"""A build on two machines in miniature writes the bytes of one machine, even if one is cut off for two minutes or dies.

The machines are Linux namespaces with their own networks and disks (`tests/support/machines.py`), the catalog and the
dataset are on an S3 server that they reach over their switch, and Ray runs as on separate machines.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.pipeline.building.execution.stage_watch import LOST_NODE_WAIT_S
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.builds import AS_SHIPPED, NO_DETECTORS, digests, segmint, small_catalog, write_config
from tests.support.everything import download, upload
from tests.support.machines import HOST, Machine, RayMachines, Switch, switched_on
from tests.support.runs import BuildProcess, running, title, wait_for
from tests.support.s3_server import ACCESS_KEY, SECRET_KEY, S3Server

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.long, pytest.mark.timeout(2400)]

IMAGES = 24
CUT_S = 120
"""Longer than Ray needs to declare a node that doesn't answer lost, and to end it."""

CPUS = 5
"""Logical CPUs of each node: enough for one segment actor with three, and for all that runs beside it."""


@pytest.fixture(scope="module")
def switch() -> Iterator[Switch]:
    try:
        switch = Switch()
    except OSError as error:
        pytest.skip(f"this test needs network namespaces, which only root can create, and iproute2: {error}")
    yield switch
    switch.power_off()


@pytest.fixture(scope="module")
def store(switch: Switch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server that the machines reach."""
    credentials = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    server = S3Server(tmp_path_factory.mktemp("store"), HOST)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**credentials, "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}.items():
            patch.setenv(name, value)
        server.start()
        yield server
        server.stop()
