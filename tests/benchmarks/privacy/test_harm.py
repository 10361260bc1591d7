"""The benchmark of harm: what counts as visible, found, covered, and false, and what the tables show."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.privacy.harm import CHANGES, false_rows, mark_rows, photographs, recorded_rows, replaced
from benchmarks.privacy.harm_tables import harm_part
from benchmarks.privacy.pictures import Mark, Picture, marked
from segmint.infra.arrays import Box
from segmint.model.detectors.detection import Detection
from segmint.operators.prepare.deidentify import deidentify

SHAPE = 200, 300


def face(box: Box) -> Detection:
    return Detection("face", 0.9, box, None, "mtcnn")


def mark(x0: float, y0: float, x1: float, y1: float) -> Mark:
    return Mark("face", np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float), hard=False)


def test_it_measures_the_mosaic_and_not_the_box() -> None:
    found = [face((100.0, 80.0, 140.0, 120.0))]
    hidden = replaced(found, SHAPE)
    image = np.random.default_rng(0).integers(0, 255, (*SHAPE, 3), np.uint8)
    changed = (deidentify(image, found)[0] != image).any(axis=2)
    assert changed[hidden].mean() > 0.99
    assert 1.9 < hidden.sum() / 40**2 < 2.1, "an ellipse of 1.6 times the box's sides"
    (row,) = mark_rows([mark(60, 80, 140, 120)], found, SHAPE)
    assert row == {"kind": "face", "side": 57, "found": True, "visible": False, "covered": row["covered"]}
    assert row["covered"] == pytest.approx(0.62, abs=0.03)


def test_what_shows_no_mark_is_false() -> None:
    marks = [mark(100, 80, 140, 120), mark(20, 20, 50, 50)]
    found = [face((110.0, 90.0, 120.0, 100.0)), face((200.0, 100.0, 230.0, 130.0))]
    (row,) = false_rows(marks, found, SHAPE)
    assert row["share"] == pytest.approx(replaced(found[1:], SHAPE).mean(), abs=1e-6)
    assert [each["visible"] for each in mark_rows(marks, found, SHAPE)] == [False, True]
    assert [each["found"] for each in mark_rows(marks, found, SHAPE)] == [False, False]


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_moves_the_marks_along(name: str) -> None:
    pixels = np.full((*SHAPE, 3), 90, np.uint8)
    pixels[80:120, 100:140] = 250
    make = CHANGES[name]
    picture = Picture("x", "0", pixels, (mark(100, 80, 140, 120),))
    changed = picture if make is None else make(picture)
    x0, y0, x1, y1 = (round(value) for value in changed.marks[0].box)
    inside = changed.pixels[y0:y1, x0:x1].mean()
    assert inside > 2 * changed.pixels[: y0 - 2].mean()


def test_a_mark_keeps_its_view(tmp_path: Path) -> None:
    folder = tmp_path / "ordinary"
    folder.mkdir()
    face_box = {"box": [30, 30, 40, 40], "hard": False}
    (folder / "truth.json").write_text(json.dumps({"p094.jpg": {"size": [300, 200], "faces": [face_box, face_box]}}))
    ((path, truth),) = photographs(folder, None)
    picture = marked(path.name, np.zeros((*SHAPE, 3), np.uint8), truth)
    rows = mark_rows([*picture.marks, mark(60, 80, 140, 120)], [], SHAPE)
    assert [row.get("view") for row in rows] == ["frontal", "profile", None]


def test_rows_of_another_rule_are_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "harm.json"
    assert recorded_rows(path) == []
    path.write_text('{"rule": 3, "rows": [{}]}')
    assert recorded_rows(path) == []
    path.write_text('{"rule": 4, "rows": [{}]}')
    assert recorded_rows(path) == [{}]


def test_the_tables_count_per_thousand_images_and_by_photograph() -> None:
    seen = {"kind": "face", "side": 40, "view": "profile", "found": False, "visible": True, "covered": 0.0}
    hidden = {"kind": "face", "side": 70, "found": True, "visible": False, "covered": 0.9}
    row = {"set": "ordinary", "change": "upright", "released": True, "cpu_seconds": 0.5}
    rows = [{**row, "picture": f"{i}", "marks": [seen] * (i == 0), "false": []} for i in range(20)]
    rows[3]["false"] = [{"kind": "face", "share": 0.04}]
    rows[4]["false"] = [{"kind": "face", "share": 0.005}]
    rows += [{**row, "set": "faces", "picture": f"f{i}", "marks": [hidden], "false": None} for i in range(10)]
    machine = {"threads": 1, "cores_usable": 2, "cpu": "x", "capability": "y", "torch": "2", "python": "3"}
    result = {"rows": rows, "iou": 0.3, "rule": 4, "date": "2026-01-01", "machine": machine}
    text = harm_part({"harm": {**result, "machine": {**machine, "load_average_before": 0}}})
    assert "| ordinary, upright | 20 | 50 (1) | 0 (0) | 100 (2) | 5.0% (" in text
    assert "| 0.23% | 0.50 |" in text or "| 0.22% | 0.50 |" in text
    assert "| ordinary, upright: faces | 0 of 0 | 1 of 1 | 0 of 0 | 0 of 0 |  | 1 of 1 |  |" in text
    assert "| faces, upright | 10 | 10 | 100.0% (" in text
    assert harm_part({}) == ""
