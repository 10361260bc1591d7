"""Starting, joining and leaving Ray."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import psutil
import pytest
import ray

# The operator whose warning is tested.
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator  # noqa: PLC2701, TID251
from ray.data._internal.execution.operators.map_operator import MapOperator  # noqa: PLC2701, TID251
from ray.job_submission import JobSubmissionClient

from segmint.infra import ray_session as module
from segmint.infra.device import cores_here
from segmint.infra.errors import UnfinishedError, UsageError
from segmint.infra.ray_internals import end_executions
from segmint.infra.ray_session import MIN_LOCAL_CPUS, local_cluster, ray_session
from tests.support.clusters import RayNode
from tests.support.s3_server import free_ports

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["iter_threaded", "map_tp_transforming_worker-0"])
def test_threads_that_read_batches_ahead_end_before_ray_does(name: str) -> None:
    thread = threading.Thread(target=time.sleep, args=[0.2], name=name)
    thread.start()
    end_executions()
    assert not thread.is_alive()


def test_a_local_ray_has_slots_for_every_stage_and_is_gone_afterwards() -> None:
    with ray_session("local", object_store_memory=100_000_000) as cluster:
        assert cluster.local
        assert cluster.cpus == max(MIN_LOCAL_CPUS, 2 * cores_here() + 4)
        assert replace(cluster, gpu_kinds={}) == replace(local_cluster(int(cluster.gpus)), gpu_kinds={})
        assert (cluster.nodes, cluster.cores) == (1, cores_here())
        started = " ".join(word for child in psutil.Process().children() for word in child.cmdline())
        assert "raylet" in started
        assert [name for name in ("log_monitor.py", "monitor.py", "dashboard.py") if name in started] == []
        with ray_session("auto") as joined:
            assert not joined.local
        assert ray.is_initialized(), "leaving a joined Ray must not stop it"
    assert not ray.is_initialized()


LOCAL_RAY = """
import os, re, stat, subprocess, sys
from pathlib import Path
import psutil, ray
from segmint.infra.ray_session import ray_session

INTRUDER = "import sys; from ray._raylet import GcsClient; GcsClient(sys.argv[1]).get_all_node_info(); print('inside')"

with ray_session("local", object_store_memory=100_000_000):
    token = Path.home() / ".ray" / "auth_token"
    print("token", oct(stat.S_IMODE(token.stat().st_mode)), len(token.read_text()))
    session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
    private = session.parent.parent
    print("folder", oct(stat.S_IMODE(private.stat().st_mode)), private)
    us = psutil.Process()
    for process in [us, *us.children(recursive=True)]:
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                print("listens", connection.laddr.ip.removeprefix("::ffff:"))
    print("reports", ray.get(ray.remote(lambda: os.environ["RAY_task_events_report_interval_ms"]).remote()))
    address = ray.get_runtime_context().gcs_address
    for mode in ({}, {"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        intruder = subprocess.run(
            [sys.executable, "-c", INTRUDER, address], env=os.environ | mode, capture_output=True, text=True
        )
        print("intruder", intruder.stdout.strip() or re.findall(r"\\w+Error(?=:)", intruder.stderr))
"""


ENTERED = ["intruder inside"] + 2 * ["intruder ['AuthenticationError']"]
"""Only the intruder with the token gets in."""


def intruders(printed: list[str]) -> list[str]:
    return [line for line in printed if line.startswith("intruder")]


def local_ray(home: Path) -> list[str]:
    """What a local Ray says of itself that a user with this home starts."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", LOCAL_RAY],
        env={**kept, "HOME": str(home)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_a_local_ray_listens_to_this_machine_alone_asks_for_its_users_token_and_keeps_no_events_of_tasks(
    tmp_path: Path,
) -> None:
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o644)  # as Ray itself makes it
    printed = local_ray(tmp_path)
    assert "token 0o600 64" in printed
    assert token.read_text() == "0123456789abcdef" * 4
    (folder,) = (line.split() for line in printed if line.startswith("folder"))
    assert (folder[1], Path(folder[2]).name.startswith("segmint-ray-")) == ("0o700", True)
    assert not Path(folder[2]).exists()
    listening = [line for line in printed if line.startswith("listens")]
    assert len(listening) > 3
    assert set(listening) == {"listens 127.0.0.1"}
    assert "reports 0" in printed
    assert intruders(printed) == ENTERED


@pytest.mark.long
def test_a_user_without_a_token_gets_one_that_nobody_else_can_read(tmp_path: Path) -> None:
    printed = local_ray(tmp_path)
    assert "token 0o600 64" in printed
    assert "listens 127.0.0.1" in printed
    assert intruders(printed) == ENTERED


def test_a_cluster_that_does_not_answer_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"127\.0\.0\.1:1"), ray_session("127.0.0.1:1"):
        pass


