"""Names of files, canonical JSON and the manifest."""

from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalogs.layout import (
    DATA_KINDS,
    CatalogPart,
    DatasetManifest,
    Weights,
    canonical_json,
    commit_name,
    config_sha256,
    data_path,
    differing_keys,
    load_manifest,
    parse_commit_name,
    parse_data_path,
    read_manifest,
)
from infra.errors import UsageError
from infra.storage import Storage, join

DIGEST = "0123456789abcdef" * 4


def manifest(*parts: tuple[int, int]) -> DatasetManifest:
    """A manifest whose catalog has parts of so many rows that begin at such shards; 100 rows a shard."""
    return DatasetManifest(
        name="street",
        config={"images_per_shard": 100},
        config_sha256=config_sha256({"images_per_shard": 100}),
        numerics={"device": "cpu", "threads": 2},
        code_version="0.1.0",
        weights=Weights(name="mobile_sam", sha256=DIGEST),
        catalog=tuple(
            CatalogPart(
                path=f"catalog/part-{i}.parquet", rows=rows, sha256=DIGEST, source_sha256=DIGEST, first_shard=first
            )
            for i, (rows, first) in enumerate(parts)
        ),
        images_per_shard=100,
        policy_date=date(2026, 11, 20),
    )


@given(kind=st.sampled_from(sorted(DATA_KINDS)), shard=st.integers(0, 3_000_000))
def test_names_of_data_files_can_be_read_back(kind: str, shard: int) -> None:
    parsed = parse_data_path(data_path(kind, shard, DIGEST))
    assert parsed == (kind, shard, DIGEST[:12])


@given(shard=st.integers(0, 3_000_000), generation=st.integers(1, 1000))
def test_names_of_commits_can_be_read_back(shard: int, generation: int) -> None:
    assert parse_commit_name(commit_name(shard, generation)) == (shard, generation)


def test_names_are_those_of_the_format() -> None:
    assert data_path("shards", 7, DIGEST) == "shards/sa_000007-0123456789ab.tar"
    assert data_path("masks", 1_234_567, DIGEST) == "masks/sa_1234567-0123456789ab.parquet"
    assert commit_name(0, 1) == "000000.g1.json"


@pytest.mark.parametrize(
    "path",
    [
        "shards/sa_000007-0123456789ab.parquet",
        "images/sa_000007-0123456789ab.tar",
        "shards/sa_7-0123456789ab.tar",
        "shards/sa_0000007-0123456789ab.tar",
        "shards/sa_000007-0123456789AB.tar",
        "shards/.tmp-sa_000007-0123456789ab.tar",
        "shards/sa_000007-0123456789ab.tar.part",
        "report/sa_000007-0123456789ab.tar",
    ],
)
def test_foreign_data_files_are_none_of_ours(path: str) -> None:
    assert parse_data_path(path) is None


@pytest.mark.parametrize(
    "name", ["0.g1.json", "000000.g0.json", "000000.g01.json", "0000000.g1.json", "000000.g1.json.bak", "README"]
)
def test_foreign_commits_are_none_of_ours(name: str) -> None:
    assert parse_commit_name(name) is None


def test_canonical_json_is_one_for_equal_values() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": "é"}) == '{"a":"é","b":[1,2.5,null]}\n'.encode()
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


def test_a_manifest_survives_its_file(tmp_path: Path) -> None:
    storage, uri = Storage(), str(tmp_path / "dataset")
    assert read_manifest(storage, uri) is None
    with pytest.raises(UsageError, match=r"is no dataset: it has no dataset\.json"):
        load_manifest(storage, uri)
    written = manifest((250, 0))
    storage.put(join(uri, "dataset.json"), written.to_json())
    assert load_manifest(storage, uri) == written
    assert written.to_json() == load_manifest(storage, uri).to_json()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'{"schema_version": 2}', "its schema_version is 2; this segmint reads 1"),
        (b'{"schema_version": 1, "name": "x"}', "is no dataset's manifest"),
        (b"[]", "schema_version is None"),
        (b"<html>", "is no dataset's manifest"),
    ],
)
def test_a_foreign_manifest_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        DatasetManifest.from_json(data, "s3://b/dataset.json")
    assert says in str(caught.value)
    assert "s3://b/dataset.json" in str(caught.value)


def test_numerics_have_a_fingerprint_of_their_values() -> None:
    one = manifest((1, 0))
    assert len(one.numerics_fingerprint) == 12
    assert one.model_copy(update={"numerics": {"threads": 2, "device": "cpu"}}).numerics_fingerprint == (
        one.numerics_fingerprint
    )
    assert one.model_copy(update={"numerics": {"threads": 1, "device": "cpu"}}).numerics_fingerprint != (
        one.numerics_fingerprint
    )


def test_shards_of_a_dataset_that_grew() -> None:
    """Each part begins a new shard, and the last shard of a part may be short."""
    grown = manifest((250, 0), (101, 3))
    assert grown.shards == 5
    assert [grown.ordinals(shard) for shard in range(5)] == [(0, 100), (100, 200), (200, 250), (300, 400), (400, 401)]
    with pytest.raises(ValueError, match="there is no shard 5: the dataset has 5"):
        grown.ordinals(5)


def test_differing_keys_are_named_with_their_paths() -> None:
    old = {"name": "a", "masks": {"iou": 0.88, "area": 100}, "license": {"allow": ["A"]}, "gone": 1}
    new = {"name": "a", "masks": {"iou": 0.9, "area": 100.0}, "license": {"allow": ["A", "B"]}, "new": None}
    assert differing_keys(old, new) == ["gone", "license.allow", "masks.area", "masks.iou", "new"]
    assert differing_keys(old, dict(reversed(old.items()))) == []
