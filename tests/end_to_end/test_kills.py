"""Whole runs, killed partly or entirely at random moments: the final result equals that of an undisturbed run byte for
byte."""

import os
import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest

from tests.support.builds import AS_SHIPPED, small_catalog, write_config
from tests.support.clusters import ray_cluster
from tests.support.runs import BuildProcess, assert_gone, assert_whole, finish, running, timed_build, title, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(2400)]

SEED = int(os.environ.get("SEGMINT_KILL_SEED", "20261120"))
RESOURCES = {"prepare": {"actors": [1, 2]}}
SHARDS = 10  # of one image each, so that much is left to do after a commit


def is_prepare_actor(process: psutil.Process) -> bool:
    return "MapWorker(MapBatches(Prepare))" in title(process)


def is_segment_actor(process: psutil.Process) -> bool:
    return "MapWorker(MapBatches(Segment))" in title(process)


def is_prepare_child(process: psutil.Process) -> bool:
    parent = process.parent()
    return "multiprocessing.spawn" in title(process) and parent is not None and is_prepare_actor(parent)


def is_writer(process: psutil.Process) -> bool:
    return title(process).startswith("ray::write_shard")


WORKERS: dict[str, Callable[[psutil.Process], bool]] = {
    "prepare actor": is_prepare_actor,
    "segment actor": is_segment_actor,
    "prepare child": is_prepare_child,
    "shard writer": is_writer,
}
EARLY = ("prepare actor", "prepare child")
"""Processes that are gone before the first commits: Ray ends the actors of a finished stage."""

ROUNDS = {"driver": 4, "prepare actor": 3, "segment actor": 3, "prepare child": 3, "shard writer": 4, "node": 3}
KILLS = [(victim, number) for victim, rounds in ROUNDS.items() for number in range(rounds)]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_catalog(tmp_path_factory.mktemp("photos"), count=SHARDS)


def configured(folder: Path, catalog: Path) -> Path:
    return write_config(
        folder / "build.yaml",
        catalog,
        folder / "dataset",
        images_per_shard=1,
        rows_per_block=1,
        resources=RESOURCES,
        stall_timeout=120,
        model=AS_SHIPPED,
    )


@pytest.fixture(scope="module")
def undisturbed(catalog: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    """Digests of the files of a build that is not killed, and the seconds it takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = configured(folder, catalog)
    return timed_build(config)


def living(run: BuildProcess, kind: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    found = []
    for process in run.below():
        try:
            if kind(process):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def random_moment(run: BuildProcess, commits: Path, seconds: float, chance: random.Random) -> None:
    """Wait for a random commit of the first half, or for a random part of the time before the first."""
    before = chance.randrange(SHARDS // 2)
    if before == 0:
        time.sleep(chance.uniform(0, 0.3) * seconds)
    wait_for(f"commit {before}", lambda: len(list(commits.glob("*.json"))) >= before, run)


def strike(run: BuildProcess, victim: str, chance: random.Random) -> None:
    """Send SIGKILL to the driver, or to a process of a given kind as soon as there is one."""
    if victim == "driver":
        run.kill()
        return

    if victim in EARLY:
        wait_for(victim, lambda: living(run, WORKERS[victim]), run)
        time.sleep(chance.uniform(0, 1.5))

    def hit() -> bool:
        found = living(run, WORKERS[victim])
        try:
            chance.choice(found).kill()
        except (IndexError, psutil.NoSuchProcess):
            return False
        return True

    wait_for(victim, hit, run)


@pytest.mark.parametrize(("victim", "number"), KILLS)
def test_a_killed_build_is_finished_by_the_next(
    catalog: Path, undisturbed: tuple[dict[str, str], float], tmp_path: Path, victim: str, number: int
) -> None:
    files, seconds = undisturbed
    chance = random.Random(f"{SEED} {victim} {number}")
    config, commits = configured(tmp_path, catalog), tmp_path / "dataset" / "commits"
    with ray_cluster(6, 6) if victim == "node" else nullcontext() as cluster:
        environment = cluster.environment if cluster else {}
        with running(config, **environment) as run:
            if cluster:
                lost = cluster.nodes[1]
                wait_for("an actor there", lambda: any("MapWorker" in title(each) for each in lost.processes()), run)
                random_moment(run, commits, seconds, chance)
                assert run.alive(), run.told()
                lost.kill()
            else:
                if victim not in EARLY:
                    random_moment(run, commits, seconds, chance)
                strike(run, victim, chance)
            committed = len(list(commits.glob("*.json")))
            code = run.wait()
            assert code == -9 if victim == "driver" else code in (0, 3), run.told()
            assert_gone(run)
        more = finish(config, **environment)
    print(f"SEGMINT_KILL_SEED={SEED}: {victim} killed after {committed} commits: {code}, then {more} more")
    assert_whole(tmp_path / "dataset", files)
