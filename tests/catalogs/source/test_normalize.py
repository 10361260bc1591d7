"""Normalized catalogs: ordinals in the catalog's order, duplicates marked, the same bytes for the same rows."""

import hashlib
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segmint.catalogs.parquet import NORMALIZED
from segmint.catalogs.source.check import check
from segmint.catalogs.source.normalize import normalize
from segmint.catalogs.source.scan import write_catalog
from segmint.infra.errors import UsageError
from segmint.infra.uris import UriNotAllowedError, redact, relative_to
from tests.support.locations import location_of

ids = st.lists(st.sampled_from([None, "", "a", "b", "B", "é", "e\u0301", "a b", "1", "01"]), max_size=30)


def catalog_of(path: Path, rows: list[dict[str, Any]]) -> str:
    path.unlink(missing_ok=True)
    write_catalog(iter(rows), location_of(path))
    return str(path)


def rows_of(catalog: str, destination: Path, **options: Any) -> list[dict[str, Any]]:
    normalize(location_of(catalog), destination, **options)
    rows: list[dict[str, Any]] = pq.read_table(destination).to_pylist()
    return rows


def duplicates_in(normalized: Path) -> int:
    """Rows whose image_id an earlier row has."""
    marks = pq.read_table(normalized, columns=["duplicate_of"]).column(0)
    return len(marks) - marks.null_count


@given(image_ids=ids)
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ordinals_and_duplicates_equal_those_of_a_loop(tmp_path: Path, image_ids: list[str | None]) -> None:
    source = [{"uri": f"{i % 7}.jpg", "license": "CC0-1.0", "image_id": id} for i, id in enumerate(image_ids)]
    rows = rows_of(catalog_of(tmp_path / "c.parquet", source), tmp_path / "n.parquet")

    first: dict[str, int] = {}
    for ordinal, (given_row, row) in enumerate(zip(source, rows, strict=True)):
        image_id = given_row["image_id"] or given_row["uri"]
        assert (row["ordinal"], row["id"], row["image_id"]) == (ordinal, ordinal + 1, image_id)
        assert row["duplicate_of"] == first.get(image_id)
        first.setdefault(image_id, ordinal)


def test_every_field_arrives_and_the_caption_does_not(tmp_path: Path) -> None:
    source = {
        "uri": "photos/a.jpg",
        "license": "CC-BY-4.0",
        "image_id": "x",
        "sha256": "0f" * 32,
        "attribution": "someone",
        "provider": "acme",
        "source_url": "https://example.org/a",
        "redistributable": False,
        "valid_until": date(2030, 1, 2),
        "country": "NO",
        "caption": "private",
    }
    (row,) = rows_of(catalog_of(tmp_path / "c.parquet", [source]), tmp_path / "n.parquet")
    expected = source | {"ordinal": 0, "id": 1, "duplicate_of": None}
    del expected["caption"]
    assert row == expected


def test_three_formats_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = [
        {"uri": f"{i}.jpg", "license": "CC0-1.0", "image_id": f"i{i // 2}", "valid_until": date(2030, 1, 1 + i % 28)}
        for i in range(70_000)
    ]
    results = [
        normalize(location_of(catalog_of(tmp_path / f"c.{ending}", source)), tmp_path / f"n-{ending}.parquet")
        for ending in ("parquet", "jsonl", "csv")
    ]
    assert {(r.rows, duplicates_in(r.path)) for r in results} == {(70_000, 35_000)}
    assert len({r.sha256 for r in results}) == 1
    assert hashlib.sha256(results[0].path.read_bytes()).hexdigest() == results[0].sha256

    monkeypatch.setattr("segmint.catalogs.source.normalize.MEMORY", "128MB")
    again = normalize(location_of(tmp_path / "c.csv"), tmp_path / "again.parquet")
    assert again.path.read_bytes() == results[0].path.read_bytes()
    metadata = pq.read_metadata(again.path)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [65_536, 4_464]
    assert not [path for path in tmp_path.iterdir() if path.is_dir()], "intermediate files are gone"


def test_rows_with_a_missing_license_or_a_bad_uri_are_kept(tmp_path: Path) -> None:
    uris = ["a.jpg", "./a.jpg", "../secret.jpg", "/etc/passwd", "http://example.org/a.jpg", "s3://bucket/å b.jpg"]
    rows = rows_of(catalog_of(tmp_path / "c.parquet", [{"uri": uri} for uri in uris]), tmp_path / "n.parquet")
    assert [row["uri"] for row in rows] == uris
    assert [row["image_id"] for row in rows] == uris
    assert {row["license"] for row in rows} == {None}


