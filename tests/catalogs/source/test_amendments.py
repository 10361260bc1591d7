"""Corrections of catalog parts: which rows are matched, what is corrected, and what must agree."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from segmint.catalogs.source.amendments import Amendments, amend_parts, stage_amendments
from segmint.catalogs.source.normalize import normalize
from tests.support.locations import location_of

Rows = list[dict[str, Any]]


def write(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps({"license": "CC-BY-4.0", **row}) + "\n" for row in rows))
    return path


def compare(folder: Path, pinned: Rows, asked: Rows, clear: Collection[str] = ()) -> Amendments:
    part = normalize(location_of(write(folder / "pinned.jsonl", pinned)), folder / "part.parquet").path
    staged = stage_amendments(location_of(write(folder / "asked.jsonl", asked)), folder)
    return amend_parts(staged, [part], folder, images_per_shard=2, clear=clear)


def column(found: Amendments, name: str) -> list[Any]:
    values: list[Any] = pq.ParquetFile(found.parts[0]).read([name]).column(name).to_pylist()
    return values


def test_rows_are_matched_by_image_id_in_any_order(tmp_path: Path) -> None:
    pinned = [{"uri": f"{n}.jpg", "image_id": f"i{n}", "provider": "P"} for n in range(6)]
    asked = [{**pinned[n], "attribution": f"A{n}", "provider": None} for n in (5, 1)] + [{"uri": "new.jpg"}]
    found = compare(tmp_path, pinned, asked)
    assert (found.rows, found.matched, found.unknown, found.first_unknown) == (2, 2, 1, "new.jpg")
    assert found.values == {"attribution": 2}
    assert found.shards == {0, 2}
    assert column(found, "attribution") == [None, "A1", None, None, None, "A5"]
    assert column(found, "provider") == ["P"] * 6
    assert column(compare(tmp_path, pinned, asked, clear={"provider"}), "provider") == ["P", None, "P", "P", "P", None]


def test_a_duplicate_is_matched_with_the_row_of_its_uri(tmp_path: Path) -> None:
    pinned = [{"uri": "a.jpg", "image_id": "x"}, {"uri": "b.jpg", "image_id": "x"}]
    asked = [{**pinned[0], "attribution": "A"}, {**pinned[1], "attribution": "B"}]
    found = compare(tmp_path, pinned, asked)
    assert column(found, "attribution") == ["A", "B"]
    assert found.different == {}
    assert column(compare(tmp_path, pinned, asked[::-1]), "attribution") == ["A", "B"]


def test_rows_of_one_image_must_say_the_same(tmp_path: Path) -> None:
    pinned = [{"uri": "a.jpg", "image_id": "x"}, {"uri": "b.jpg", "image_id": "x"}, {"uri": "c.jpg"}]
    right = {"uri": "a.jpg", "image_id": "x", "provider": "P", "country": "NO"}
    assert compare(tmp_path, pinned, [right, {"uri": "c.jpg"}, right]).contradiction is None
    found = compare(tmp_path, pinned, [{"uri": "c.jpg"}, right, {**right, "country": None}]).contradiction
    assert found == "rows 2 and 3 have the image_id 'x', but country 'NO' and nothing"
    duplicate = {"uri": "b.jpg", "image_id": "x", "attribution": "B"}
    found = compare(tmp_path, pinned, [duplicate, right, {**duplicate, "attribution": "C"}]).contradiction
    assert found == "rows 1 and 3 have the image_id 'x', but attribution 'B' and 'C'"


def test_a_row_may_be_repeated_any_number_of_times(tmp_path: Path) -> None:
    repeated: Rows = [{"uri": "a.jpg", "image_id": "x"}] * 20_000  # joined row by row: 400 million pairs
    asked = [*({**row, "provider": "P"} for row in repeated), {"uri": "a.jpg", "image_id": "x", "provider": "Q"}]
    found = compare(tmp_path, repeated, asked[:-1])
    assert (found.matched, found.rows, found.contradiction) == (20_000, 20_000, None)
    last = compare(tmp_path, repeated, asked).contradiction
    assert last == "rows 1 and 20001 have the image_id 'x', but provider 'P' and 'Q'"


def test_only_spaces_are_no_value(tmp_path: Path) -> None:
    pinned = [{"uri": "a.jpg", "attribution": "Ann", "provider": "P"}]
    asked = [{"uri": "a.jpg", "attribution": " \t\u00a0", "provider": ""}]
    assert compare(tmp_path, pinned, asked).values == {}
    cleared = compare(tmp_path, pinned, asked, clear={"attribution"})
    assert (column(cleared, "attribution"), column(cleared, "provider")) == ([None], ["P"])


def test_a_spelling_of_a_license_is_no_other_license_and_what_is_not_said_is_no_difference(tmp_path: Path) -> None:
    pinned = [{"uri": "a.jpg", "sha256": "0" * 64, "valid_until": "2030-01-01"}, {"uri": "b.jpg", "license": "MIT"}]
    assert (
        compare(tmp_path, pinned, [{"uri": "a.jpg", "license": "cc-by-4.0"}, {"uri": "b.jpg", "license": ""}]).rows == 0
    )
    asked = [{"uri": "b.jpg"}, {"uri": "a.jpg", "valid_until": "2031-01-01", "sha256": "1" * 64}]
    found = compare(tmp_path, pinned, asked).different
    assert found.keys() == {"license", "valid_until", "sha256"}
    assert (found["license"].row, found["license"].pinned, found["license"].found) == (1, "MIT", "CC-BY-4.0")
    assert compare(tmp_path, pinned, [{"uri": "a.jpg", "opt_out": False}]).different == {}
    newly = compare(tmp_path, pinned, [{"uri": "a.jpg", "opt_out": True}]).different["opt_out"]
    assert (newly.rows, newly.pinned, newly.found) == (1, "", "true")
    assert (found["valid_until"].row, found["valid_until"].found) == (2, "2031-01-01")


def test_names_of_folders_are_neither_patterns_nor_values(tmp_path: Path) -> None:
    pinned = [{"uri": f"{n}.jpg", "image_id": f"i{n}", "provider": "P"} for n in range(3)]
    for name in ("ab", "a*", "image_id=1 [a]?", "provider=Q"):
        folder = tmp_path / name
        folder.mkdir()
        found = compare(folder, pinned, [{**row, "attribution": name} for row in pinned])
        assert (found.rows, found.matched, found.unknown, found.different) == (3, 3, 0, {})
        assert (column(found, "attribution"), column(found, "provider")) == ([name] * 3, ["P"] * 3)
