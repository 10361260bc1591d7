"""A curation that is killed at a random moment, or runs on two nodes, writes the bytes of one that is not."""

import random
from pathlib import Path

import pytest

from tests.support.builds import write_catalog, write_config, write_photographs
from tests.support.clusters import ray_cluster
from tests.support.runs import BuildProcess, assert_gone, running, title, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(2400)]

ROWS, PART_ROWS = 24, 2
PROGRAM = f"""
import sys
from segmint.pipeline.config.config import load_config
from segmint.pipeline.building import curate; from segmint.pipeline.building import decide
decide.PART_ROWS = curate.PART_ROWS = {PART_ROWS}
curate.run_curate(load_config(sys.argv[1]), sys.argv[2], sys.argv[3])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, each of them twice, with a catalog and a configuration."""
    folder = tmp_path_factory.mktemp("photos")
    names = write_photographs(folder, ROWS // 2)
    rows = [{"uri": name, "license": "CC0-1.0", "image_id": f"{turn}-{name}"} for turn in "ab" for name in names]
    catalog = write_catalog(folder / "catalog.jsonl", rows)
    write_config(folder / "build.yaml", catalog, folder / "dataset", curate={})
    return folder


def curating(folder: Path, output: str, **environment: str) -> BuildProcess:
    arguments = (str(folder / "catalog.jsonl"), str(folder / output))
    return BuildProcess(folder / "build.yaml", *arguments, program=("-c", PROGRAM), **environment)


def curated(folder: Path, output: str, **environment: str) -> bytes:
    run = curating(folder, output, **environment)
    try:
        assert run.wait() == 0, run.told()
    finally:
        run.close()
    return (folder / output).read_bytes()


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> bytes:
    return curated(folder, "undisturbed.parquet")


@pytest.mark.parametrize("number", range(3))
def test_a_killed_curation_goes_on_and_ends_with_the_same_bytes(folder: Path, undisturbed: bytes, number: int) -> None:
    output = f"killed-{number}.parquet"
    before = random.Random(number).randrange(1, ROWS // PART_ROWS)
    run = curating(folder, output)
    try:
        wait_for(f"{before} parts", lambda: len(list(folder.glob(f"{output}.curate/*/*.parquet"))) >= before, run)
        run.kill()
        assert run.wait() == -9
        assert_gone(run)
    finally:
        run.close()
    parts = {path: path.stat().st_mtime_ns for path in folder.glob(f"{output}.curate/*/*.parquet")}
    assert len(parts) >= before
    assert curated(folder, output) == undisturbed
    assert not (folder / f"{output}.curate").exists()


def test_two_nodes_write_the_bytes_of_one(folder: Path, undisturbed: bytes) -> None:
    with ray_cluster(2, 2) as cluster:
        arguments = (str(folder / "catalog.jsonl"), str(folder / "nodes.parquet"))
        with running(folder / "build.yaml", *arguments, program=("-c", PROGRAM), **cluster.environment) as run:
            wait_for(
                "a worker on the second node",
                lambda: any("InspectImages" in title(each) for each in cluster.nodes[1].processes()),
                run,
            )
            assert run.wait() == 0, run.told()
    assert (folder / "nodes.parquet").read_bytes() == undisturbed
