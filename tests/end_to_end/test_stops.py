"""Builds stopped by SIGTERM or Ctrl-C: a clean end in 15 seconds, and the same command then gives the same bytes."""

import os
import random
import shutil
import signal
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import psutil
import pytest

from benchmarks.building.scale import write_build
from segmint.infra.stopping import EXIT_CODE, STOP_S
from segmint.pipeline.corrections.correction import RAY_FROM_SHARDS
from tests.support.builds import NO_DETECTORS, digests, segmint, small_catalog, write_config
from tests.support.runs import (
    STUBBED,
    BuildProcess,
    assert_gone,
    assert_whole,
    finish,
    running,
    timed_build,
    title,
    wait_for,
)
from tests.support.stubbed import write_dataset

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(2400)]

SEED = int(os.environ.get("SEGMINT_STOP_SEED", "20261125"))
SHARDS = 6  # of one image each, two per window
LINE = "interrupted: finished work is kept; run the same command again to resume\n"
RAYS_OWN = ("gcs_server", "raylet", "ray/_private", "ray/dashboard", "ray::IDLE")

RAYS_EXIT_CODE = 1
"""Exit code of a driver that Ray ends because a native thread used the object store after the raylet died."""

CURATE = """
import sys
from segmint.pipeline.building import curate; from segmint.pipeline.building import decide
from segmint.pipeline.commands.cli import main
decide.PART_ROWS = curate.PART_ROWS = 2
sys.argv[1:1] = ["catalog", "curate"]
main()
"""


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_catalog(tmp_path_factory.mktemp("photos"), count=SHARDS)


def configured(folder: Path, catalog: Path) -> Path:
    sizes = {"images_per_shard": 1, "rows_per_block": 1, "window_shards": 2}
    return write_config(folder / "build.yaml", catalog, folder / "dataset", **sizes, deidentify=NO_DETECTORS)


