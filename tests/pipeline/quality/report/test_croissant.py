"""`croissant.json` is what mlcroissant takes, and names every committed file by its hash."""

import hashlib
import json
from pathlib import Path

import mlcroissant
import pytest

from segmint.catalogs.dataset.versions.digest import current_digest
from segmint.infra.assets.known import ASSETS
from segmint.operators.schemas import IMAGES, MASKS
from tests.support.locations import location_of


@pytest.fixture
def described(built_report: Path) -> Path:
    return built_report / "croissant.json"


def test_mlcroissant_takes_it(described: Path) -> None:
    dataset = mlcroissant.Dataset(jsonld=described)
    issues = dataset.metadata.ctx.issues
    assert not issues.errors, issues.report()
    assert [record_set.id for record_set in dataset.metadata.record_sets] == ["images", "masks", "photographs"]


def test_it_carries_the_version_digest(small_dataset: Path, described: Path) -> None:
    value = json.loads(described.read_text())
    assert value["identifier"] == f"sha256:{current_digest(location_of(small_dataset))}"
    assert "version" not in value, "none is recorded"
    made_by = value["isBasedOn"]
    assert (made_by["name"], made_by["license"]) == ("mobile_sam", "https://spdx.org/licenses/Apache-2.0.html")
    assert made_by["identifier"] == f"sha256:{ASSETS['mobile_sam'].sha256}"


def test_every_committed_file_is_where_it_says_and_has_its_hash(small_dataset: Path, described: Path) -> None:
    value = json.loads(described.read_text())
    objects = [entry for entry in value["distribution"] if entry["@type"] == "cr:FileObject"]
    named = set()
    for entry in objects:
        path = (described.parent / entry["contentUrl"]).resolve()
        assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]
        assert entry["contentSize"] == f"{path.stat().st_size} B"
        named.add(path.relative_to(small_dataset.resolve()).as_posix())
    folders = ("shards", "images", "masks", "rejects")
    assert named == {f"{folder}/{path.name}" for folder in folders for path in (small_dataset / folder).iterdir()}


def test_its_fields_are_the_columns(described: Path) -> None:
    value = json.loads(described.read_text())
    fields = {record["@id"]: [field["@id"] for field in record["field"]] for record in value["recordSet"]}
    assert fields["images"] == [f"images/{name}" for name in IMAGES.names]
    assert fields["masks"] == [f"masks/{name}" for name in MASKS.names]
    assert fields["photographs"] == ["photographs/file", "photographs/content"]


def test_mlcroissant_reads_the_photographs(described: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mlcroissant._src.operation_graph.operations import extract

    monkeypatch.setattr(extract, "EXTRACT_PATH", type(extract.EXTRACT_PATH)(tmp_path))
    dataset = mlcroissant.Dataset(jsonld=described)
    names = {record["photographs/file"].decode(): record for record in dataset.records("photographs")}
    assert sorted(names) == [f"sa_{id}.jpg" for id in (1, 2, 4, 5, 6, 7)]
    assert names["sa_1.jpg"]["photographs/content"].size == (240, 180)
