"""Tombstones: the same request finds its tombstone at any time, and a damaged one is refused."""

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segmint.catalogs.dataset.tombstones import (
    NO_NAMES,
    RemovedImage,
    RemovedNames,
    TakedownRequest,
    Tombstone,
    by_shard,
    damaged_tombstones,
    put_tombstone,
    read_tombstones,
    removed_images,
)
from segmint.catalogs.layout import DamagedDatasetError
from segmint.catalogs.parquet import NORMALIZED
from segmint.infra.uris import plain_form
from tests.support.locations import location_of


def tombstone(*ordinals: int, when: str = "2026-01-01T00:00:00Z", reason: str = "request") -> Tombstone:
    images = tuple(RemovedImage(ordinal=o, id=o + 1, image_id=f"i{o}", uri=f"{o}.jpg", sha256=None) for o in ordinals)
    return Tombstone(request=TakedownRequest(license="L"), reason=reason, when=when, images=images)


def test_the_same_takedown_has_one_tombstone_with_its_first_time(tmp_path: Path) -> None:
    dataset = location_of(tmp_path)
    first = tombstone(1, 2)
    put_tombstone(dataset, first)
    put_tombstone(dataset, tombstone(1, 2, when="2027-01-01T00:00:00Z"))
    assert read_tombstones(dataset) == [first]
    for other in (tombstone(1), tombstone(1, 2, reason="otherwise")):
        put_tombstone(dataset, other)
        assert other in read_tombstones(dataset)
    assert len(read_tombstones(dataset)) == 3


def test_ordinals_of_all_tombstones_by_shard() -> None:
    taken = removed_images([tombstone(1, 7), tombstone(3, 7)])
    assert sorted(taken) == [1, 3, 7]
    assert by_shard(taken, 3) == {0: {1}, 1: {3}, 2: {7}}


def test_another_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "tombstones").mkdir()
    (tmp_path / "tombstones" / "x.json").write_text("[]")
    with pytest.raises(DamagedDatasetError, match=r"tombstones/x\.json is not a tombstone"):
        read_tombstones(location_of(tmp_path))
    assert read_tombstones(location_of(tmp_path / "nowhere")) == []
    (tmp_path / "tombstones" / "x.json").write_bytes(tombstone(7).to_json().replace(b":7,", b":%d," % 2**70))
    with pytest.raises(DamagedDatasetError, match=r"tombstones/x\.json is not a tombstone"):
        read_tombstones(location_of(tmp_path))
    assert read_tombstones(location_of(tmp_path / "nowhere")) == []


def test_any_changed_byte_of_a_tombstone_is_found(tmp_path: Path) -> None:
    put_tombstone(location_of(tmp_path), tombstone(1, 2))
    (path,) = (tmp_path / "tombstones").iterdir()
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert list(damaged_tombstones(location_of(tmp_path))) == [f"tombstones/{path.name}"], whole[place:]
    path.write_bytes(whole)
    path.rename(path.with_name(tombstone(1).name))
    with pytest.raises(DamagedDatasetError, match=r"was changed: .* Run `segmint repair"):
        read_tombstones(location_of(tmp_path))


@given(
    st.lists(st.sampled_from(["a", "b.jpg", ".", "..", "", "S3:", "s3:", "file:", "FILE:"]), min_size=1).map("/".join)
)
def test_a_whole_column_is_compared_as_each_uri_is(uri: str) -> None:
    row = {**dict.fromkeys(NORMALIZED.names), "ordinal": 0, "id": 1, "image_id": "x", "uri": uri}
    batch = pa.RecordBatch.from_pylist([row], schema=NORMALIZED)
    for known in ("a", "/a/b.jpg", "s3://a", "a/b.jpg", "."):
        names = RemovedNames(uris=frozenset([known]))
        assert names.marks(batch).to_pylist() == [names.names_source(uri)] == [plain_form(uri) == known]


def test_rows_are_found_by_each_name() -> None:
    names = RemovedNames.of([RemovedImage(ordinal=0, id=1, image_id="i", uri="./u", sha256="AB")])
    rows = [("i", "x", None), ("x", "u", None), ("x", "x", "ab"), ("x", "x", "cd"), ("u", "i", None)]
    full = [
        {**dict.fromkeys(NORMALIZED.names), "ordinal": n, "id": n, "image_id": i, "uri": u, "sha256": s}
        for n, (i, u, s) in enumerate(rows)
    ]
    batch = pa.RecordBatch.from_pylist(full, schema=NORMALIZED)
    assert names.marks(batch).to_pylist() == [True, True, True, False, False]
    assert NO_NAMES.marks(batch).to_pylist() == [False] * 5
