"""Verdicts on the second of two models."""

import pytest

from segmint.pipeline.engine.evaluate.gate.verdict import GateVerdict
from segmint.pipeline.engine.evaluate.result import verdict


@pytest.mark.parametrize(
    ("difference", "interval", "p", "images", "word"),
    [
        (0.1, (0.05, 0.15), 0.01, 10, GateVerdict.BETTER),
        (-0.1, (-0.15, -0.05), 0.01, 10, GateVerdict.WORSE),
        (0.1, (0.05, 0.15), 0.05, 10, GateVerdict.NO_DIFFERENCE),
        (0.1, (-0.01, 0.2), 0.01, 10, GateVerdict.NO_DIFFERENCE),
        (0.1, (0.0, 0.2), 0.01, 10, GateVerdict.NO_DIFFERENCE),
        (0.1, None, 0.01, 10, GateVerdict.NO_DIFFERENCE),
        (0.1, None, 0.01, 9, "too few images for an interval"),
        (0.1, (0.05, 0.15), None, 10, "not tested"),
        (None, None, None, 10, "not tested"),
    ],
)
def test_a_verdict_needs_a_test_and_an_interval(
    difference: float | None, interval: tuple[float, float] | None, p: float | None, images: int, word: str
) -> None:
    assert verdict(difference, interval, p, images) == word
