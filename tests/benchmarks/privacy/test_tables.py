"""The recall that plans and cards state is the recorded one."""

import pytest

from benchmarks.measuring import RESULTS
from benchmarks.page import read_results
from benchmarks.privacy.tables import measured, privacy_part, sources
from segmint.operators.prepare.deidentify import COMPOSITES, PHOTOGRAPHS, RECALL, MeasuredRecall, describe_recall


def row(change: str, found: list[int], missed: list[int], false: int = 0, name: str = "mtcnn") -> dict[str, object]:
    return {"picture": "x", "change": change, "detector": name, "found": found, "missed": missed, "false": false}


def test_the_product_states_the_recorded_figures() -> None:
    """Without a recorded result, it states none."""
    result = read_results(RESULTS).get("privacy")
    kinds = {} if result is None else {"mtcnn": "faces", "clp": "plates"}
    assert {name: measured(result or {}, name, kind) for name, kind in kinds.items()} == RECALL
    if result is not None:
        assert sources(result) == PHOTOGRAPHS
        assert len({row["picture"] for row in result["rows"] if row["picture"].startswith("composite")}) == COMPOSITES
        assert {row["refused"] for row in result["rows"]} == {None}


def test_a_sentence_has_all_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECALL, "mtcnn", MeasuredRecall("faces", (36, 37), (9, 111), (70, 120)))
    assert describe_recall(["mtcnn", "faces.onnx"]) == (
        "They were measured on 13 photographs and 40 composites of them: mtcnn found 36 of 37 faces upright, 9 of 111 "
        "rotated by 90, 180, or 270 degrees, and 70 of 120 in the composites."
    )
    assert describe_recall(["faces.onnx"]) == ""


def test_intervals_are_by_picture() -> None:
    rows = [row("0", [100] * 29, []), row("0", [30], [], false=2), row("0", [], []), row("turned", [], [20, 31])]
    machine = {"threads": 1, "cores_usable": 2, "cpu": "x", "capability": "y", "torch": "2", "python": "3"}
    result = {"rows": rows, "iou": 0.3, "smallest": 20.0, "rule": 2, "date": "2026-01-01", "machine": machine}
    text = privacy_part({"privacy": {**result, "machine": {**machine, "load_average_before": 0}}})
    assert "| photographs at 0° | 3 | 2 | 30 | 30 | 100% | 2 | 1 |" in text
    assert "| composites: turned | 1 | 1 | 2 | 0 | 0% | 0 | 0 |" in text
    assert "| 20 to 31 px | 3 | 1 | 33% |" in text
    assert "| 64 to 127 px | 29 | 29 | 100% |" in text
    ten = {**result, "rows": rows[:1] * 10, "machine": {**machine, "load_average_before": 0}}
    many = privacy_part({"privacy": ten})
    assert "| photographs at 0° | 10 | 10 | 290 | 290 | 100% (66%–100%) | 0 | 0 |" in many  # not by mark
    assert privacy_part({}) == ""