def test_the_location_of_a_catalog_does_not_matter(tmp_path: Path) -> None:
    source = [{"uri": f"photos/{i}.jpg", "license": "CC0-1.0"} for i in range(10)]
    folders = [tmp_path / "here", tmp_path / "there"]
    for folder in folders:
        folder.mkdir()
    one, other = (
        normalize(location_of(catalog_of(folder / "c.csv", source)), folder / "n.parquet") for folder in folders
    )
    assert one.sha256 == other.sha256


def test_an_empty_catalog_has_no_rows_but_all_columns(tmp_path: Path) -> None:
    empty = normalize(location_of(catalog_of(tmp_path / "c.csv", [])), tmp_path / "n.parquet")
    assert (empty.rows, duplicates_in(empty.path)) == (0, 0)
    assert pq.read_schema(empty.path).equals(NORMALIZED)


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_opt_outs_are_written_only_where_a_row_has_one_and_they_are_not_ignored(tmp_path: Path, ending: str) -> None:
    rows = [{"uri": f"{i}.jpg", "license": "CC0-1.0", "opt_out": value} for i, value in enumerate([None, True, False])]
    path = catalog_of(tmp_path / f"c.{ending}", rows)
    with_values = rows_of(path, tmp_path / "with.parquet")
    assert [row["opt_out"] for row in with_values] == [None, True, False]

    ignored = normalize(location_of(path), tmp_path / "ignored.parquet", ignored=("opt_out",))
    for row in rows:
        row["opt_out"] = None
    empty = normalize(location_of(catalog_of(tmp_path / f"e.{ending}", rows)), tmp_path / "empty.parquet")
    without = [{"uri": row["uri"], "license": row["license"]} for row in rows]
    absent = normalize(location_of(catalog_of(tmp_path / f"w.{ending}", without)), tmp_path / "without.parquet")
    assert ignored.sha256 == empty.sha256 == absent.sha256
    assert pq.read_schema(absent.path).equals(NORMALIZED)


