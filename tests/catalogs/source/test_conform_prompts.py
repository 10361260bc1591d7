"""The column `prompts` of a catalog: the same in every format, checked, pinned, and blanked."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segmint.catalogs.dataset.growth import CatalogGrowth, compare_catalog
from segmint.catalogs.parquet import NORMALIZED, PROMPTS
from segmint.catalogs.source.amendments import amend_parts, stage_amendments
from segmint.catalogs.source.check import check
from segmint.catalogs.source.files import read_rows
from segmint.catalogs.source.normalize import NormalizedCatalog, normalize
from segmint.catalogs.source.sampling import WholeCatalog, read_rows_at
from segmint.infra.errors import UsageError
from segmint.operators.annotations.image import BoxFile
from segmint.pipeline.building.curate import add_prompts
from segmint.pipeline.corrections.takedown import blank_part
from tests.support.locations import location_of

DOG = {"box": [1, 2, 30.5, 40], "label": "dog", "score": 0.75}
CLICKS = {"points": [[3, 4], [5, 6.5]], "point_labels": [1, 0]}
FRAME = {"width": 640, "height": 480, "prompts": [DOG, CLICKS]}
NOTHING_FOUND = {"width": 1, "height": 1, "prompts": []}
STORED = {
    "width": 640.0,
    "height": 480.0,
    "prompts": [
        {"box": [1.0, 2.0, 30.5, 40.0], "points": None, "point_labels": None, "label": "dog", "score": 0.75},
        {"box": None, "points": [[3.0, 4.0], [5.0, 6.5]], "point_labels": [1, 0], "label": None, "score": None},
    ],
}
ENDINGS = ["parquet", "jsonl", "csv"]


def row(name: str, prompts: Any = None) -> dict[str, Any]:
    return {"uri": f"{name}.jpg", "license": "CC0-1.0", "image_id": name, "prompts": prompts}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    """Write rows as users' tools do: structs in Parquet, objects in JSON Lines, JSON in CSV."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(each)}\n" for each in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            for each in rows:
                writer.writerow({**each, "prompts": json.dumps(each["prompts"]) if each["prompts"] else ""})
    return path


def normalized(path: Path, **options: Any) -> NormalizedCatalog:
    return normalize(location_of(path), path.parent / "part.parquet", **options)


def test_every_format_gives_the_same_part(tmp_path: Path) -> None:
    rows = [row("a"), row("b", FRAME), row("c", NOTHING_FOUND)]
    found = [normalized(write(tmp_path / f"c.{ending}", *rows)) for ending in ENDINGS]
    text = [{**each, "prompts": json.dumps(each["prompts"]) if each["prompts"] else ""} for each in rows]
    found.append(normalized(write(tmp_path / "text.parquet", *text)))
    assert len({each.sha256 for each in found}) == 1
    part = read_rows(location_of(found[0].path), 0, 3)
    assert part.schema.field("prompts").type == PROMPTS
    empty = {"width": 1.0, "height": 1.0, "prompts": []}
    assert part.column("prompts").to_pylist() == [None, STORED, empty]


def test_boxes_in_other_number_types_are_read(tmp_path: Path) -> None:
    box = pa.struct([("box", pa.list_(pa.float32(), 4))])
    kind = pa.struct([("width", pa.int32()), ("height", pa.int32()), ("prompts", pa.list_(box))])
    prompts = pa.array([{"width": 64, "height": 48, "prompts": [{"box": [1, 2, 3, 4]}]}], kind)
    table = pa.table({"uri": ["a.jpg"], "license": ["MIT"], "prompts": prompts})
    pq.write_table(table, tmp_path / "c.parquet")
    (found,) = read_rows(location_of(normalized(tmp_path / "c.parquet").path), 0, 1).column("prompts").to_pylist()
    assert found["prompts"][0]["box"] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_part_has_the_column_only_where_a_row_has_prompts(tmp_path: Path, ending: str) -> None:
    bare = {"uri": "a.jpg", "license": "CC0-1.0", "image_id": "a"}
    (tmp_path / "bare.jsonl").write_text(json.dumps(bare))
    without = normalized(tmp_path / "bare.jsonl")
    assert pq.read_schema(without.path).equals(NORMALIZED)
    path = write(tmp_path / f"c.{ending}", row("a"))
    assert normalized(path).sha256 == without.sha256
    other = write(tmp_path / f"other.{ending}", row("a", FRAME))
    assert normalized(other, ignored=("prompts",)).sha256 == without.sha256
    sampled = read_rows_at(location_of(other), [0], ignored=("prompts",))
    assert sampled.column_names == NORMALIZED.names
    assert read_rows_at(location_of(other), [0]).column("prompts").to_pylist() == [STORED]


