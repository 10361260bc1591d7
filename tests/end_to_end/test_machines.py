"""A build on two machines in miniature writes the bytes of one machine, even if one is cut off for two minutes or dies.

The machines are Linux namespaces with their own networks and disks (`tests/support/machines.py`), the catalog and the
dataset are on an S3 server that they reach over their switch, and Ray runs as on separate machines.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.builds import AS_SHIPPED, NO_DETECTORS, digests, segmint, small_catalog, write_config
from tests.support.everything import download, upload
from tests.support.machines import HOST, Machine, RayMachines, Switch, switched_on
from tests.support.runs import BuildProcess, running, title, wait_for
from tests.support.s3_server import ACCESS_KEY, SECRET_KEY, S3Server

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.long, pytest.mark.timeout(2400)]

IMAGES = 64
"""Rows of the catalog. Two cores need longer for them than `CUT_S`, so the build doesn't end during the cut."""

SETTINGS: dict[str, Any] = {
    "deidentify": NO_DETECTORS,
    "images_per_shard": 2,
    "model": AS_SHIPPED,
    "rows_per_block": 1,
    # A node holds one segment actor, so the two that a build starts by default are on different machines.
    "resources": {"prepare": {"actors": [1, 2]}, "segment": {"num_cpus": 3}},
}

CPUS = 5
"""Logical CPUs of each node: enough for one segment actor with three, and for all that runs beside it."""

CUT_S = 120
"""Longer than Ray needs to declare a node that doesn't answer lost."""


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
    variables = {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    server = S3Server(tmp_path_factory.mktemp("store"), HOST)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        server.start()
        yield server
        server.stop()


@dataclass(frozen=True)
class Place:
    """Bucket of a build, and the storage that reaches it from this process."""

    bucket: str
    storage: Storage

    @property
    def dataset(self) -> Location:
        return Location(self.storage, f"s3://{self.bucket}/set")

    def commits(self) -> int:
        """Return the number of committed shards."""
        return sum(1 for _ in (self.dataset / "commits").walk())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_catalog(tmp_path_factory.mktemp("photos"), count=IMAGES)


@pytest.fixture(scope="module")
def undisturbed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of the files that this machine writes alone, with a local Ray."""
    folder = tmp_path_factory.mktemp("undisturbed")
    alone = SETTINGS | {"resources": {"segment": {"actors": 1}}}
    segmint("build", write_config(folder / "build.yaml", photos, folder / "dataset", **alone), timeout=1200)
    return digests(folder / "dataset")


@pytest.fixture
def place(store: S3Server, photos: Path) -> Place:
    place = Place(store.make_bucket(), Storage({"s3://": {"endpoint_url": store.endpoint_url}}))
    upload(photos.parent, Location(place.storage, f"s3://{place.bucket}/in"))
    return place


@contextmanager
def building(machines: RayMachines, place: Place, store: S3Server, tmp_path: Path) -> Iterator[BuildProcess]:
    """A build whose driver is on the head."""
    config = write_config(
        tmp_path / "build.yaml",
        f"s3://{place.bucket}/in/catalog.jsonl",
        f"s3://{place.bucket}/set",
        storage={"s3://": {"endpoint_url": store.endpoint_url}},
        **SETTINGS,
    )
    machines.head.receive(config)
    with running(config, "--json", prefix=machines.head.prefix, **machines.environment) as run:
        yield run


def segments(machine: Machine) -> bool:
    """Whether a segment actor runs on a machine."""
    return any("MapWorker(MapBatches(Segment))" in title(process) for process in machine.processes())


def wait_for_work(machines: RayMachines, place: Place, run: BuildProcess) -> None:
    """Return when both machines segment, and the first of many shards is committed."""
    for machine in (machines.head, machines.worker):
        wait_for("a segment actor on each machine", lambda machine=machine: segments(machine), run)
    wait_for("a committed shard", place.commits, run)
    assert place.commits() < IMAGES // 4, run.told()


def assert_complete(run: BuildProcess, place: Place, undisturbed: dict[str, str], tmp_path: Path) -> None:
    """The build has ended by itself with the bytes of one machine, and counted each row once."""
    assert run.wait(1500) == 0, run.told()
    report = json.loads(run.told()[run.told().rindex("\n{\n") :])
    assert (report["rows"], report["written"], report["missing"]) == (IMAGES, IMAGES - 2, []), run.told()
    assert report["rejected"] == {"license_not_allowed": 1, "not_found": 1}
    assert report["built_rows"] == IMAGES, report
    assert digests(download(place.dataset, tmp_path / "written")) == undisturbed
    assert list(audit_integrity(place.dataset).findings) == []


def test_two_machines_write_what_one_writes(
    switch: Switch, store: S3Server, place: Place, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    with switched_on(switch, CPUS) as machines, building(machines, place, store, tmp_path) as run:
        wait_for_work(machines, place, run)
        assert_complete(run, place, undisturbed, tmp_path)
        assert machines.worker.runs_ray(), machines.worker.told()


def test_a_build_survives_a_machine_that_is_cut_off_and_comes_back(
    switch: Switch, store: S3Server, place: Place, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    with switched_on(switch, CPUS) as machines, building(machines, place, store, tmp_path) as run:
        wait_for_work(machines, place, run)
        machines.worker.cut_off()
        time.sleep(CUT_S)
        assert run.alive(), f"the build ended before the machine was back:\n{run.told()}"
        machines.worker.connect_again()
        # Ray has given the node up, so it ends when it hears of that. A service manager would start it again.
        wait_for("the end of the node that was cut off", lambda: not machines.worker.runs_ray(), timeout=120)
        machines.start_worker()
        assert_complete(run, place, undisturbed, tmp_path)


def test_a_build_survives_a_machine_that_dies(
    switch: Switch, store: S3Server, place: Place, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    with switched_on(switch, CPUS) as machines, building(machines, place, store, tmp_path) as run:
        wait_for_work(machines, place, run)
        machines.worker.power_off()
        assert_complete(run, place, undisturbed, tmp_path)
