"""The trial of a segmenter on a control image."""

from functools import partial

import pytest

from segmint.operators.custom.contract import load_stage
from segmint.operators.segmenter.segmenter import CustomSegmenter
from segmint.pipeline.building.first_numerics import controls_of, problem_on


@pytest.mark.parametrize(
    ("rejects", "fails", "shown"),
    [
        ("label", "box", "no masks for [30.0, 40.0, 100.0, 100.0]"),
        ("label", "points", "no masks for [[190.0, 140.0], [80.0, 90.0]]"),
        ("box", "label", "no masks for disc"),
        ("box", "score", None),
    ],
)
@pytest.mark.parametrize("adds", [False, True])
def test_a_segmenter_that_wants_prompts_gets_every_kind(
    rejects: str, fails: str, shown: str | None, adds: bool
) -> None:
    spec = load_stage("tests.support.segmenters.Fussy", {"rejects": rejects, "fails": fails})
    problem = problem_on(partial(CustomSegmenter, spec, 1, 60.0), controls_of(spec, adds=adds))
    if shown is None:
        assert problem is None
    else:
        assert problem is not None
        assert "segmenters.py" in problem
        assert f"ValueError: {shown}" in problem