@pytest.fixture(scope="module")
def undisturbed(catalog: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    """Digests of the files of a build that is not stopped, and the seconds it takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = configured(folder, catalog)
    return timed_build(config)


def assert_stops(run: BuildProcess, how: signal.Signals, *, everything: bool = False) -> int:
    """Signal the driver, or every process of a build; it ends in time, with one line. Returns the exit code."""
    began, before = time.monotonic(), run.told()  # earlier runs in the same folder write to the same file
    for process in run.marked() if everything else [run.driver()]:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(how)
    code = run.wait(STOP_S + 10)
    seconds = time.monotonic() - began
    assert seconds < STOP_S + 1, run.told()
    assert "Traceback" not in run.told(), run.told()
    assert "*** SIG" not in run.told(), run.told()  # Ray's native handler, which also aborts after three seconds
    if code == EXIT_CODE:
        assert run.told().count(LINE) == before.count(LINE) + 1, run.told()
        assert run.told().endswith(LINE), run.told()
    print(f"ended with {code} after {seconds:.1f} s")
    return code


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_build_stops_in_the_middle_of_a_window(tmp_path: Path, how: signal.Signals) -> None:
    resources = {"segment": {"actors": 1}, "object_store_memory": 500_000_000}
    config = write_build(tmp_path, 3_000, images_per_shard=30, rows_per_block=16, resources=resources)
    commits = tmp_path / "dataset" / "commits"
    with running(config, **STUBBED) as run:
        wait_for("a commit", lambda: commits.is_dir() and any(commits.iterdir()), run)
        assert assert_stops(run, how) == EXIT_CODE
        assert_gone(run)


@pytest.mark.parametrize("number", range(30))
def test_a_stopped_build_is_finished_by_the_same_command(
    catalog: Path, undisturbed: tuple[dict[str, str], float], tmp_path: Path, number: int
) -> None:
    files, seconds = undisturbed
    chance = random.Random(f"{SEED} {number}")
    config, commits = configured(tmp_path, catalog), tmp_path / "dataset" / "commits"
    moment = chance.uniform(0.5, seconds)  # Python takes up to half a second to reach `main`
    with running(config) as run:
        time.sleep(moment)
        code = assert_stops(run, chance.choice([signal.SIGTERM, signal.SIGINT]))
        assert code in (0, EXIT_CODE), run.told()
        assert_gone(run)
    committed = len(list(commits.glob("*.json"))) if commits.is_dir() else 0
    print(f"SEGMINT_STOP_SEED={SEED}: stopped after {moment:.1f} s and {committed} commits")
    assert finish(config) == 1
    assert_whole(tmp_path / "dataset", files)


def workers(run: BuildProcess) -> list[psutil.Process]:
    """Processes of a build that work on rows: actors, tasks, and their children."""
    driver = run.driver()
    return [each for each in run.marked() if each != driver and not any(name in title(each) for name in RAYS_OWN)]


def test_stopping_every_process_ten_times_rejects_nothing(
    catalog: Path, undisturbed: tuple[dict[str, str], float], tmp_path: Path
) -> None:
    files, seconds = undisturbed
    chance = random.Random(f"{SEED} everything")
    config = configured(tmp_path, catalog)
    for _ in range(10):
        with running(config) as run:
            wait_for("an actor or the end", lambda run=run: bool(workers(run)) or not run.alive())
            time.sleep(chance.uniform(0, 0.3 * seconds))
            assert assert_stops(run, signal.SIGTERM, everything=True) in (0, EXIT_CODE, RAYS_EXIT_CODE), run.told()
            assert_gone(run)
    finish(config)
    assert_whole(tmp_path / "dataset", files)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
def test_stopping_every_worker_ten_times_rejects_nothing(
    catalog: Path, undisturbed: tuple[dict[str, str], float], tmp_path: Path, how: signal.Signals
) -> None:
    files, _ = undisturbed
    chance = random.Random(f"{SEED} workers {how}")
    config = configured(tmp_path, catalog)
    stops = 0
    while stops < 10:
        with running(config) as run:
            while run.alive() and stops < 10:
                time.sleep(chance.uniform(0.5, 4))
                found = workers(run)
                for process in found:
                    with suppress(psutil.NoSuchProcess):
                        process.send_signal(how)
                stops += bool(found)
            assert run.wait() in (0, EXIT_CODE), run.told()
            assert_gone(run)
    finish(config)
    assert_whole(tmp_path / "dataset", files)


@pytest.mark.parametrize("number", range(3))
def test_a_stopped_curation_is_finished_by_the_same_command(tmp_path: Path, number: int) -> None:
    catalog = small_catalog(tmp_path, count=24)
    config = write_config(tmp_path / "build.yaml", catalog, tmp_path / "dataset", curate={})

    def curating(output: str) -> AbstractContextManager[BuildProcess]:
        return running(catalog, "-o", str(tmp_path / output), "--config", str(config), program=("-c", CURATE))

    before = random.Random(f"{SEED} {number}").randrange(1, 10)
    with curating("stopped.parquet") as run:
        parts = tmp_path / "stopped.parquet.curate"
        wait_for(f"{before} parts", lambda: len(list(parts.glob("*/*.parquet"))) >= before, run)
        assert assert_stops(run, signal.SIGTERM) == EXIT_CODE
        assert_gone(run)
    for output in ("stopped.parquet", "undisturbed.parquet"):
        with curating(output) as run:
            assert run.wait() == 0, run.told()
    assert (tmp_path / "stopped.parquet").read_bytes() == (tmp_path / "undisturbed.parquet").read_bytes()


def test_a_stopped_takedown_on_ray_is_finished_by_the_same_command(tmp_path: Path) -> None:
    shards = RAY_FROM_SHARDS + 20
    write_dataset(write_build(tmp_path, 5 * shards, images_per_shard=5))
    dataset, copy, ids = tmp_path / "dataset", tmp_path / "copy", tmp_path / "ids.txt"
    shutil.copytree(dataset, copy)
    ids.write_text("".join(f"image-{5 * shard:09}\n" for shard in range(shards)))
    options = ("--ids", str(ids), "--reason", "test", "--yes")

    def shards_of(folder: Path) -> dict[str, str]:
        return {path: digest for path, digest in digests(folder).items() if path.startswith("shards/")}

    before = shards_of(dataset)
    with running(dataset, *options, program=("-m", "segmint", "takedown")) as run:
        wait_for("a shard without its image", lambda: shards_of(dataset).keys() - before.keys(), run)
        assert assert_stops(run, signal.SIGTERM) == EXIT_CODE
        assert_gone(run)
    assert before.keys() & shards_of(dataset).keys(), "all shards were done"
    for folder in (dataset, copy):
        segmint("takedown", folder, *options)
    assert shards_of(dataset) == shards_of(copy) != before
    segmint("audit", dataset, "--integrity-only")
