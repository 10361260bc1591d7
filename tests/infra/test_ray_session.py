"""Starting, joining and leaving Ray."""

import os
import subprocess
import sys

import pytest
import ray

from infra.errors import UsageError
from infra.ray_session import MIN_LOCAL_CPUS, cores_here, ray_session

pytestmark = pytest.mark.ray


def test_a_local_ray_has_slots_for_every_stage_and_is_gone_afterwards() -> None:
    with ray_session("local", object_store_memory=100_000_000) as cluster:
        assert cluster.local
        assert cluster.cpus == max(MIN_LOCAL_CPUS, cores_here())
        assert (cluster.nodes, cluster.cores) == (1, cores_here())
        with ray_session("auto") as joined:
            assert not joined.local
        assert ray.is_initialized(), "leaving a joined Ray must not stop it"
    assert not ray.is_initialized()


def test_a_cluster_that_does_not_answer_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"127\.0\.0\.1:1"), ray_session("127.0.0.1:1"):
        pass


def test_importing_the_session_does_not_import_ray() -> None:
    code = "import infra.ray_session, sys; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0
