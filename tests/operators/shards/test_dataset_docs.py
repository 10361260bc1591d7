"""`docs/dataset.md` against the schemas: every column with its type, and every field of commits and dataset.json."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.layout import DATA_KINDS, MANIFEST, SHARDS_INDEX, SUMMARIES
from segmint.operators.schemas import IMAGES, MASKS, REJECTS
from segmint.operators.shards.files import annotations_json

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "dataset.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text below a heading `## title`, up to the next one."""
    match = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert match is not None, title
    return match[1]


def columns(title: str) -> list[tuple[str, str, str]]:
    """Column, type and meaning of each row of a section's table."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section(title).splitlines()]
    return [(row[0].strip("`"), row[1].strip("`"), row[2]) for row in rows if len(row) == 3 and row[0].startswith("`")]


def spelled(kind: pa.DataType) -> str:
    """A type as the page writes it; the fields of a struct have rows of their own."""
    if pa.types.is_list(kind):
        return f"list<{spelled(kind.value_type)}>"
    return "struct" if pa.types.is_struct(kind) else str(kind)


def flattened(field: pa.Field, above: str = "") -> Iterator[tuple[str, str]]:
    name, kind = above + field.name, field.type
    yield name, spelled(kind)
    if pa.types.is_list(kind):
        name, kind = f"{name}[]", kind.value_type
    if pa.types.is_struct(kind):
        for child in kind:
            yield from flattened(child, f"{name}.")


@pytest.mark.parametrize(("title", "schema"), [("`images`", IMAGES), ("`masks`", MASKS), ("`rejects`", REJECTS)])
def test_every_column_is_there_with_its_type_and_in_its_place(title: str, schema: pa.Schema) -> None:
    assert [(name, kind) for name, kind, _ in columns(title)] == [pair for field in schema for pair in flattened(field)]


@pytest.mark.parametrize(("title", "schema"), [("`images`", IMAGES), ("`masks`", MASKS), ("`rejects`", REJECTS)])
def test_columns_that_are_never_null_say_so(title: str, schema: pa.Schema) -> None:
    said = {name for name, _, meaning in columns(title) if "Never null" in meaning}
    assert said == {field.name for field in schema if not field.nullable}


def test_every_field_of_a_commit_is_there() -> None:
    value = json.loads(Commit(0, 1, (0, 4), "07dea44c13b1", "0" * 64, {}, ()).to_json())
    first_cells = " ".join(line.split("|")[1] for line in section("`commits`").splitlines() if line.startswith("| `"))
    assert sorted(re.findall(r"`(\w+)`", first_cells)) == sorted(value)


def test_every_field_of_the_manifest_is_there() -> None:
    first_cells = [line.split("|")[1].strip(" `") for line in section("`dataset.json`").splitlines() if "| `" in line]
    assert sorted(first_cells) == sorted(DatasetManifest.model_fields)


def test_every_file_and_folder_is_there() -> None:
    tree = PAGE.split("```")[1]
    for name in (MANIFEST, SHARDS_INDEX, SUMMARIES, "catalog", "commits", *DATA_KINDS):
        assert re.search(rf"^{re.escape(name)}\b", tree, re.MULTILINE), name


def test_the_json_shown_has_the_keys_that_are_written_in_their_order() -> None:
    mask = {
        "segmentation": {"size": [1, 1], "counts": "01"},
        "bbox": [0.0, 0.0, 0.0, 0.0],
        "area": 1,
        "predicted_iou": 1.0,
        "stability_score": 1.0,
        "crop_box": [0.0, 0.0, 1.0, 1.0],
        "point_coords": [[0.0, 0.0]],
    }
    written = annotations_json(2, "sa_2.jpg", (1, 1), [mask]).decode()
    shown = section("The tar and its JSON").split("```")[1]
    assert re.findall(r'"(\w+)":', shown) == re.findall(r'"(\w+)":', written)
