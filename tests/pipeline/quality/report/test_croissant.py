"""`croissant.json` is what mlcroissant takes, and names every committed file by its hash."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import mlcroissant
import pytest

from segmint.catalogs.dataset.digest import current_digest
from segmint.catalogs.dataset.manifest import ModelTerms
from segmint.infra.assets import ASSETS
from segmint.operators.rows import IMAGES, MASKS
from segmint.pipeline.quality.report.croissant import croissant_json
from segmint.pipeline.quality.report.facts import Facts
from segmint.pipeline.quality.statistics.values import Statistics
from tests.support.locations import location_of


@pytest.fixture
def described(built_report: Path) -> Path:
    return built_report / "croissant.json"


def test_mlcroissant_takes_it(described: Path) -> None:
    dataset = mlcroissant.Dataset(jsonld=described)
    issues = dataset.metadata.ctx.issues
    assert not issues.errors, issues.report()
    assert json.loads(described.read_text())["conformsTo"] == "http://mlcommons.org/croissant/1.1"
    assert dataset.metadata.ctx.is_v1_1()
    assert [record_set.id for record_set in dataset.metadata.record_sets] == ["images", "masks", "photographs"]


def test_it_carries_the_version_digest(small_dataset: Path, described: Path) -> None:
    value = json.loads(described.read_text())
    assert value["identifier"] == f"sha256:{current_digest(location_of(small_dataset))}"
    assert "version" not in value, "none is recorded"
    made_by = value["isBasedOn"]
    assert (made_by["name"], made_by["license"]) == ("mobile_sam", "https://spdx.org/licenses/Apache-2.0.html")
    assert made_by["identifier"] == f"sha256:{ASSETS['mobile_sam'].sha256}"


def test_it_tells_lineage(report_folder: Path) -> None:
    described = report_folder / "croissant.json"
    metadata = mlcroissant.Dataset(jsonld=described).metadata
    assert not metadata.ctx.issues.errors
    properties = metadata.extra_properties
    assert "Catalog of 8 rows" in properties["prov:wasDerivedFrom"]["prov:label"]
    assert properties["prov:wasGeneratedBy"]["prov:wasAssociatedWith"]["prov:label"] == "segmint 0.4.0"
    assert properties["prov:wasGeneratedBy"]["prov:used"][0]["prov:label"] == "vit_b"
    assert properties["usageInfo"]["odrl:permission"]["odrl:duty"]["odrl:action"] == {"@id": "odrl:attribute"}
    first, second = json.loads(described.read_text())["prov:wasGeneratedBy"]["prov:used"]
    dataset, weights = second["prov:wasDerivedFrom"]
    assert (dataset["@id"], weights) == (f"urn:sha256:{'2' * 64}", {"@id": first["@id"]})


def test_conditions_are_those_of_the_licenses(reported_facts: tuple[Statistics, Facts]) -> None:
    _, facts = reported_facts
    licenses = (("CC-BY-NC-ND-4.0", 4), ("CC0-1.0", 1), ("LicenseRef-CC-BY", 1), (None, 1), ("CC-BY-SA-3.0-DE", 1))
    build = replace(facts.build, model=ModelTerms(terms="ask first"), adding=("segmenter x",))
    value = json.loads(croissant_json(replace(facts, licenses=licenses, build=build), "x"))
    strict, alike, model = value["usageInfo"]
    assert (strict["name"], alike["name"], model["text"]) == ("CC-BY-NC-ND-4.0", "CC-BY-SA-3.0-DE", "ask first")
    actions = [rule["odrl:action"]["@id"] for rule in strict["odrl:prohibition"]]
    assert actions == ["cc:CommercialUse", "cc:DerivativeWorks"]
    duties = [rule["odrl:action"]["@id"] for rule in alike["odrl:permission"]["odrl:duty"]]
    assert duties == ["odrl:attribute", "cc:ShareAlike"]
    assert "odrl:prohibition" not in alike
    masks = next(each for each in value["recordSet"] if each["@id"] == "masks")
    assert [each["prov:label"] for each in masks["prov:wasAttributedTo"]] == ["Segment Anything", "segmenter x"]
    points = next(each for each in masks["field"] if each["@id"] == "masks/point_coords")
    assert (points["isArray"], points["arrayShape"]) == (True, "-1,-1")


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
    from mlcroissant._src.operation_graph.operations import extract  # noqa: PLC2701 - the folder has no option

    monkeypatch.setattr(extract, "EXTRACT_PATH", type(extract.EXTRACT_PATH)(tmp_path))
    dataset = mlcroissant.Dataset(jsonld=described)
    names = {record["photographs/file"].decode(): record for record in dataset.records("photographs")}
    assert sorted(names) == [f"sa_{id}.jpg" for id in (1, 2, 4, 5, 6, 7)]
    assert names["sa_1.jpg"]["photographs/content"].size == (240, 180)
