"""Selecting what to take down: by name, number, license or provider, with all rows of the same image."""

import json
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segmint.catalogs.dataset.manifest import CatalogPart, DatasetManifest, ModelWeights
from segmint.catalogs.dataset.selection import number_of, read_ids, same_request, select_rows, with_copies
from segmint.catalogs.dataset.tombstones import TakedownRequest
from segmint.catalogs.layout import DamagedDatasetError
from segmint.catalogs.source.normalize import normalize
from segmint.infra.errors import UsageError
from tests.support.locations import location_of

ROWS = [
    {"image_id": "a", "uri": "a.jpg", "license": "L1", "provider": "P"},
    {"image_id": "b", "uri": "b.jpg", "license": "L2"},
    {"image_id": "a", "uri": "a-again.jpg", "license": "L2"},  # a duplicate of the first
    {"image_id": "c", "uri": "a-again.jpg", "license": "L2"},  # the same uri as the duplicate
    {"image_id": "d", "uri": "d.jpg", "license": "L2", "sha256": "d" * 64},
    {"image_id": "e", "uri": "e.jpg", "license": "L2"},
    {"image_id": "2", "uri": "f.jpg"},
    {"image_id": "8", "uri": "g.jpg", "license": "L2"},
]


def write_hashes(folder: Path, *rows: dict[str, int | str]) -> None:
    """Write a table of images with what a build measured."""
    hashes = ("source_sha256", "pixels_sha256", "release_sha256")
    schema = pa.schema([("ordinal", pa.int64()), *((name, pa.string()) for name in hashes)])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "images.parquet")


