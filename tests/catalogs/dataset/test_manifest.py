"""The manifest of a dataset: its file, its shards, its generations."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from segmint.catalogs.dataset.manifest import (
    CatalogPart,
    DatasetManifest,
    ModelWeights,
    load_latest_manifest,
    load_manifest,
    manifest_generations,
    manifest_name,
    parse_manifest_name,
    put_dataset_id,
    put_manifest,
    read_dataset_id,
    read_generation,
    read_latest_manifest,
    read_manifest,
)
from segmint.catalogs.layout import json_sha256
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import join
from segmint.infra.version import VERSION
from tests.support.lineages import chain_of
from tests.support.locations import location_of

DIGEST = "0123456789abcdef" * 4


def manifest(*parts: tuple[int, int]) -> DatasetManifest:
    """A manifest with parts given as (rows, first shard); 100 rows per shard."""
    return DatasetManifest(
        name="street",
        config={"images_per_shard": 100},
        config_sha256=json_sha256({"images_per_shard": 100}),
        numerics={"device": "cpu", "threads": 2},
        code_version="0.4.0",
        weights=ModelWeights(name="mobile_sam", sha256=DIGEST),
        catalog=tuple(
            CatalogPart(
                path=f"catalog/part-{i}.parquet", rows=rows, sha256=DIGEST, source_sha256=DIGEST, first_shard=first
            )
            for i, (rows, first) in enumerate(parts)
        ),
        images_per_shard=100,
        policy_date=date(2026, 11, 20),
    )


def test_commits_record_all_that_determines_a_shard_but_not_its_rows() -> None:
    first = manifest((100, 0))
    same = [manifest((100, 0), (7, 1)), first.model_copy(update={"licenses": {"CC0-1.0": 3}, "name": "x"})]
    assert {each.build_sha256 for each in same} == {first.build_sha256}
    pinned = (
        f'{{"config_sha256":"{first.config_sha256}","images_per_shard":100,"policy_date":"2026-11-20",'
        f'"weights":{{"name":"mobile_sam","sha256":"{DIGEST}"}}}}\n'
    )
    assert first.build_sha256 == hashlib.sha256(pinned.encode()).hexdigest()


def test_names_of_generations_can_be_read_back() -> None:
    for generation, name in ((1, "dataset.json"), (2, "dataset.g2.json"), (10, "dataset.g10.json")):
        assert manifest_name(generation) == name
        assert parse_manifest_name(name) == generation


@pytest.mark.parametrize(
    "name",
    [
        *("dataset.g1.json", "dataset.g0.json", "dataset.g02.json", "dataset.g2.json.bak", ".tmp-dataset.g2.json"),
        "dataset.g1\u0662.json",  # a digit, but not of ASCII
    ],
)
def test_foreign_names_are_no_generation(name: str) -> None:
    assert parse_manifest_name(name) is None


def test_the_highest_generation_holds(tmp_path: Path) -> None:
    location = location_of(tmp_path / "dataset")
    assert read_latest_manifest(location) is None
    manifests = {number: manifest((100 * number, 0)) for number in (1, 2, 10)}
    for number, written in manifests.items():
        assert put_manifest(location, written, number)
        assert load_latest_manifest(location) == (written, number)
        assert load_manifest(location) == written
    assert manifest_generations(location) == [1, 2, 10]
    assert read_generation(location, 2) == manifests[2]
    assert read_generation(location, 3) is None


def test_a_generation_is_put_once(tmp_path: Path) -> None:
    """If eight writers put one generation at once, one wins; putting the same manifest again succeeds too."""
    location = location_of(tmp_path / "dataset")
    put_manifest(location, manifest((100, 0)), 1)
    grown = [manifest((100, 0), (rows, 1)) for rows in range(1, 9)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda one: put_manifest(location, one, 2), grown))
    assert won.count(True) == 1
    winner = grown[won.index(True)]
    assert load_latest_manifest(location) == (winner, 2)
    assert put_manifest(location, winner, 2)
    assert read_generation(location, 1) == manifest((100, 0))


def test_of_several_writers_one_gives_the_dataset_its_id(tmp_path: Path) -> None:
    location = location_of(tmp_path / "dataset")
    assert read_dataset_id(location) is None
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: put_dataset_id(location), range(8)))
    data = (location / "id.json").read()
    assert data == b'{"dataset_id":"%s"}\n' % str(read_dataset_id(location)).encode()
    put_dataset_id(location_of(tmp_path / "other"))
    assert read_dataset_id(location_of(tmp_path / "other")) != read_dataset_id(location)
    for damaged in (data[:-2], data.upper(), data * 100, b""):
        (location / "id.json").put(damaged)
        assert read_dataset_id(location) is None


def test_a_manifest_survives_its_file(tmp_path: Path) -> None:
    storage, uri = Storage(), str(tmp_path / "dataset")
    location = Location(storage, uri)
    assert read_manifest(location) is None
    with pytest.raises(UsageError, match=r"is not a segmint dataset: no dataset\.json"):
        load_manifest(location)
    written = manifest((250, 0))
    storage.put(join(uri, "dataset.json"), written.to_json())
    assert load_manifest(location) == written
    assert written.to_json() == load_manifest(location).to_json()
    assert b"lineage" not in written.to_json()


def test_the_round_of_a_dataset_follows_from_its_lineage() -> None:
    """A manifest without a lineage has no such field, and is of round 0."""
    plain = manifest((250, 0))
    trained = plain.model_copy(update={"lineage": chain_of(DIGEST, "1" * 64, "2" * 64)})
    assert (plain.round, trained.round) == (0, 2)
    assert DatasetManifest.from_json(trained.to_json()) == trained
    assert DatasetManifest.from_json(plain.to_json().replace(b"{", b'{"lineage":[],', 1)) == plain


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (
            b'{"schema_version": 9}',
            f"has schema_version 9, and segmint {VERSION} reads only 3 and 4: open the dataset with the segmint that",
        ),
        (
            b'{"schema_version": 2, "code_version": "4.2.0"}',
            f"has schema_version 2, and segmint {VERSION} reads only 3 and 4: open the dataset with segmint 4.2.0, or",
        ),
        (b'{"schema_version": true}', "its schema_version is True, expected 4"),
        (b'{"schema_version": 3, "name": "x"}', "is not a dataset's manifest: config: "),
        (b"[]", "schema_version is None"),
        (b"<html>", "is not a dataset's manifest"),
    ],
)
def test_a_foreign_manifest_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        DatasetManifest.from_json(data, "s3://b/dataset.json")
    assert says in str(caught.value)
    assert "s3://b/dataset.json" in str(caught.value)


@pytest.mark.parametrize(
    ("stages", "says"), [([], "stages: expected an object, not list"), ({"blur": 1}, "stages.blur: expected an object")]
)
def test_sections_of_another_type_are_refused(stages: Any, says: str) -> None:
    values = manifest().model_dump(mode="json")
    with pytest.raises(ValidationError, match=says):
        DatasetManifest.model_validate({**values, "config": {"stages": stages}})


def test_a_manifest_that_is_nested_too_deep_is_refused() -> None:
    deep = b"[" * 500 + b"]" * 500
    data = manifest((250, 0)).to_json().replace(b'"threads":2', b'"threads":' + deep)
    with pytest.raises(UsageError, match="is not a dataset's manifest"):
        DatasetManifest.from_json(data)