OTHER = r"expected (JSON of |)an object with width, height, and prompts; rename any other column"


def readers(path: Path) -> dict[str, Callable[[], Any]]:
    """Every reader of a whole catalog, or of its rows."""
    catalog, folder = location_of(path), path.parent
    output = location_of(folder / "o.parquet")
    return {
        "normalize": lambda: normalized(path),
        "sample": lambda: read_rows_at(catalog, [0]),
        "whole": lambda: list(WholeCatalog(catalog).batches()),
        "amend": lambda: stage_amendments(catalog, folder),
        "growth": lambda: compare_catalog(catalog, folder / "new.parquet", parts=[], first_ordinal=0),
        "prompts": lambda: add_prompts(catalog, output, BoxFile([], dict), with_endings=True),
    }


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    "value", ["a dog on a table", {"text": "a dog"}, {"width": "wide", "height": 1, "prompts": []}]
)
def test_an_unrelated_column_is_refused_by_every_reader_that_does_not_ignore_it(
    tmp_path: Path, ending: str, value: Any
) -> None:
    bare = normalized(write(tmp_path / "a.jsonl", row("a"))).sha256
    path = write(tmp_path / f"c.{ending}", row("a", value))
    assert normalized(path, ignored=("prompts",)).sha256 == bare
    said = r"row 1, column prompts: found 'wide' as width; expected a valid number"
    if "width" not in value:
        said = rf"row 1, column prompts: found .*a dog.* as the value; {OTHER}"
    for name, read in readers(path).items():
        if name == "prompts":
            said = "already has the column prompts: remove it"
        with pytest.raises(UsageError, match=said):
            read()
    assert not (tmp_path / "o.parquet").exists()
    (problem,) = check(location_of(path)).problems
    assert "column prompts: found " in problem


