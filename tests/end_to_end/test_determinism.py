"""The same bytes for any number of actors, after a SIGKILL, and from ranges of shards."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.builds import ROOT, digests, segmint, small_catalog, write_config

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_catalog(tmp_path_factory.mktemp("photos"), count=10)


@pytest.fixture(scope="module")
def undisturbed(catalog: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of the files that one segment actor writes in one go."""
    folder = tmp_path_factory.mktemp("undisturbed")
    segmint("build", write_config(folder / "build.yaml", catalog, folder / "dataset"))
    return digests(folder / "dataset")


def test_three_segment_actors_write_what_one_writes(catalog: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    pools = {"segment": {"actors": 3, "num_cpus": 1}, "prepare": {"actors": 2, "num_cpus": 0.5}}
    config = write_config(tmp_path / "build.yaml", catalog, tmp_path / "dataset", resources=pools, rows_per_block=1)
    segmint("build", config)
    assert digests(tmp_path / "dataset") == undisturbed


def test_a_killed_run_is_finished_by_the_next(catalog: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    config = write_config(tmp_path / "build.yaml", catalog, tmp_path / "dataset")
    driver = subprocess.Popen(
        [sys.executable, "-m", "segmint", "build", str(config)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    commits = tmp_path / "dataset" / "commits"
    deadline = time.monotonic() + 180
    while not (commits.is_dir() and any(commits.glob("*.json"))):
        assert driver.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline, "no shard was committed"
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert len(list(commits.glob("*.json"))) < 4, "the run was already whole when it was killed"
    segmint("build", config)
    finished = digests(tmp_path / "dataset")
    assert {path: digest for path, digest in finished.items() if path in undisturbed} == undisturbed
    assert set(finished) == set(undisturbed)


def test_ranges_of_shards_make_up_the_whole(catalog: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    config = write_config(tmp_path / "build.yaml", catalog, tmp_path / "dataset")
    segmint("build", config, "--shards", "2:4")
    assert sorted(path.name for path in (tmp_path / "dataset" / "commits").iterdir()) == [
        "000002.g1.json",
        "000003.g1.json",
    ]
    segmint("build", config, "--shards", "0:2")
    segmint("build", config)
    assert digests(tmp_path / "dataset") == undisturbed
