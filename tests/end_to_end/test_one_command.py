"""The one command from photographs to a dataset, killed during its scan and during its build: the same bytes.

Most of a build's time is the start of its processes, so only the long test kills a build. The other one finishes a
dataset whose first shards are there, as after a kill (`test_crash_matrix.py` kills builds at every step).
"""

import hashlib
from pathlib import Path

import pytest

from benchmarks.building.pace import IMAGE_S
from benchmarks.building.stubs import StubbedPrepare, StubbedSegment
from segmint.infra.ray_session import Cluster
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.pipeline.building.photographs import open_photographs
from segmint.pipeline.building.request import parse_request
from tests.support.builds import NO_DETECTORS, ONE_EACH, segmint_here
from tests.support.everything import upload
from tests.support.runs import STUBBED, assert_gone, running, wait_for
from tests.support.s3_server import S3Server
from tests.support.stubbed import write_dataset

pytestmark = [pytest.mark.ray, pytest.mark.s3]

SETTINGS = {
    "images_per_shard": 15,
    "rows_per_block": 5,
    "window_shards": 8,
    "resources": ONE_EACH,
    "deidentify": NO_DETECTORS,
    "model": {"device": "cpu", "threads": 1, "kernels": "torch"},
}
OPTIONS = ["--license", "CC0-1.0", *(word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}"))]

WITHOUT_LOG = """
import sys
sys.argv.pop(1)
"""
"""Removes the name of the run's log, which `running` passes first."""

COMMAND = """
from segmint.pipeline.commands.cli import main
sys.argv.insert(1, "build")
main()
"""

SLOW_SCAN = """
import time
import segmint.catalogs.source.scan as scanning
read_rows = scanning._rows

def slow_rows(*arguments):
    time.sleep(0.3)
    return read_rows(*arguments)

scanning._rows = slow_rows
"""


def write_photographs(folder: Path) -> Path:
    """120 photographs that the stubs never read, of which one states a license that isn't allowed."""
    folder.mkdir(parents=True)
    for number in range(120):
        (folder / f"{number:03}.jpg").touch()
    (folder / "007.jpg.license").write_text("CC-BY-NC-4.0")
    return folder


def contents(place: Location) -> dict[str, str]:
    """SHA-256 of every file, by its name, without those that have a time or an id."""
    return {
        entry.name: hashlib.sha256((place / entry.name).read()).hexdigest()
        for entry in place.walk()
        if entry.name != "id.json" and not entry.name.startswith("versions/")
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of a dataset that nothing disturbed, written without Ray."""
    folder = tmp_path_factory.mktemp("alone")
    overrides = OPTIONS[3::2]
    request = parse_request(
        str(write_photographs(folder / "photos")), str(folder / "dataset"), "CC0-1.0", [], overrides
    )
    open_photographs(request)
    write_dataset(Path(request.config_file))
    return contents(Location(Storage(), request.output))


@pytest.mark.parametrize("store", ["local", pytest.param("s3", marks=pytest.mark.long)])
def test_a_killed_command_is_finished_by_the_same_command(
    store: str,
    undisturbed: dict[str, str],
    tmp_path: Path,
    local_ray: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    photographs = write_photographs(tmp_path / "photos")
    root, storage, options = Location(Storage(), str(tmp_path)), Storage(), list(OPTIONS)
    if store == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        storage = Storage({"s3://": {"endpoint_url": server.endpoint_url}})
        root = Location(storage, f"s3://{request.getfixturevalue('s3_bucket')}")
        upload(photographs, root / "photos")
        options += ["--set", f'storage."s3://".endpoint_url={server.endpoint_url}']
    command = [str(root / "photos"), "-o", str(root / "dataset"), *options]
    log, scratch = tmp_path / "run", tmp_path / "scratch"
    scratch.mkdir()
    python, stubbed = STUBBED["program"]
    environment = {"PYTHONPATH": STUBBED["PYTHONPATH"], IMAGE_S: "0.04"}

    program = (python, WITHOUT_LOG + SLOW_SCAN + COMMAND)
    with running(log, *command, program=program, **environment, TMPDIR=str(scratch)) as run:
        wait_for("scan", lambda: list(scratch.glob("segmint-scratch-*/catalog")), run)
        run.kill()
        run.wait()
    assert {entry.name.partition("/")[0] for entry in root.walk()} <= {"photos", "run.log", "scratch"}

    if store == "local":
        asked = parse_request(command[0], command[2], "CC0-1.0", [], options[3::2])
        open_photographs(asked)
        write_dataset(Path(asked.config_file), shards=3)
    else:
        with running(log, *command, program=(python, WITHOUT_LOG + stubbed), **environment) as run:
            wait_for("commit", lambda: (root / "dataset/commits").list(), run)
            run.kill()
            run.wait()
            assert_gone(run)
    assert 0 < len((root / "dataset/commits").list()) < 8

    monkeypatch.setattr("segmint.pipeline.build.Prepare", StubbedPrepare)
    monkeypatch.setattr("segmint.pipeline.build.Segment", StubbedSegment)
    printed = segmint_here("build", *command)
    assert "not allowed          1 CC-BY-NC-4.0: --allow CC-BY-NC-4.0" in printed
    assert {**contents(root / "dataset"), "shards.json": ""} == {**undisturbed, "shards.json": ""}
    assert len([entry for entry in root.list() if entry.name.endswith(".parquet")]) == 1
    assert "nothing to do" in segmint_here("build", *command)