@pytest.fixture
def manifest(tmp_path: Path) -> DatasetManifest:
    """A dataset of `ROWS`; the catalog has the hash of the fifth, the build those of the first and the sixth."""
    (tmp_path / "catalog.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    normalize(location_of(tmp_path / "catalog.jsonl"), tmp_path / "catalog" / "part-0.parquet")
    write_hashes(tmp_path, {"ordinal": 0, "source_sha256": "d" * 64}, {"ordinal": 5, "source_sha256": "e" * 64})
    part = CatalogPart(path="catalog/part-0.parquet", rows=8, sha256="", source_sha256="", first_shard=0)
    return DatasetManifest(
        name="x",
        config={},
        config_sha256="",
        numerics={},
        code_version="0",
        weights=ModelWeights(name="", sha256=""),
        catalog=(part,),
        images_per_shard=4,
        policy_date=date(2026, 1, 1),
    )


def selected(folder: Path, manifest: DatasetManifest, *ids: str) -> list[int]:
    return sorted(select_rows(location_of(folder), manifest, TakedownRequest(ids=ids)).rows)


def test_names_numbers_licenses_and_providers(tmp_path: Path, manifest: DatasetManifest) -> None:
    assert selected(tmp_path, manifest, "b", "e") == [1, 5]
    assert selected(tmp_path, manifest, "5", "sa_6") == [4, 5]
    assert selected(tmp_path, manifest, "a") == [0, 2]
    assert selected(tmp_path, manifest, "8") == [7]  # the image_id of image 8
    by_license = select_rows(location_of(tmp_path), manifest, TakedownRequest(license="L1"))
    by_provider = select_rows(location_of(tmp_path), manifest, TakedownRequest(provider="P"))
    assert list(by_license.rows) == list(by_provider.rows) == [0]


def test_a_license_is_found_in_any_spelling_of_its_identifier(tmp_path: Path, manifest: DatasetManifest) -> None:
    """The policy accepts `cc-by-4.0` as CC-BY-4.0, so a takedown must find it, too."""
    spelled = ["CC-BY-4.0", "cc-by-4.0", " CC-by-4.0 ", "CC-BY-SA-4.0", "LicenseRef-Own", "LicenseRef-own", "Own", None]
    rows = [{**row, "license": license} for row, license in zip(ROWS, spelled, strict=True)]
    (tmp_path / "catalog.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    normalize(location_of(tmp_path / "catalog.jsonl"), tmp_path / "catalog" / "part-0.parquet")
    for asked, ordinals in (
        ("CC-BY-4.0", [0, 1, 2]),
        ("cc-BY-4.0", [0, 1, 2]),
        ("LicenseRef-Own", [4]),
        ("Own", [6]),
        ("own", []),
    ):
        assert sorted(select_rows(location_of(tmp_path), manifest, TakedownRequest(license=asked)).rows) == ordinals
    assert same_request(TakedownRequest(license="cc-by-4.0"), TakedownRequest(license="CC-BY-4.0"))
    assert not same_request(TakedownRequest(license="CC-BY-4.0"), TakedownRequest(provider="CC-BY-4.0"))


def test_unknown_and_ambiguous_names_are_reported(tmp_path: Path, manifest: DatasetManifest) -> None:
    found = select_rows(location_of(tmp_path), manifest, TakedownRequest(ids=("zz", "9", "sa_0", "2", "b")))
    assert found.unknown == ["zz", "9", "sa_0"]
    assert list(found.ambiguous) == ["2"]
    assert "image_id of image 7 and" in found.ambiguous["2"]
    assert 'For the image_id, write "2", with the quotes.' in found.ambiguous["2"]
    assert 'write the other image\'s image_id, "b"' in found.ambiguous["2"]
    assert list(found.rows) == [1]
    assert selected(tmp_path, manifest, '"2"') == [6]


@pytest.mark.parametrize("odd", ["   ", "sa_1", '"quoted"', "a\nb", "\u2028", "\\", "é "])
def test_every_image_id_can_be_named(tmp_path: Path, manifest: DatasetManifest, odd: str) -> None:
    rows = [{**ROWS[0], "image_id": odd}, {**ROWS[1], "image_id": "sa_1" if odd != "sa_1" else "b"}]
    (tmp_path / "catalog.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    normalize(location_of(tmp_path / "catalog.jsonl"), tmp_path / "catalog" / "part-0.parquet")
    (tmp_path / "ids.txt").write_text(json.dumps(odd))
    assert selected(tmp_path, manifest, *read_ids(location_of(tmp_path / "ids.txt"))) == [0]


def test_copies_by_name_uri_and_bytes_and_theirs(tmp_path: Path, manifest: DatasetManifest) -> None:
    def copies(*ids: str) -> dict[int, str | None]:
        rows = select_rows(location_of(tmp_path), manifest, TakedownRequest(ids=ids)).rows
        found = with_copies(location_of(tmp_path), manifest, rows, ["images.parquet"]).images
        return {ordinal: image.sha256 for ordinal, image in found.items()}

    assert copies("b") == {1: None}
    assert copies("e") == {5: "e" * 64}
    family = {0: "d" * 64, 2: None, 3: None, 4: None}  # a, its duplicate, that one's uri, and one that states a's bytes
    for name in ("a", "c"):
        assert copies(name) == family
    assert copies("d") == {4: None}, "what a row states about itself leads nowhere"
    assert copies("b", "c") == {**family, 1: None}
    for name in ("pixels_sha256", "release_sha256"):
        one, other = {"ordinal": 5, "source_sha256": "e" * 64}, {"ordinal": 7, "source_sha256": "f" * 64}
        write_hashes(tmp_path, {**one, name: "1" * 64}, {**other, name: "1" * 64})
        assert copies("e") == copies("8") == {5: "e" * 64, 7: "f" * 64}


def test_a_uri_is_the_same_in_every_form(tmp_path: Path, manifest: DatasetManifest) -> None:
    """`a.jpg` under other names in the same catalog; an absolute path only if it is known where that is."""
    uris = ["a.jpg", "./a.jpg", "x/.//b.jpg", "x/b.jpg", f"{tmp_path}/a.jpg", f"file://{tmp_path}//a.jpg", "c", "d"]
    rows = [{"image_id": f"i{n}", "uri": uri, "license": "L"} for n, uri in enumerate(uris)]
    source = location_of(tmp_path / "catalog.jsonl")
    (tmp_path / "catalog.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    normalize(source, tmp_path / "catalog" / "part-0.parquet")
    for name, alone, by_catalog in (
        ("i0", [0, 1], [0, 1, 4, 5]),
        ("i3", [2, 3], [2, 3]),
        ("i5", [4, 5], [0, 1, 4, 5]),
        ("i6", [6], [6]),
    ):
        rows_named = select_rows(location_of(tmp_path), manifest, TakedownRequest(ids=(name,))).rows
        assert list(with_copies(location_of(tmp_path), manifest, rows_named, ["images.parquet"]).images) == alone
        known = with_copies(location_of(tmp_path), manifest, rows_named, ["images.parquet"], source.uri)
        assert list(known.images) == by_catalog


def test_a_table_that_cannot_be_read_is_named(tmp_path: Path, manifest: DatasetManifest) -> None:
    rows = select_rows(location_of(tmp_path), manifest, TakedownRequest(ids=("b",))).rows
    (tmp_path / "images.parquet").write_bytes(b"x")
    with pytest.raises(DamagedDatasetError, match=r"images\.parquet cannot be read"):
        with_copies(location_of(tmp_path), manifest, rows, ["images.parquet"])


def test_a_file_of_ids(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("image-1\r\n\n 17 \nimage-1\n")
    assert read_ids(location_of(path)) == {"image-1": 1, "17": 3}
    path.write_text("\ufeffa\u2028b\x85c\rd", encoding="utf-8", newline="")
    assert read_ids(location_of(path)) == {"a\u2028b\x85c": 1, "d": 2}
    for content, told in ((b"\n \n", "names no images"), (b"\xff", "is not UTF-8 text")):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=told):
            read_ids(location_of(path))
    with pytest.raises(UsageError, match="no such ids file"):
        read_ids(location_of(tmp_path / "absent.txt"))


def test_numbers_of_names() -> None:
    assert [number_of(name) for name in ("17", "sa_17", "017", "0", "sa_17.jpg", "x17", "-1", "")] == [17, 17] + [
        None
    ] * 6
