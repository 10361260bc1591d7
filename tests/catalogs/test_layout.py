"""File names, canonical JSON and differing keys."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segmint.catalogs.layout import (
    DATA_KINDS,
    annotation_name,
    canonical_json,
    commit_name,
    data_path,
    differing_keys,
    image_name,
    image_stem,
    is_part_path,
    parse_commit_name,
    parse_data_path,
    part_path,
)

DIGEST = "0123456789abcdef" * 4


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
    assert (image_stem(7), image_name(7), annotation_name(7)) == ("sa_7", "sa_7.jpg", "sa_7.json")
    assert part_path(12, DIGEST) == "catalog/part-12-0123456789ab.parquet"


@pytest.mark.parametrize(
    "path",
    [
        "shards/sa_000007-0123456789ab.parquet",
        "images/sa_000007-0123456789ab.tar",
        "shards/sa_7-0123456789ab.tar",
        "shards/sa_0000007-0123456789ab.tar",
        "shards/sa_000007-0123456789AB.tar",
        "shards/sa_00000\u0667-0123456789ab.tar",
        "shards/.tmp-sa_000007-0123456789ab.tar",
        "shards/sa_000007-0123456789ab.tar.part",
        "report/sa_000007-0123456789ab.tar",
    ],
)
def test_foreign_data_files_are_not_recognized(path: str) -> None:
    assert parse_data_path(path) is None


@pytest.mark.parametrize(
    "name",
    [
        *("0.g1.json", "000000.g0.json", "000000.g01.json", "0000000.g1.json", "000000.g1.json.bak", "README"),
        "000000.g1\u0662.json",  # a digit, but not of ASCII
    ],
)
def test_foreign_commits_are_not_recognized(name: str) -> None:
    assert parse_commit_name(name) is None


def test_parts_of_the_catalog_are_recognized_by_name() -> None:
    assert is_part_path(part_path(0, DIGEST))
    assert is_part_path(part_path(10, DIGEST))
    for name in (
        "part-01.parquet",
        "part-1-0123.parquet",
        "part-0.parquet",
        "deep/part-0-0123456789ab.parquet",
        "part-.parquet",
    ):
        assert not is_part_path(f"catalog/{name}")


def test_equal_values_have_the_same_canonical_json() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": "é"}) == '{"a":"é","b":[1,2.5,null]}\n'.encode()
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


def test_differing_keys_are_listed_with_their_paths() -> None:
    old = {"name": "a", "masks": {"iou": 0.88, "area": 100}, "license": {"allow": ["A"]}, "gone": 1}
    new = {"name": "a", "masks": {"iou": 0.9, "area": 100.0}, "license": {"allow": ["A", "B"]}, "new": None}
    assert differing_keys(old, new) == ["gone", "license.allow", "masks.area", "masks.iou", "new"]
    assert differing_keys(old, dict(reversed(old.items()))) == []
