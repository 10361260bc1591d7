"""`infra/slurm/build.sbatch`, unmodified, on a real Slurm cluster of two nodes on this machine.

Whatever happens to a task, the same `sbatch` line builds the rest, and the files are those of an undisturbed build.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from segmint.infra.storage.storage import Storage
from tests.support.builds import AS_SHIPPED, NO_DETECTORS, ROOT, digests, segmint, small_catalog
from tests.support.builds import write_config as write_small_config
from tests.support.runs import assert_whole
from tests.support.s3_server import S3Server
from tests.support.slurm import SlurmCluster, slurm_cluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

SCRIPT = ROOT / "infra" / "slurm" / "build.sbatch"
SHARDS = 8
REMOTE = (3, 6)
"""The ordinals of the rows whose photographs are in a bucket: one of the last two rows of each task. An actor has two
rows at once and takes them in any order, so each task commits a row before it waits for the bucket. Row 2 is rejected
for its license without a read."""

Configure = Callable[[Path], Path]
"""Writes a configuration into a folder."""


@pytest.fixture(scope="module")
def slurm(cluster_programs: None) -> Iterator[SlurmCluster]:
    with slurm_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def catalog(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard per row."""
    folder = tmp_path_factory.mktemp("photos")
    path = small_catalog(folder, count=SHARDS)
    rows = path.read_text().splitlines()
    bucket = s3_server.make_bucket()
    for ordinal in REMOTE:
        name = f"photo_{ordinal:03}.jpg"
        Storage(stored_in(s3_server)).put(f"s3://{bucket}/{name}", (folder / name).read_bytes())
        rows[ordinal] = rows[ordinal].replace(name, f"s3://{bucket}/{name}")
    path.write_text("\n".join(rows) + "\n")
    return path


def stored_in(server: S3Server) -> dict[str, Any]:
    return {"s3://": {"endpoint_url": server.endpoint_url, "connect_timeout": 2, "read_timeout": 2}}


@pytest.fixture(scope="module")
def configured(catalog: Path, s3_server: S3Server) -> Configure:
    def configure(folder: Path) -> Path:
        return write_small_config(
            folder / "build.yaml",
            catalog,
            folder / "dataset",
            images_per_shard=1,
            rows_per_block=1,
            model=AS_SHIPPED,
            deidentify=NO_DETECTORS,
            outage_timeout_s=5,
            storage=stored_in(s3_server),
            resources={"prepare": {"actors": 1}, "segment": {"actors": 1}},
        )

    return configure


@pytest.fixture(scope="module")
def undisturbed(configured: Configure, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of the files that one local build writes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    segmint("build", configured(folder))
    return digests(folder / "dataset")


def submit(slurm: SlurmCluster, config: Path, *options: str) -> int:
    log = f"--output={config.parent}/task-%a.log"
    segmint_command = str(Path(sys.executable).parent / "segmint")
    return slurm.submit("--array=0-1", log, SCRIPT, config, *options, SEGMINT=segmint_command)


def committed(config: Path) -> set[int]:
    """Shards with a commit."""
    return {int(path.name.partition(".")[0]) for path in (config.parent / "dataset" / "commits").glob("*.json")}


@contextmanager
def stopped(server: S3Server) -> Iterator[None]:
    """Stop an S3 server for the duration of the context."""
    server.stop()
    try:
        yield
    finally:
        server.start()


def logs(config: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(config.parent.glob("task-*.log")))


def has_committed(config: Path, task: int) -> bool:
    """Whether a task of two has committed a shard."""
    half = SHARDS // 2
    return bool(committed(config) & set(range(task * half, (task + 1) * half)))


def test_preempted_tasks_are_requeued_and_write_the_same(
    slurm: SlurmCluster, configured: Configure, undisturbed: dict[str, str], s3_server: S3Server, tmp_path: Path
) -> None:
    """Neither task can end before it is preempted, because each waits for a store."""
    config = configured(tmp_path)
    with stopped(s3_server):
        job = submit(slurm, config, "--set", "outage_timeout_s=600")
        slurm.wait_for(job, "commits", lambda tasks: has_committed(config, 0) and has_committed(config, 1))
        assert [(task.state, task.node) for task in slurm.tasks(job)] == [("RUNNING", "n0"), ("RUNNING", "n1")]
        urgent = slurm.submit("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
        assert [task.state for task in slurm.wait(urgent)] == ["COMPLETED"]
    tasks = slurm.wait(job)
    assert [(task.state, task.exit_code) for task in tasks] == [("COMPLETED", 0)] * 2, logs(config)
    assert [task.restarts for task in tasks] == [1, 1]
    assert_whole(config.parent / "dataset", undisturbed)


def raylets(slurm: SlurmCluster) -> list[psutil.Process]:
    """The raylets of the tasks that run now."""
    found = []
    for process in psutil.process_iter(["name"]):
        with suppress(psutil.Error):
            ours = process.environ().get("SLURM_CONF") == slurm.environment["SLURM_CONF"]
            if ours and process.info["name"] == "raylet":
                found.append(process)
    return found


def test_tasks_fail_by_an_outage_or_a_killed_raylet_and_the_same_line_finishes_them(
    slurm: SlurmCluster, configured: Configure, undisturbed: dict[str, str], s3_server: S3Server, tmp_path: Path
) -> None:
    """The first task ends when a store hasn't responded for 5 s; the second one loses its raylet."""
    config = configured(tmp_path)
    with stopped(s3_server):
        job = submit(slurm, config)
        slurm.wait_for(job, "two raylets", lambda tasks: len(raylets(slurm)) == 2)
        slurm.wait_for(job, "commit of the second task", lambda tasks: has_committed(config, 1))
        (victim,) = [each for each in raylets(slurm) if each.environ()["SLURM_ARRAY_TASK_ID"] == "1"]
        victim.kill()
        outage, killed = slurm.wait(job)
    assert (outage.state, outage.exit_code) == ("FAILED", 3), logs(config)
    assert (killed.state, killed.exit_code != 0) == ("FAILED", True), logs(config)
    left = set(range(SHARDS)) - committed(config)
    assert REMOTE[0] in left
    assert raylets(slurm) == [], "a task left its Ray behind"
    tasks = slurm.wait(submit(slurm, config))
    assert [(task.state, task.exit_code) for task in tasks] == [("COMPLETED", 0)] * 2, logs(config)
    assert_whole(config.parent / "dataset", undisturbed)
