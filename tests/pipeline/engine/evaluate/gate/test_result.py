"""A gate's judgment for people, programs and pages, from recorded scores."""

import json
from typing import Any

import pytest

from segmint.catalogs.lineage import TrainingDatasetRef, TrainingRound
from segmint.pipeline.engine.evaluate.gate.lineage import Lineage
from segmint.pipeline.engine.evaluate.gate.result import TO_DO, GateJudgment, GateResult, JudgedImages
from segmint.pipeline.engine.evaluate.gate.verdict import GateVerdict, GuardComparison, MeanComparison, decide
from segmint.pipeline.engine.evaluate.measure import EvaluatedWeights
from segmint.pipeline.engine.evaluate.page import render
from segmint.pipeline.engine.evaluate.result import EvaluationSubject
from segmint.pipeline.engine.evaluate.truth import SkippedTruth
from tests.support.html import parse_page

OLD, NEW = EvaluatedWeights("mobile_sam", "a" * 64), EvaluatedWeights("models/new.pth", "b" * 64)
TRAINED = TrainingRound(
    weights="b" * 64, name="new.pth", datasets=(TrainingDatasetRef(name="street", digest="1" * 64),)
)


def compared(measure: str, difference: float, half: float | None, images: int = 40) -> MeanComparison:
    interval = None if half is None else (difference - half, difference + half)
    return MeanComparison(measure, images, 3 * images, 0.5, 0.5 + difference, difference, interval)


def judgment(gain: float | None = 0.05, guard: float = 0.0, **changes: Any) -> GateJudgment:
    independent = () if gain is None else (compared("iou_1", gain, 0.01), compared("iou_3", gain, 0.02))
    guards = (GuardComparison("photos", (compared("oracle_1", guard, 0.004), compared("iou_1", -0.3, 0.1))),)
    verdict, reasons = decide(independent, guards)
    lineages = Lineage(OLD, True), Lineage(NEW, True, (TRAINED,), 0.1)
    values = {
        "truths": (JudgedImages("street", 12, "new.pth trained on it: its held-out 10% remains"),),
        "independent": independent,
        "guards": guards,
        "guard_images": (JudgedImages("photos", 0, "in no lineage: all images count as held out"),),
        **changes,
    }
    return GateJudgment(verdict, reasons, lineages, **values)


def subject() -> EvaluationSubject:
    return EvaluationSubject("points", (), (OLD, NEW), "nothing", 0, 0, (), 0.0)


def test_lines_have_the_verdict_its_reason_and_what_was_left_out() -> None:
    assert judgment().lines() == [
        "gate: may new.pth replace mobile_sam? better",
        "  the mean IoU at one click changes by +5.0 (+4.0 to +6.0): the whole interval is above 0",
        "  independent masks, 120 masks of 40 images, one click: +5.0 (+4.0 to +6.0)",
        "  independent masks, 120 masks of 40 images, three clicks: +5.0 (+3.0 to +7.0) (does not decide)",
        "  guard set photos, 120 masks of 40 images, best of three: +0.0 (-0.4 to +0.4)",
        "  guard set photos, 120 masks of 40 images, one click: -30.0 (-40.0 to -20.0) (does not decide)",
        "  mobile_sam: not trained by segmint",
        "  new.pth: trained on street, with 10% held out",
        "  street: new.pth trained on it: its held-out 10% remains; 12 images excluded because they were trained on",
        "  guard set photos: in no lineage: all images count as held out",
    ]


def test_a_guard_set_that_is_worse_comes_first() -> None:
    found = judgment(guard=-0.02)
    assert found.lines()[:3] == [
        "gate: may new.pth replace mobile_sam? worse",
        "  on the guard set photos, the mean IoU (best of three) changes by -2.0 (-2.4 to -1.6): the whole interval is "
        "below -1.0",
        "  the mean IoU at one click changes by +5.0 (+4.0 to +6.0): the whole interval is above 0",
    ]
    assert found.to_dict()["guards"][0]["worse"] == ["oracle_1"]


def test_assisted_masks_are_apart_with_the_model_that_assisted() -> None:
    found = judgment(
        None, assisted=(compared("iou_1", 0.3, 0.1),), assisted_by={"the second weights": 100, "others": 20}
    )
    assert found.verdict is GateVerdict.NO_TRUTH
    lines = found.lines()
    assert lines[2] == f"  {TO_DO}"
    assert "  assisted masks, 120 masks of 40 images, one click: +30.0 (+20.0 to +40.0) (does not decide)" in lines
    assert "  assisted masks favor the model that assisted: 100 by the second weights, 20 by others" in lines
    assert found.to_dict()["assisted"]["masks_by_model"] == {"the second weights": 100, "others": 20}


def test_the_answer_is_json() -> None:
    answer = json.loads(json.dumps(GateResult(subject(), judgment()).to_dict(), allow_nan=False))
    gate = answer["gate"]
    assert (gate["verdict"], gate["decided_by"]) == ("better", "iou_1")
    assert gate["independent"][0] == {
        "measure": "iou_1",
        "images": 40,
        "masks": 120,
        "first": 0.5,
        "second": 0.55,
        "difference": 0.05,
        "interval": pytest.approx([0.04, 0.06]),
    }
    assert [each["sha256"] for each in gate["lineages"]] == ["a" * 64, "b" * 64]
    assert gate["lineages"][1]["rounds"][0]["datasets"] == [{"name": "street", "digest": "1" * 64}]
    assert gate["images"][0]["trained"] == 12


@pytest.mark.parametrize(
    ("gain", "guard", "kind", "word"),
    [
        (0.05, 0.0, "verdict good", "better"),
        (0.05, -0.02, "verdict bad", "worse"),
        (None, 0.0, "verdict", "no independent truth"),
    ],
)
def test_the_page_shows_the_verdict(gain: float | None, guard: float, kind: str, word: str) -> None:
    values = judgment(gain, guard, guards=(GuardComparison("<photos>", (compared("iou_3", guard, 0.004),)),)).values()
    page = render("gate.html.j2", subject(), "Weights compared by a gate", [], judged=values)
    parse_page(page)
    assert f'<div class="{kind.strip()}' in page
    assert f'<p class="word">{word}</p>' in page
    assert "&lt;photos&gt;" in page
    assert 'mobile_sam</th><th scope="col" class="num foreign">new.pth</th>' in page
    assert f'<td>three clicks</td><td class="num">50.0</td><td class="num">{50 + 100 * guard:.1f}</td>' in page
    assert "<photos>" not in page


def test_a_guard_set_that_could_not_be_judged_does_not_pass() -> None:
    assert judgment().passes
    assert not judgment(0.0).passes
    skipped = (SkippedTruth("photos", "sa_1.jpg", "it is gone"),)
    found = judgment(guards=(GuardComparison("photos", ()),), guard_skipped=skipped)
    assert (found.verdict, found.passes) == (GateVerdict.BETTER, False)
    assert "not checked: guard set photos: sa_1.jpg: it is gone" in found.lines()
    assert found.to_dict()["guard_skipped"]["count"] == 1