def test_an_ignored_column_may_hold_anything(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("uri,license,opt_out\na.jpg,CC0-1.0,by post\n")
    assert normalize(location_of(tmp_path / "c.csv"), tmp_path / "n.parquet", ignored=("opt_out",)).rows == 1
    with pytest.raises(UsageError, match="row 1, column opt_out: found 'by post'; expected true, false, or empty"):
        normalize(location_of(tmp_path / "c.csv"), tmp_path / "n.parquet")


def peak_megabytes(rows: int, folder: Path) -> tuple[int, int]:
    """Peak memory of a process that normalizes this many rows, and the duplicates it found."""
    program = f"""
import resource, pathlib
from segmint.catalogs.source import normalize
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
normalize.MEMORY = "128MB"
catalog = pathlib.Path({str(folder)!r}) / "c-{rows}.csv"
with catalog.open("w") as file:
    file.write("uri,license,image_id\\n")
    for i in range({rows}):
        file.write(f"images/{{i // 1000}}/photo_{{i * 2654435761 % 2**32:08x}}.jpg,CC0-1.0,{{i if i % 1000 else 1}}\\n")
normalize.normalize(Location(Storage(), str(catalog)), catalog.with_suffix(".parquet"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout), duplicates_in(folder / f"c-{rows}.parquet")


@pytest.mark.long
def test_memory_does_not_grow_with_the_catalog(tmp_path: Path) -> None:
    small, _ = peak_megabytes(250_000, tmp_path)
    large, duplicates = peak_megabytes(2_500_000, tmp_path)
    assert duplicates == 2_500
    assert large - small < 150, f"{small} MB at 250,000 rows, {large} MB at ten times as many"


@pytest.mark.parametrize(
    "text",
    [
        "https://host/hf_abcdefghijklmnopqrstuvwxyz0123456789/a.jpg",
        "https://host/ghp_abcdefghijklmnopqrstuvwxyz0123456789/a.jpg",
        "https://host/a.jpg?sig%3dhunter2",
        "//host/a.jpg?access_token=hunter2",
        "Jo, AKIAIOSFODNN7EXAMPLE",
        "Authorization: Bearer hunter2",
    ],
)
def test_credentials_are_redacted_without_a_url_in_its_usual_form(tmp_path: Path, text: str) -> None:
    columns = ("attribution", "provider", "source_url", "license", "refused_detail")
    rows = [{"uri": "a.jpg", "refused_reason": "unfit", **dict.fromkeys(columns, text)}]
    (found,) = rows_of(catalog_of(tmp_path / "c.jsonl", rows), tmp_path / "n.parquet")
    assert redact(text) != text
    for column in columns:
        assert found[column] == redact(text)


def test_credentials_in_a_catalog_are_redacted_and_cost_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segmint.catalogs.source.normalize.missing_package", lambda protocol: None)
    secret = "wJalr/XUtnFEMI/K7MDENG"
    readable = [
        "s3://b/token=3/photo@2x.jpg",
        "photo@home.jpg",
        "a?X-Amz-Signature=of-a-file-name",
        "abfs://photos@account.dfs.core.windows.net/k",
    ]
    hostile = [
        f"s3://AKIAIOSFODNN7EXAMPLE:{secret}@bucket/a.jpg",
        f"https://user:{secret}@host/a.jpg",
        f"https://b.s3.amazonaws.com/a.jpg?X-Amz-Credential=AKIAIOSFODNN7EXAMPLE&X-Amz-Signature={secret}",
        f"s3://b/a.jpg?X-Amz-Signature={secret}",
    ]
    rows: list[dict[str, Any]] = [{"uri": uri, "license": "CC0-1.0"} for uri in readable + hostile]
    rows += [
        {
            "uri": "b.jpg",
            "license": "CC0-1.0",
            "image_id": f"https://user:{secret}@host/b",
            "attribution": f"Jo, https://jo:{secret}@host",
            "provider": f"https://host/?api_key={secret}",
            "source_url": f"https://host/b?size=2&access_token={secret}",
        }
    ]
    found = rows_of(catalog_of(tmp_path / "c.jsonl", rows), tmp_path / "n.parquet")
    assert [row["uri"] for row in found[: len(readable)]] == readable
    assert [row["image_id"] for row in found[: len(readable)]] == readable
    assert found[-1]["uri"] == "b.jpg"
    assert found[-1]["image_id"] == "https://[redacted]@host/b"
    assert found[-1]["source_url"] == "https://host/b?size=2&access_token=[redacted]"
    for row in found:
        for part in (*secret.split("/"), "AKIA"):
            assert part not in str(row)
        assert row["duplicate_of"] is None
    for row in found[len(readable) : -1]:
        with pytest.raises(UriNotAllowedError):
            relative_to("/data/c.jsonl", row["uri"])


@pytest.mark.parametrize(
    "ids",
    [
        ["https://img.example/view?imgtoken=abc", "https://img.example/view?imgtoken=def", "c"],
        ["https://ann:pw1@host/a.jpg", "c", "https://bob:pw2@host/a.jpg"],
        ["https://host/AKIAIOSFODNN7EXAMPLE?=a", "https://host/AKIAIOSFODNN7EXAMPLF?=a"],
        ["https://host/a?sig=1&b=2", "https://host/a?sig=[redacted]&b=2"],  # as written and as stored
    ],
)
def test_different_ids_that_are_redacted_alike_are_refused_by_their_rows(tmp_path: Path, ids: list[str]) -> None:
    rows = [{"uri": f"{row}.jpg", "license": "CC0-1.0", "image_id": image_id} for row, image_id in enumerate(ids)]
    catalog = catalog_of(tmp_path / "c.jsonl", rows)
    numbers = ", ".join(str(row) for row, image_id in enumerate(ids, 1) if image_id != "c")
    for attempt in (
        lambda: normalize(location_of(catalog), tmp_path / "n.parquet"),
        lambda: check(location_of(catalog)),
    ):
        with pytest.raises(UsageError, match=f"column image_id: rows {numbers} have different values") as caught:
            attempt()
        assert not any(secret in str(caught.value) for secret in ("abc", "def", "pw1", "pw2", "AKIA"))


def test_ids_that_are_equal_as_written_stay_duplicates_and_others_stay_apart(tmp_path: Path) -> None:
    signed = "https://img.example/{}?imgtoken={}"
    ids = [signed.format(1, "abc"), signed.format(2, "abc"), signed.format(1, "abc"), "s3://bkt/k?token=1"]
    ids += ["s3://bkt/k?token=2"]
    rows = [{"uri": f"{row}.jpg", "license": "CC0-1.0", "image_id": image_id} for row, image_id in enumerate(ids)]
    rows += [{"uri": f"https://ann:{row}@host/a.jpg", "license": "CC0-1.0"} for row in range(2)]
    found = rows_of(catalog_of(tmp_path / "c.jsonl", rows), tmp_path / "n.parquet")
    assert [row["duplicate_of"] for row in found[:5]] == [None, None, 0, None, None]
    assert [row["image_id"] for row in found[:2]] == [signed.format(number, "[redacted]") for number in (1, 2)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.jsonl", "n.parquet"]


def test_a_license_is_stored_without_credentials_and_not_as_a_whole_text(tmp_path: Path) -> None:
    texts = ["https://user:hunter2@host/license", "x" * 1000, "Permission is " * 20_000]
    texts += [f"https://user:{'hunter2' * 100}@host/" + "x" * 1000, "CC0-1.0"]
    rows = [{"uri": f"{index}.jpg", "license": text} for index, text in enumerate(texts)]
    found = [row["license"] for row in rows_of(catalog_of(tmp_path / "c.jsonl", rows), tmp_path / "n.parquet")]
    assert found[0] == "https://[redacted]@host/license"
    assert found[1] == "x" * 1000
    assert found[2] == f"{('Permission is ' * 20)[:80]}… (279,999 characters)"
    assert found[3].startswith("https://[redacted]@host/xxx")
    assert found[4] == "CC0-1.0"
    assert all("hunter2" not in text for text in found)


def test_rows_of_a_store_whose_package_is_missing_are_named_before_anything_starts(tmp_path: Path) -> None:
    rows = [{"uri": uri, "license": "CC0-1.0"} for uri in ("a.jpg", "GS:///no-bucket", "gs://bucket/b.jpg")]
    catalog = catalog_of(tmp_path / "c.jsonl", rows)
    said = r"c\.jsonl, row 3, column uri: found 'gs://bucket/b\.jpg'; .* gs:// needs a package .* install gcsfs"
    with pytest.raises(UsageError, match=said):
        normalize(location_of(catalog), tmp_path / "n.parquet")
    assert not (tmp_path / "n.parquet").exists()
    assert len(rows_of(catalog_of(tmp_path / "d.jsonl", rows[:2]), tmp_path / "n.parquet")) == 2


def test_texts_that_would_fill_the_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segmint.catalogs.source.normalize.MOST_WAITING", 20 << 20)
    texts = [{"uri": f"{i}.jpg", "license": "CC0-1.0", "attribution": "a" * (1 << 20)} for i in range(25)]
    with pytest.raises(UsageError, match=r"c\.jsonl: 65,536 rows up to row \d+ need more memory"):
        normalize(location_of(catalog_of(tmp_path / "c.jsonl", texts)), tmp_path / "n.parquet")
    captions = [{"uri": f"{i}.jpg", "license": "CC0-1.0", "caption": "a" * (1 << 20)} for i in range(25)]
    assert len(rows_of(catalog_of(tmp_path / "c.jsonl", captions), tmp_path / "n.parquet")) == 25


def test_refusals_of_the_catalog_are_columns_only_where_a_row_has_one(tmp_path: Path) -> None:
    plain = [{"uri": f"{i}.jpg", "license": "CC0-1.0"} for i in range(3)]
    without = normalize(location_of(catalog_of(tmp_path / "a.parquet", plain)), tmp_path / "a.n")
    pq.write_table(pq.read_table(tmp_path / "a.parquet").select(["uri", "license"]), tmp_path / "b.parquet")
    bare = normalize(location_of(tmp_path / "b.parquet"), tmp_path / "b.n")
    assert without.sha256 == bare.sha256
    assert pq.read_schema(bare.path).equals(NORMALIZED)

    refused = [plain[0], plain[1] | {"refused_reason": " unfit ", "refused_detail": "https://u:pw@h/"}, plain[2]]
    rows = rows_of(catalog_of(tmp_path / "c.jsonl", refused), tmp_path / "c.n")
    assert [row["refused_reason"] for row in rows] == [None, "unfit", None]
    assert rows[1]["refused_detail"] == "https://[redacted]@h/"
    assert (tmp_path / "c.n").read_bytes() == normalize(
        location_of(catalog_of(tmp_path / "c.parquet", refused)), tmp_path / "c.p"
    ).path.read_bytes()
    said = r"row 2, column refused_reason: found 'ugly'; expected duplicate_image, opted_out, unfit, or empty"
    with pytest.raises(UsageError, match=said):
        normalize(
            location_of(catalog_of(tmp_path / "d.csv", [plain[0], plain[1] | {"refused_reason": "ugly"}])),
            tmp_path / "d",
        )


@pytest.mark.parametrize("name", ["image_id=a", "ordinal=0", "[a]*?", "a?", "a\\*"])
def test_names_of_folders_are_neither_patterns_nor_values(tmp_path: Path, name: str) -> None:
    rows = [{"uri": f"{image_id}.jpg", "license": "CC0-1.0", "image_id": image_id} for image_id in "abca"]
    folder = tmp_path / name
    folder.mkdir()
    assert [row["duplicate_of"] for row in rows_of(catalog_of(folder / "c.jsonl", rows), folder / "n.parquet")] == [
        None, None, None, 0,
    ]  # fmt: skip
