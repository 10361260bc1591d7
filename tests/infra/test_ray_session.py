"""Starting, joining and leaving Ray."""

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from ray.job_submission import JobSubmissionClient

from infra.errors import UsageError
from infra.ray_session import MIN_LOCAL_CPUS, cores_here, ray_session

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]


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


def test_a_submitted_job_joins_its_cluster_with_the_folder_that_it_was_submitted_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    started = ray.init(
        address="local", num_cpus=2, object_store_memory=100_000_000, include_dashboard=True, dashboard_port=0
    )
    try:
        client = JobSubmissionClient(f"http://{started.dashboard_url}")
        job = client.submit_job(
            entrypoint=f"{sys.executable} -c {shlex.quote(SUBMITTED)}",
            runtime_env={"working_dir": str(ROOT), "excludes": ["tests", "benchmarks", "docs"]},
        )
        for _ in range(300):
            if client.get_job_status(job).is_terminal():
                break
            time.sleep(0.5)
        told = client.get_job_logs(job)
        assert client.get_job_status(job) == "SUCCEEDED", told
        driver, worker = re.findall(r"code in (\S+)", told)
        assert driver == worker
        assert "working_dir_files" in driver, "not the folder that was shipped"
    finally:
        ray.shutdown()


SUBMITTED = """
import infra, ray
from infra.ray_session import ray_session
def where():
    import infra
    return infra.__file__
with ray_session("auto") as cluster:
    assert not cluster.local
    print("code in", where())
    print("code in", ray.get(ray.remote(where).remote()))
"""


def test_importing_the_session_does_not_import_ray() -> None:
    code = "import infra.ray_session, sys; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0
