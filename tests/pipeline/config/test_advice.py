"""What a large dataset's configuration is advised against, and when nothing is said."""

from typing import Any

import pytest

from segmint.pipeline.config.advice import LARGE_ROWS, advice
from segmint.pipeline.config.config import Config

NO_DETECTORS = {"faces": {"detector": "none"}, "plates": {"detector": "none"}}


def config_with(**changes: Any) -> Config:
    needed = {"name": "x", "catalog": "/c.jsonl", "output": "/out", "license": {"allow": ["CC0-1.0"]}}
    return Config.model_validate({**needed, **changes})


@pytest.mark.parametrize(
    ("changes", "rows", "on_gpu", "begun", "expected"),
    [
        ({}, LARGE_ROWS + 1, True, False, ["the bundled face and plate detectors", "model.weights is not set"]),
        ({}, LARGE_ROWS, True, False, []),
        ({}, LARGE_ROWS + 1, False, False, ["the bundled face and plate detectors"]),
        ({}, LARGE_ROWS + 1, True, True, ["the bundled face and plate detectors"]),
        ({"deidentify": NO_DETECTORS}, LARGE_ROWS + 1, True, False, ["model.weights is not set"]),
        ({"deidentify": NO_DETECTORS, "model": {"weights": "mobile_sam"}}, LARGE_ROWS + 1, True, False, []),
        ({"deidentify": NO_DETECTORS, "model": {"device": "cuda"}}, LARGE_ROWS + 1, True, False, ["model.weights"]),
    ],
)
def test_defaults_for_trials_are_named_for_large_datasets(
    changes: dict[str, Any], rows: int, on_gpu: bool, begun: bool, expected: list[str]
) -> None:
    found = advice(config_with(**changes), rows, on_gpu=on_gpu, begun=begun)
    assert len(found) == len(expected)
    assert all(text.startswith(start) for text, start in zip(found, expected, strict=True))
