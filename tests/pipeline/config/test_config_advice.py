"""What a large dataset's configuration is advised against, and when nothing is said."""

from typing import Any

import pytest

from segmint.pipeline.config.config import LARGE_ROWS, Config, advice, stage_notes

NO_DETECTORS = {"faces": {"detector": "none"}, "plates": {"detector": "none"}}


def config_with(**changes: Any) -> Config:
    needed = {"name": "x", "catalog": "/c.jsonl", "output": "/out", "license": {"allow": ["CC0-1.0"]}}
    return Config.model_validate({**needed, **changes})


@pytest.mark.parametrize(
    ("changes", "rows", "expected"),
    [
        ({}, LARGE_ROWS + 1, ["the built-in face and plate detectors"]),
        ({}, LARGE_ROWS, []),
        ({"deidentify": NO_DETECTORS}, LARGE_ROWS + 1, []),
    ],
)
def test_defaults_for_trials_are_named_for_large_datasets(
    changes: dict[str, Any], rows: int, expected: list[str]
) -> None:
    found = advice(config_with(**changes), rows)
    assert len(found) == len(expected)
    assert all(text.startswith(start) for text, start in zip(found, expected, strict=True))


def test_a_plan_names_what_it_leaves_out() -> None:
    mean = {"stage": "tests.support.custom_stages.Mean"}
    bright = {"stage": "tests.support.segmenters.Bright"}
    assert stage_notes(config_with(segmenter=bright)) == []
    assert stage_notes(config_with(stages=[mean])) == ["custom stages aren't part of the plan"]
    assert stage_notes(config_with(stages=[mean, {**bright, "after": "segment"}])) == [
        "custom stages aren't part of the plan, nor are the time, masks, and bytes that stage_bright will add"
    ]
