"""`docs/dataset.md` against the schemas: every column with its type, and every field of commits and dataset.json."""

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.layout import DATA_KINDS, MANIFEST, SHARDS_INDEX, SUMMARIES
from segmint.operators.rows import SCHEMAS
from segmint.operators.shards.put import annotations_json

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "dataset.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text below a heading `## title`, up to the next one."""
    match = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert match is not None, title
    return match[1]


def written() -> Any:
    """The script that writes the tables of columns."""
    spec = importlib.util.spec_from_file_location("columns_page", ROOT / ".ci" / "columns_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_columns_are_those_of_the_schemas() -> None:
    assert written().page(PAGE) == PAGE
    for title, schema in SCHEMAS.items():
        names = re.findall(r"^\| `(\w+)` \|", section(f"`{title}`"), re.MULTILINE)
        assert names == schema.names
        never_null = re.findall(r"^\| `(\w+)` .*Never null", section(f"`{title}`"), re.MULTILINE)
        assert never_null == [field.name for field in schema if not field.nullable]


@pytest.mark.parametrize(
    "edit",
    [
        lambda page: page.replace("| `int8` |", "| `int32` |"),
        lambda page: page.replace(" Never null. |", " |", 1),
        lambda page: page.replace("| `faces` | `int32` |", "| `people` | `int32` | Unknown. |\n| `faces` | `int32` |"),
    ],
)
def test_another_type_or_column_is_written_again(edit: Callable[[str], str]) -> None:
    assert edit(PAGE) != PAGE
    assert written().page(edit(PAGE)) == PAGE


def test_a_column_without_a_meaning_is_named() -> None:
    with pytest.raises(SystemExit, match="add a row for `area` of `masks`"):
        written().page(PAGE.replace("| `area` |", "| `areas` |"))


def test_every_field_of_a_commit_is_there() -> None:
    value = json.loads(Commit(0, 1, (0, 4), "07dea44c13b1", "0" * 64, {}, (), ((1, 0.5),)).to_json())
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
    masks = [{**mask, "output": 2}, {**mask, "container": 20_000}]
    written = annotations_json(2, "sa_2.jpg", (1, 1), masks).decode()
    shown = section("The tar and its JSON").split("```")[1]
    assert re.findall(r'"(\w+)":', shown) == list(dict.fromkeys(re.findall(r'"(\w+)":', written)))
