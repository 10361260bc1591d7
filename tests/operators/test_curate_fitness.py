"""Measures of fitness on pictures whose values are known, and on a photograph that is spoiled."""

import cv2
import numpy as np
import pytest

from segmint.operators.curate import MEASURES, MOST_PIXELS, SIDE, at_scale, measure


def test_measures_of_a_flat_picture_and_of_two_halves() -> None:
    gray = measure(np.full((60, 80, 3), 128, np.uint8))
    assert gray == {
        "sharpness": 0.0,
        "contrast": 0.0,
        "entropy": 0.0,
        "dark": 0.0,
        "bright": 0.0,
        "flat": 1.0,
        "colors": 1.0,
    }
    assert gray.keys() == MEASURES.keys()
    halves = np.zeros((60, 80, 3), np.uint8)
    halves[:, 40:] = 255
    found = measure(halves)
    assert (found["contrast"], found["entropy"], found["dark"], found["bright"]) == (127.5, 1.0, 0.5, 0.5)
    assert (found["flat"], found["colors"]) == (pytest.approx(78 / 79), 2.0)


def test_a_spoiled_photograph_measures_worse(astronaut: np.ndarray) -> None:
    good = measure(astronaut)
    blurred = measure(cv2.GaussianBlur(astronaut, (0, 0), 5))
    dark = measure((astronaut * 0.05).astype(np.uint8))
    drawing = measure(astronaut // 64 * 64)
    assert blurred["sharpness"] < good["sharpness"] / 50
    assert dark["dark"] > 0.5 > good["dark"]
    assert dark["contrast"] < good["contrast"] / 10
    assert drawing["flat"] > 3 * good["flat"]
    assert drawing["colors"] <= 64 < good["colors"]


def test_a_picture_is_measured_at_one_scale(astronaut: np.ndarray) -> None:
    assert at_scale(astronaut[:200, :300]).shape == (200, 300, 3)
    wide = cv2.resize(astronaut, (2048, 1024), interpolation=cv2.INTER_CUBIC)
    assert at_scale(wide).shape == (SIDE, 2 * SIDE, 3)
    assert at_scale(wide.transpose(1, 0, 2)).shape == (2 * SIDE, SIDE, 3)


@pytest.mark.parametrize("shape", [(20, 500_000, 3), (500_000, 20, 3)])
def test_a_very_long_picture_is_measured_at_a_bounded_size(shape: tuple[int, int, int]) -> None:
    long = np.broadcast_to(np.uint8(128), shape)
    found = at_scale(long)
    assert MOST_PIXELS * 0.9 < found.shape[0] * found.shape[1] <= MOST_PIXELS
    assert measure(found)["flat"] == 1
    sixteenth = np.broadcast_to(np.uint8(0), (SIDE, 16 * SIDE, 3))
    assert at_scale(sixteenth) is sixteenth
