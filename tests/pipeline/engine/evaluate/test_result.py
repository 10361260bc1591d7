"""Verdicts on the second of two models, and whether it fails an evaluation."""

import pytest

from segmint.pipeline.engine.evaluate.result import (
    BETTER,
    NO_DIFFERENCE,
    WORSE,
    EvaluationSubject,
    FailIfWorse,
    verdict,
)


@pytest.mark.parametrize(
    ("difference", "interval", "p", "images", "word"),
    [
        (0.1, (0.05, 0.15), 0.01, 10, BETTER),
        (-0.1, (-0.15, -0.05), 0.01, 10, WORSE),
        (0.1, (0.05, 0.15), 0.05, 10, NO_DIFFERENCE),
        (0.1, (-0.01, 0.2), 0.01, 10, NO_DIFFERENCE),
        (0.1, (0.0, 0.2), 0.01, 10, NO_DIFFERENCE),
        (0.1, None, 0.01, 10, NO_DIFFERENCE),
        (0.1, None, 0.01, 9, "too few images"),
        (0.1, (0.05, 0.15), None, 10, "not tested"),
        (None, None, None, 10, "not tested"),
    ],
)
def test_a_verdict_needs_a_test_and_an_interval(
    difference: float | None, interval: tuple[float, float] | None, p: float | None, images: int, word: str
) -> None:
    assert verdict(difference, interval, p, images) == word


def outcome(difference: float | None, interval: tuple[float, float] | None) -> EvaluationSubject:
    subject = EvaluationSubject("points", (), (), "cpu, fp32", 12, 12, (), 1.0)
    return subject.with_change("iou_1", difference, interval)


@pytest.mark.parametrize("interval", [(-0.2, -0.1), (-0.2, 0.0), (-0.2, 0.1), (0.1, 0.2), (0.0, 0.0)])
def test_the_second_model_is_worse_if_all_of_the_interval_is_below_0(interval: tuple[float, float]) -> None:
    subject = outcome(sum(interval) / 2, interval)
    worse = interval == (-0.2, -0.1)
    assert (len(subject.worse), subject.not_checked) == (worse, [])
    assert subject.to_dict()["fail_if_worse"] == {
        "measure": "iou_1",
        "difference": sum(interval) / 2,
        "interval": interval,
        "worse": worse,
    }
    (line,) = subject.closing_lines()
    assert line.startswith("--fail-if-worse iou_1: the second weights are")
    assert ("are worse, -15.0 (-20.0 to -10.0)" in line) == worse


@pytest.mark.parametrize("difference", [-0.5, 0.0, 0.5, None])
def test_without_an_interval_nothing_is_known(difference: float | None) -> None:
    subject = outcome(difference, None)
    assert (subject.worse, subject.not_checked) == ([], [FailIfWorse("iou_1", difference, None)])
    assert subject.to_dict()["fail_if_worse"]["worse"] is None
    (line,) = subject.closing_lines()
    assert line.startswith("not checked: --fail-if-worse iou_1: the difference has no 95% interval")
