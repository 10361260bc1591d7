"""Odd JSON in a dataset, as damage or somebody else makes it: each command says what is wrong, or finds nothing wrong.

What is not allowed is an exception that no command expects.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from segmint.catalogs.dataset.commits import Reservation
from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.dataset.outputs import note_output
from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.catalogs.dataset.sweep import sweep
from segmint.catalogs.dataset.tombstones import RemovedImage, TakedownRequest, Tombstone, put_tombstone
from segmint.catalogs.dataset.versions import put_version
from segmint.infra.errors import SegmintError
from segmint.pipeline.corrections.proof import prove
from segmint.pipeline.corrections.repair import repair
from segmint.pipeline.corrections.takedown import list_takedown, read_request
from segmint.pipeline.export.export import ExportOptions, export_dataset
from segmint.pipeline.export.formats import Format
from segmint.pipeline.quality.audit.audit import AuditOptions, audit_dataset
from segmint.pipeline.quality.audit.result import result_lines, to_json
from segmint.pipeline.quality.diff import diff_datasets
from segmint.pipeline.quality.report.report import write_report
from segmint.pipeline.quality.verify import verify_dataset
from segmint.pipeline.quality.view.app import SessionKeys, make_app, open_viewer
from tests.support.json_mutants import mutants
from tests.support.locations import location_of

FILES = ("dataset.json", "dataset.g2.json", "commits/000001.g1.json", "tombstones/*.json", "shards.json")
MORE_FILES = ("versions/1.json", "reservations/*.json", "outputs/*.json")


@pytest.fixture
def dataset(small_dataset: Path, tmp_path: Path) -> Path:
    """A copy of the small dataset with a recorded version, a second generation of its manifest, and a tombstone."""
    folder = Path(shutil.copytree(small_dataset, tmp_path / "dataset"))
    put_version(location_of(folder), "build")
    shutil.copy(folder / "dataset.json", folder / "dataset.g2.json")
    image = RemovedImage(ordinal=99, id=100, image_id="x", uri="x.jpg", sha256="0" * 64)
    gone = Tombstone(request=TakedownRequest(ids=("x",)), reason="test", when="2026-01-01T00:00:00Z", images=(image,))
    put_tombstone(location_of(folder), gone)
    return folder


@pytest.fixture
def used(dataset: Path) -> Path:
    """The same with a reservation and the note of an export; `whole` is a copy next to it."""
    reservation = Reservation(1, 2, ("shards/x",))
    reservation.location(location_of(dataset)).put(reservation.to_json())
    note_output(location_of(dataset), "export", location_of(dataset.parent / "export"), {"a.json": "0" * 64})
    shutil.copytree(dataset, dataset.parent / "whole")
    return dataset


def audited(dataset: Path, _: Path) -> None:
    report = audit_dataset(location_of(dataset), AuditOptions(sample=1, privacy_sample=0))
    assert result_lines(report)
    json.loads(to_json(report))


def read(dataset: Path, _: Path) -> None:
    for sample in open_dataset(str(dataset)):
        assert sample.image.shape[:2] == sample.masks[0].size if sample.masks else True


def viewed(dataset: Path, _: Path) -> None:
    with open_viewer(location_of(dataset)) as viewer:
        access = SessionKeys(8123)
        client = TestClient(make_app(viewer, access), base_url="http://127.0.0.1:8123")
        assert client.get(access.address()).status_code == 200
        for path in ("/api/dataset", "/api/images", "/api/images/4", "/images/4.jpg", "/thumbnails/4.jpg"):
            assert client.get(path).content, path


def exported(dataset: Path, folder: Path) -> None:
    export_dataset(location_of(dataset), ExportOptions(Format.COCO), location_of(folder / "export"))


def reported(dataset: Path, folder: Path) -> None:
    write_report(location_of(dataset), location_of(folder / "report"), options=AuditOptions(sample=1, privacy_sample=0))


def repaired(dataset: Path, folder: Path) -> None:
    repair(location_of(shutil.copytree(dataset, folder / "repaired")))


def verified(dataset: Path, _: Path) -> None:
    assert verify_dataset(location_of(dataset)).lines()


def compared(dataset: Path, _: Path) -> None:
    assert diff_datasets(location_of(dataset), location_of(dataset.parent / "whole")).lines()


def listed(dataset: Path, folder: Path) -> None:
    (folder / "ids.txt").write_text("2\n")
    asked = read_request(location_of(folder / "ids.txt"), None, None)
    assert list_takedown(location_of(dataset), load_manifest(location_of(dataset)), asked, "test").lines()


def proven(dataset: Path, _: Path) -> None:
    assert prove(location_of(dataset), "x").lines()


def swept(dataset: Path, folder: Path) -> None:
    sweep(location_of(shutil.copytree(dataset, folder / "swept")))


Command = Callable[[Path, Path], None]
QUICK: tuple[Command, ...] = (audited, read, viewed, exported, repaired)
ALL: tuple[Command, ...] = (*QUICK, reported, verified, compared, listed, proven, swept)


def unexpected(
    dataset: Path, folder: Path, file: str, count: int, commands: tuple[Command, ...], every: int = 1
) -> list[str]:
    """Run commands on every n-th of `count` forms of a file; return the exceptions that no command expects."""
    (path,) = dataset.glob(file)
    whole = path.read_bytes()
    found = []
    for number, (how, data) in enumerate([*mutants(whole, count, seed=count)][::every]):
        path.write_bytes(data)
        for command in commands:
            scratch = folder / f"{number}-{command.__name__}"
            scratch.mkdir()
            try:
                command(dataset, scratch)
            except SegmintError as error:
                if not str(error).strip() or len(str(error)) > 5000:
                    found.append(f"{file}: {how}: {command.__name__}: a message of {len(str(error))} characters")
            except Exception as error:  # noqa: BLE001 - this is what the test looks for
                found.append(f"{file}: {how}: {command.__name__}: {type(error).__name__}: {str(error)[:200]}")
            shutil.rmtree(scratch)
    path.write_bytes(whole)
    return found


@pytest.mark.parametrize("file", FILES)
def test_odd_json_ends_no_command_unexpectedly(dataset: Path, tmp_path: Path, file: str) -> None:
    assert unexpected(dataset, tmp_path, file, 6, QUICK, every=2) == []


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("file", [*FILES, *MORE_FILES])
def test_much_odd_json_ends_no_command_unexpectedly(used: Path, tmp_path: Path, file: str) -> None:
    assert unexpected(used, tmp_path, file, 100, ALL) == []