def test_files_of_a_folder_may_give_prompts_in_several_types(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    write(folder / "a.parquet", row("a", FRAME))
    write(folder / "b.parquet", row("b", json.dumps(FRAME)))
    pq.write_table(pa.table({"uri": ["c.jpg"], "license": ["MIT"]}), folder / "c.parquet")
    catalog = location_of(f"{folder}/")
    part = read_rows(location_of(normalize(catalog, tmp_path / "p.parquet").path), 0, 3)
    assert part.column("prompts").to_pylist() == [STORED, STORED, None]
    whole = pa.Table.from_batches(WholeCatalog(catalog).batches())
    assert whole.column("prompts").to_pylist() == [STORED, STORED, None]
    write(folder / "c.parquet", row("c", "a dog"))
    with pytest.raises(UsageError, match=rf"row 1 of c\.parquet.*row 3, column prompts: .*{OTHER}"):
        normalize(catalog, tmp_path / "p.parquet")
    (folder / "prompts=dog").mkdir()
    (folder / "c.parquet").rename(folder / "prompts=dog" / "c.parquet")
    with pytest.raises(UsageError, match=r"'prompts' occurs 2 times, including folders named prompts=…"):
        normalize(catalog, tmp_path / "p.parquet")


def test_whole_catalogs_keep_the_column(tmp_path: Path) -> None:
    for ending in ENDINGS:
        more = [{**row("a", FRAME), "more": "x"}]
        catalog = WholeCatalog(location_of(write(tmp_path / f"c.{ending}", *more)))
        (batch,) = catalog.batches()
        assert batch.column("prompts").to_pylist() == [STORED]
        assert batch.column("more").to_pylist() == ["x"]


def wrong(**changes: Any) -> dict[str, Any]:
    return {"width": 64, "height": 48, "prompts": [{"box": [1, 2, 3, 4], **changes}]}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"width": 0, "height": 48, "prompts": []}, "found 0 as width; expected greater than 0"),
        ({"width": 64, "height": float("nan"), "prompts": []}, "found nan as height; expected a finite number"),
        ({"width": True, "height": 48, "prompts": []}, "found True as width; expected a valid number"),
        ({"width": 64, "prompts": []}, "as the value; expected an object with width, height, and prompts"),
        ({"width": 64, "height": 48}, "as the value; expected an object with width, height, and prompts"),
        ({"width": 64, "height": 48, "prompts": ["a"]}, r"found 'a' as prompts\.0; expected an object"),
        ([1, 2, 3, 4], r"found \[1, 2, 3, 4\] as the value; expected an object"),
        ({**wrong(), "images": 1}, "found 1 as images; expected no such key"),
        (wrong(box=None), r"as prompts\.0; expected a box, points, or a label"),
        (wrong(box=None, label=" "), r"as prompts\.0; expected a box, points, or a label"),
        (wrong(box=[1, 2, 3]), r"found \[1, 2, 3\] as prompts\.0\.box; expected a list of at least 4 items"),
        (wrong(box=[1, 2, 3, 0]), "expected a box .* with positive width and height"),
        (wrong(box=[1, 2, float("inf"), 4]), r"found inf as prompts\.0\.box\.2; expected a finite number"),
        (wrong(box=[1, 10**400, 3, 4]), r"as prompts\.0\.box\.1; expected a finite number"),
        (wrong(box=[1, 2e9, 3, 4]), r"as prompts\.0\.box\.1; expected less than or equal to 1000000000"),
        (wrong(points=[[1, 2, 3]]), r"as prompts\.0\.points\.0; expected a list of at most 2 items"),
        (wrong(points=[[1, "2"]]), r"found '2' as prompts\.0\.points\.0\.1; expected a valid number"),
        (
            wrong(points=[[1, 2]], point_labels=[1, 0]),
            r"as prompts\.0; expected point_labels with 1 or 0 for each point",
        ),
        (
            wrong(points=[[1, 2]], point_labels=[2]),
            r"found 2 as prompts\.0\.point_labels\.0; expected less than or equal",
        ),
        (
            wrong(points=[[1, 2]], point_labels=[True]),
            r"found True as prompts\.0\.point_labels\.0; expected a valid",
        ),
        (wrong(point_labels=[1]), r"as prompts\.0; expected point_labels with 1 or 0 for each point"),
        (wrong(bbox=[1, 2, 3, 4]), r"as prompts\.0\.bbox; expected no such key"),
        (wrong(label=7), r"found 7 as prompts\.0\.label; expected a valid string"),
        (wrong(label="\ud800"), "as the value; expected JSON"),
        (wrong(score="high"), r"found 'high' as prompts\.0\.score; expected a valid number"),
    ],
)
def test_an_invalid_value_is_named(tmp_path: Path, value: Any, said: str) -> None:
    path = write(tmp_path / "c.jsonl", row("a", FRAME), row("b", value), row("c", value))
    with pytest.raises(UsageError, match=rf"c\.jsonl, row 2, column prompts: .*{said}"):
        normalized(path)
    found = check(location_of(path))
    assert found.bad_values.rows == [2, 3]
    assert not found.clean


def test_other_types_and_text_that_is_not_json_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "c.parquet", row("a", [1, 2, 3, 4]))
    with pytest.raises(
        UsageError, match=r"column prompts, from row 1: its type is list.*; expected a struct with width"
    ):
        normalized(path)
    path = tmp_path / "c.csv"
    path.write_text("uri,license,prompts\na.jpg,MIT,[1\n")
    with pytest.raises(UsageError, match=r"row 1, column prompts: found '\[1' as the value; expected JSON"):
        normalized(path)