@pytest.fixture
def dashboard_url() -> Iterator[str]:
    """The address where the head of a cluster takes jobs; its agent has a separate port, as other clusters run here."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray puts sockets there: a short path
    port, client_port, dashboard_port = free_ports(3)
    arguments = [
        "--head",
        f"--port={port}",
        f"--ray-client-server-port={client_port}",
        "--include-dashboard=true",
        f"--dashboard-port={dashboard_port}",
        "--dashboard-agent-listen-port=0",
        "--node-ip-address=127.0.0.1",
        "--num-cpus=2",
        "--object-store-memory=100000000",
        f"--temp-dir={folder}",
        "--disable-usage-stats",
    ]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {**kept, "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled")}
    node = RayNode(arguments, environment, folder / "node.log")
    try:
        node.wait_until_started()
        yield f"http://127.0.0.1:{dashboard_port}"
    finally:
        node.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.long
def test_a_submitted_job_joins_its_cluster_with_the_folder_that_it_was_submitted_with(dashboard_url: str) -> None:
    client = JobSubmissionClient(dashboard_url)
    job = submit(client, f"{sys.executable} -c {shlex.quote(SUBMITTED)}")
    for _ in range(300):
        if client.get_job_status(job).is_terminal():
            break
        time.sleep(0.5)
    printed = client.get_job_logs(job)
    assert client.get_job_status(job) == "SUCCEEDED", printed
    driver, worker = re.findall(r"code in (\S+)", printed)
    assert driver == worker
    assert "working_dir_files" in driver, "not the folder that was shipped"


def submit(client: JobSubmissionClient, entrypoint: str) -> str:
    """The id of a job, once Ray's agents are up: on a busy machine that is after its head has started.

    Ray itself waits ten seconds for them in each of these tries.
    """
    shipped = {"working_dir": str(ROOT), "excludes": ["tests", "benchmarks", "docs"]}
    for _ in range(8):
        try:
            job: str = client.submit_job(entrypoint=entrypoint, runtime_env=shipped)
        except RuntimeError as error:
            if "No available agent" not in str(error):
                raise
            time.sleep(0.5)
        else:
            return job
    pytest.fail("no agent of Ray takes a job")


SUBMITTED = """
import segmint.infra, ray
from segmint.infra.ray_session import ray_session
def where():
    import segmint.infra
    return segmint.infra.__file__
with ray_session("auto") as cluster:
    assert not cluster.local
    print("code in", where())
    print("code in", ray.get(ray.remote(where).remote()))
"""


class Operator(ActorPoolMapOperator):
    """Ray's operator of a stage with two actors, after one block."""

    def __init__(self) -> None:
        self._name, self._metrics = "Segment", SimpleNamespace(num_inputs_received=1)
        self._actor_pool, self._additional_split_factor = SimpleNamespace(min_size=lambda: 2), None


def test_a_run_with_fewer_blocks_than_actors_prints_no_warning_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = Operator()
    monkeypatch.setattr(MapOperator, "all_inputs_done", lambda _: None)
    with pytest.warns(UserWarning, match="can launch at most 1 task"):
        operator.all_inputs_done()
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(module, "observe", lambda **_: None)
    with ray_session(), warnings.catch_warnings(record=True) as printed:
        operator.all_inputs_done()
    assert printed == []


def test_importing_the_session_does_not_import_ray() -> None:
    code = "import segmint.infra.ray_session, sys; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0


@pytest.mark.parametrize("home", ["none", "file"])
def test_without_a_home_folder_a_token_is_in_the_environment(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    if home == "none":
        monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    own = {"HOME": str(tmp_path / "file")} if home == "file" else {}
    kept = {name: value for name, value in os.environ.items() if name != "HOME" and not name.startswith("RAY_")}
    with mock.patch.dict(os.environ, {**kept, **own}, clear=True):
        module.keep_token_private()
        tokens = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    assert tokens.keys() == {"RAY_AUTH_TOKEN"}
    assert re.fullmatch("[0-9a-f]{64}", tokens["RAY_AUTH_TOKEN"])
    assert not (tmp_path / ".ray").exists()


@pytest.mark.long
@pytest.mark.parametrize("home", ["none", "file"])
def test_a_local_ray_needs_no_home_folder(home: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    script = LOCAL_RAY.replace('token = Path.home() / ".ray" / "auth_token"', "")
    kept = [line for line in script.splitlines() if not line.startswith('    print("token"')]
    if home == "none":
        kept.insert(2, "import pwd\ndel os.environ['HOME']\npwd.getpwuid = lambda uid: {}[uid]")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(kept)],
        env={**environment, "HOME": str(tmp_path / "file")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert intruders(done.stdout.splitlines()) == ENTERED


LOST_STORE = """
import psutil, ray, sys, time, typer
from segmint.infra.ray_session import ray_session
from segmint.infra.stopping import stop_on_signals
from segmint.pipeline.commands.console import guarded

@guarded
def command():
    with ray_session("local"):
        working = ray.remote(num_cpus=1)(lambda: time.sleep(600)).remote()
        for child in psutil.Process().children():
            if "gcs_server" in child.name():
                child.kill()
        ray.get(working)

stop_on_signals()
try:
    command()
except typer.Exit as error:
    sys.exit(error.exit_code)
"""


@pytest.mark.long
def test_a_command_whose_local_ray_loses_its_control_store_says_so_and_ends_with_3() -> None:
    """Ray itself would end it with 1, the code for findings, and print nothing."""
    done = subprocess.run([sys.executable, "-c", LOST_STORE], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 3, done.stderr
    assert "Ray's control store died; the machine may be out of memory" in done.stderr
    assert done.stderr.endswith("interrupted: finished work is kept; run the same command again to resume\n")


def test_a_local_ray_that_is_too_slow_asks_to_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "The current node timed out during startup. This could happen because some of the raylet failed to startup."

    def init(**_: object) -> None:
        raise Exception(text)

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(UnfinishedError, match="may be overloaded"), ray_session("local"):
        pass
    monkeypatch.setattr("ray.init", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError), ray_session("local"):
        pass


def test_a_local_ray_that_cannot_start_says_what_failed_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file"))
    with (
        pytest.raises(UsageError, match=r"Ray can't start on this machine: .*file.*set RAY_TMPDIR"),
        ray_session("local"),
    ):
        pass
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "file")[-18:])
    with (
        pytest.raises(UsageError, match=r"folder on this machine can't be created: .*Set RAY_TMPDIR"),
        ray_session("local"),
    ):
        pass
