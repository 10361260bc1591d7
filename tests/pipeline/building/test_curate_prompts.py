"""Boxes from COCO and YOLO files become prompts of the rows that their images fit."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from segmint.catalogs.source.check import check
from segmint.pipeline.commands.cli import app
from tests.support.locations import location_of

IMAGES = [
    {"id": 0, "file_name": "val/1.jpg", "width": 640, "height": 480},
    {"id": "2", "file_name": "2.jpg", "width": 64, "height": 48},
]
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 8, "name": "cat"}]
ROWS = [
    {"uri": "photos/2.jpg", "license": "CC0-1.0", "extra": 5},
    {"uri": "val/1.jpg", "license": "CC0-1.0", "image_id": "first"},
    {"uri": "0001.tar#512+600", "license": "CC0-1.0", "image_id": "0001.tar/a/3.jpg"},
    {"uri": "other/2.png", "license": "CC0-1.0"},
    {"uri": "photos/2.jpg", "license": "CC0-1.0", "image_id": "photos/2.jpg"},  # repeats the first row
]


def annotation(image: Any, box: Any, **changes: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": image, "category_id": 7, "bbox": box, "iscrowd": 0, **changes}


def prompts(folder: Path, *options: str, rows: list[dict[str, Any]] = ROWS) -> tuple[int, str, list[Any]]:
    catalog = folder / "c.jsonl"
    catalog.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    output = folder / "prompted.parquet"
    result = CliRunner().invoke(app, ["catalog", "prompts", str(catalog), "-o", str(output), *options])
    if not output.exists():
        return result.exit_code, result.output, []
    table = pq.read_table(output)
    assert table.column("uri").to_pylist() == [row["uri"] for row in rows]
    assert table.column_names[-1] == "prompts"
    assert check(location_of(output)).bad_values.count == 0
    return result.exit_code, result.output, table.column("prompts").to_pylist()


def coco(folder: Path, *annotations: Any, images: Any = IMAGES) -> tuple[str, str]:
    file = folder / "boxes.json"
    document = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    file.write_text(json.dumps(document))
    return "--coco", str(file)


def yolo(folder: Path, names: str = "names: [dog, cat]", **files: str) -> tuple[str, str, str, str]:
    for name, text in files.items():
        path = folder / "labels" / f"{name.replace('__', '/')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "data.yaml").write_text(names)
    return "--yolo", str(folder / "labels"), "--names", str(folder / "data.yaml")


def box(*sides: float, label: str | None = "dog", score: float | None = None) -> dict[str, Any]:
    return {"box": pytest.approx(list(sides)), "points": None, "point_labels": None, "label": label, "score": score}


def test_coco_boxes_keep_labels_and_scores_and_crowds_are_left_out(tmp_path: Path) -> None:
    options = coco(
        tmp_path,
        annotation(0, [1, 2, 30.5, 40], score=0.75),
        annotation(0, [0, 0, 640, 480], iscrowd=1),
        annotation(2, [1, 2, 3, 4], category_id=8),
        annotation(0, [600, 400, 41, 80]),
    )
    code, said, found = prompts(tmp_path, *options)
    first = {"width": 640.0, "height": 480.0, "prompts": [box(1, 2, 30.5, 40, score=0.75), box(600, 400, 41, 80)]}
    second = {"width": 64.0, "height": 48.0, "prompts": [box(1, 2, 3, 4, label="cat")]}
    assert (code, found) == (0, [second, first, None, None, None])
    assert "prompted.parquet: 3 prompts for 2 of 5 rows\nleft out: 1 crowd\n" in said
    assert pq.read_table(tmp_path / "prompted.parquet").column("extra").to_pylist() == [5, None, None, None, None]
    code, said, _ = prompts(tmp_path, *options)
    assert code == 2
    assert "already exists and is not overwritten" in said


def test_what_a_build_would_refuse_is_left_out_and_listed(tmp_path: Path) -> None:
    images = [*IMAGES, {"id": 9, "file_name": "2.png"}, {"id": 0, "file_name": "3.jpg", "width": 1, "height": 1}]
    wrong = [
        annotation(0, [1, 2, 3, 4]),  # two images have this id
        annotation(5, [1, 2, 3, 4]),
        annotation(2, [1, 2, 3, 4], category_id=9),
        annotation(2, [1, 2, 0, 4]),
        annotation(2, [1, 2, 3]),
        annotation(2, [60, 2, 9, 4]),
        annotation(2, [1, 2, float("nan"), 4]),
        "a box",
        {**annotation(2, None), "segmentation": [[1, 2, 3, 4, 5, 6]]},
    ]
    code, said, found = prompts(tmp_path, *coco(tmp_path, *wrong, annotation(2, [1, 2, 3, 4]), images=images))
    nothing = {"width": 640.0, "height": 480.0, "prompts": []}
    second = {"width": 64.0, "height": 48.0, "prompts": [box(1, 2, 3, 4)]}
    assert (code, found) == (3, [second, nothing, {"width": 1.0, "height": 1.0, "prompts": []}, None, None])
    lines = [line.removeprefix("not checked: ") for line in said.splitlines() if line.startswith("not checked: ")]
    assert len(lines) == 10
    assert lines[9] == "annotation number 9: it has no bbox; masks aren't read"
    assert lines[0] == "image number 3 has no id, file_name, width, or height"
    assert lines[1] == "annotation number 1: 2 images have its image_id, and 1 names its category"
    assert lines[2] == "annotation number 2: 0 images have its image_id, and 1 names its category"
    assert lines[3] == "annotation number 3: 1 images have its image_id, and 0 names its category"
    assert lines[4].startswith("annotation number 4: found ")
    assert lines[4].endswith("expected a box [x, y, width, height] with positive width and height")
    assert (
        lines[6]
        == "annotation number 6: [[60.0, 2.0], [69.0, 6.0]]; expected at most [64.0, 48.0], as the prompts' frame"
    )
    assert lines[7] == "annotation number 7: found nan as box.2; expected a finite number"


def test_yolo_boxes_are_shares_of_the_sides(tmp_path: Path) -> None:
    options = yolo(
        tmp_path,
        "names: {0: dog, 3: cat, 4: null, 5: 6}",
        val__1="0 0.5 0.5 0.5 0.25\n\n3 0.1 0.2 0.2 0.4 0.875\n",
        a__3="",
        classes="dog\ncat\n",
        photos__2="1 0.5 0.5 0.5 0.5\n0 0.5 0.5 0.5\n0 0.9 0.5 0.5 0.5\n0 a 0.5 0.5 0.5\n0 0.5 0.5 1 1\n"
        "0 0.1 0.1 0.9 0.1 0.5 0.9\n0 0.5 0.5 nan 0.5\n0 0.5 0.5 0 0.5\n0 0.5 0.5 -1 0.5\n5 0.5 0.5 0.5 0.5\n",
        other__2="\ufeff4 0.5 0.5 1 1\n",
    )
    code, said, found = prompts(tmp_path, *options)
    frame = {"width": 1.0, "height": 1.0}
    assert code == 3, said
    assert found[0] == {**frame, "prompts": [box(0, 0, 1, 1), box(0.25, 0.25, 0.5, 0.5, label="6")]}
    first = [box(0.25, 0.375, 0.5, 0.25), box(0, 0, 0.2, 0.4, label="cat", score=0.875)]
    bare = {**frame, "prompts": [box(0, 0, 1, 1, label=None)]}
    assert found[1:] == [{**frame, "prompts": first}, {**frame, "prompts": []}, bare, None]
    assert "5 prompts for 4 of 5 rows" in said
    assert "photos/2.txt, line 1: found the class '1', which has no name" in said
    assert "line 2: found 4 values; expected class, x, y, width, height, and maybe a score" in said
    assert "line 3: [[0.65, 0.25], [1.15, 0.75]]; expected at most [1, 1]" in said
    assert "line 4: could not convert string to float: 'a'" in said
    assert "line 6: found 7 values; expected class, x, y, width, height, and maybe a score; polygons aren't" in said
    assert "line 7: found nan as box.0; expected a finite number" in said
    for number in (8, 9):
        assert f"photos/2.txt, line {number}: found " in said
    assert said.count("with positive width and height") == 2


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["missing.jpg"], "the image 'missing.jpg' fits no row in "),
        (["\ud800.jpg"], r"the image '\ud800.jpg' fits no row in "),
        (
            ["2.jpg", "photos/2.jpg"],
            "'photos/2.jpg' fits row 1, and it fits another row, or the row fits another image",
        ),
        (["again.jpg"], "'again.jpg' fits row 3, and it fits another row, "),
        (["xagain.jpg"], "'xagain.jpg' fits no row in "),
    ],
)
def test_a_name_that_does_not_fit_exactly_one_row_is_refused(tmp_path: Path, names: list[str], said: str) -> None:
    rows = [{"uri": f"{name}.jpg", "license": "MIT"} for name in ("photos/2", "a/again", "b/again")]
    images = [{"id": number, "file_name": name, "width": 9, "height": 9} for number, name in enumerate(names)]
    code, told, found = prompts(tmp_path, *coco(tmp_path, images=images), rows=rows)
    assert (code, found) == (2, [])
    assert said in " ".join(told.split())


def test_other_requests_are_refused(tmp_path: Path) -> None:
    boxes, labels = coco(tmp_path), yolo(tmp_path)
    for options in ((), labels[:2], (*boxes, *labels), (*boxes, *labels[2:])):
        code, said, _ = prompts(tmp_path, *options)
        assert code == 2
        assert "pass either --coco, or --yolo and --names" in said
    (tmp_path / "labels").mkdir()
    assert "has no labels; expected a file <name>.txt for each image" in prompts(tmp_path, *labels)[1]
    assert "has no `names`" in prompts(tmp_path, *yolo(tmp_path, "nc: 2", a=""))[1]
    code, said, _ = prompts(tmp_path, "--coco", str(tmp_path / "missing.json"))
    assert code == 2
    assert "missing.json" in said
    (tmp_path / "boxes.json").write_text("[]")
    assert "pass the annotations file" in prompts(tmp_path, *boxes)[1]
    rows = [{**ROWS[0], "prompts": {"width": 1, "height": 1, "prompts": []}}]
    code, said, _ = prompts(tmp_path, *coco(tmp_path, images=[]), rows=rows)
    assert code == 2
    assert "already has the column prompts" in said