def test_a_check_without_problems_is_clean(tmp_path: Path) -> None:
    assert check(location_of(write(tmp_path / "c.csv", row("a", FRAME), row("b")))).bad_values.count == 0


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_label_alone_is_a_phrase(tmp_path: Path, ending: str) -> None:
    given = {"width": 1, "height": 1, "prompts": [{"label": " red car "}]}
    part = normalized(write(tmp_path / f"c.{ending}", row("a", given)))
    (stored,) = pq.read_table(part.path).column("prompts").to_pylist()
    nothing = dict.fromkeys(("box", "points", "point_labels", "score"))
    assert stored["prompts"] == [{**nothing, "label": "red car"}]


def test_credentials_in_labels_are_redacted(tmp_path: Path) -> None:
    label = "https://user:hunter2@host/"
    prompts = {**FRAME, "prompts": [{**DOG, "label": label}, CLICKS]}
    part = normalized(write(tmp_path / "c.jsonl", row("a"), row("b", prompts)))
    first, second = read_rows(location_of(part.path), 0, 2).column("prompts").to_pylist()
    assert first is None
    assert [prompt["label"] for prompt in second["prompts"]] == ["https://[redacted]@host/", None]
    assert second["prompts"][0]["box"] == DOG["box"]


def compare(folder: Path, before: list[dict[str, Any]], now: list[dict[str, Any]]) -> CatalogGrowth:
    part = normalized(write(folder / "before.jsonl", *before))
    after = write(folder / "now.jsonl", *now)
    parts = [location_of(part.path)]
    return compare_catalog(location_of(after), folder / "new.parquet", parts=parts, first_ordinal=10)


def test_prompts_are_pinned_and_grow(tmp_path: Path) -> None:
    grown = compare(tmp_path, [row("a", FRAME), row("b")], [row("b"), row("c", FRAME), row("a", FRAME)])
    assert grown.keeps_all
    assert pq.read_table(grown.new.path).column("prompts").to_pylist() == [STORED]

    without = compare(tmp_path, [row("a")], [row("a"), row("c", FRAME)])
    assert without.keeps_all
    assert without.new.rows == 1

    moved = {**FRAME, "prompts": [{**DOG, "box": [1, 2, 30.5, 41]}, CLICKS]}
    for before, now in ((FRAME, moved), (FRAME, None), (None, FRAME), (FRAME, {**FRAME, "prompts": []})):
        changed = compare(tmp_path, [row("a", before), row("b", FRAME)], [row("a", now), row("b", FRAME)]).changed
        assert {column: (each.rows, each.image_id) for column, each in changed.items()} == {"prompts": (1, "a")}


def test_an_amendment_names_other_prompts(tmp_path: Path) -> None:
    part = normalized(write(tmp_path / "before.jsonl", row("a", FRAME), row("b", FRAME)))
    moved = {**FRAME, "prompts": []}
    catalog = write(tmp_path / "now.jsonl", row("a", moved), row("b"))
    asked = stage_amendments(location_of(catalog), tmp_path)
    found = amend_parts(asked, [part.path], tmp_path, images_per_shard=10)
    assert {column: (each.rows, each.image_id) for column, each in found.different.items()} == {"prompts": (1, "a")}


def test_a_takedown_leaves_no_prompt(tmp_path: Path) -> None:
    part = normalized(write(tmp_path / "c.jsonl", row("a", FRAME), row("b", NOTHING_FOUND), row("c")))
    assert b"dog" in part.path.read_bytes()
    blank = tmp_path / "blank.parquet"
    blank_part(part.path, [0], blank)
    empty = {"width": 1.0, "height": 1.0, "prompts": []}
    assert read_rows(location_of(blank), 0, 3).column("prompts").to_pylist() == [None, empty, None]
    assert b"dog" not in blank.read_bytes()
    blank_part(blank, [0], tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == blank.read_bytes()
