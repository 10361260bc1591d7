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
    ("changes", "rows", "expected"),
    [
        ({}, LARGE_ROWS + 1, ["the bundled face and plate detectors"]),
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
