"""The second look: which part of an image a view shows, and which scores confirm a candidate."""

from pathlib import Path

import numpy as np
import pytest

from segmint.infra.arrays import Box
from segmint.model.detectors.detection import Detection, turned_back
from segmint.model.detectors.second_look import (
    LARGE_FACE,
    PLATE,
    SMALL_FACE,
    SURE_FACE,
    Rule,
    View,
    is_confirmed,
    rule_for,
    view_of,
)
from segmint.operators.prepare.deidentify import CheckedDetector, DeidentifyConfig, build_detectors
from segmint.operators.prepare.mosaic import ORIENTATIONS
from tests.conftest import read_rgb

pytestmark = pytest.mark.usefixtures("one_thread")

BOX = (30.0, 40.0, 50.0, 70.0)


def candidate(box: Box = BOX, angle: int = 0, kind: str = "face") -> Detection:
    return Detection(kind, 0.9, box, None, "mtcnn", angle)  # type: ignore[arg-type]


@pytest.mark.parametrize("angle", ORIENTATIONS)
def test_a_box_turns_with_its_image(angle: int) -> None:
    """Turned by the rest of a full turn, it's back where it was."""
    size = 90, 120
    turned = turned_back(candidate(), -angle % 360, size if angle % 180 == 0 else size[::-1])
    assert turned_back(turned, angle, size).box == BOX


@pytest.mark.parametrize("angle", ORIENTATIONS)
def test_a_view_shows_the_candidate_in_its_orientation(angle: int) -> None:
    image = np.zeros((120, 90, 3), np.uint8)
    image[40:70, 30:50] = (200, 100, 50)
    seen = view_of(image, candidate(angle=angle), View(60))
    assert seen is not None
    window, box = seen
    assert max(box[2] - box[0], box[3] - box[1]) == pytest.approx(60, abs=1)
    x0, y0, x1, y1 = (round(value) for value in box)
    assert (window[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2] == (200, 100, 50)).all()
    window[y0 - 2 : y1 + 2, x0 - 2 : x1 + 2] = 0
    assert not window.any(), "else the box is elsewhere"


def test_views_are_mirrored_and_change_colors() -> None:
    image = np.zeros((120, 90, 3), np.uint8)
    image[40:70, 30:40] = (200, 100, 50)  # the left half of the box
    seen = view_of(image, candidate(), View(30, "swapped", is_mirrored=True))
    assert seen is not None
    window, (x0, y0, x1, y1) = seen
    right = window[round(y0) + 2 : round(y1) - 2, round((x0 + x1) / 2) + 2 : round(x1) - 2]
    assert (right == (50, 100, 200)).all()
    gray = view_of(image, candidate(), View(30, "gray"))
    assert gray is not None
    assert (gray[0] == gray[0][..., :1]).all()
    assert gray[0].any()


def test_views_are_clipped_to_the_image() -> None:
    image = np.zeros((120, 90, 3), np.uint8)
    seen = view_of(image, candidate((-10.0, -10.0, 20.0, 20.0)), View(30))
    assert seen is not None
    assert seen[0].shape == (38, 38, 3)  # a center at (5, 5), and half of 2.2 times 30 pixels
    assert view_of(image, candidate((200.0, 200.0, 220.0, 220.0)), View(30)) is None
    assert view_of(image, candidate((20.0, 20.0, 20.0, 20.0)), View(30)) is None


def test_a_rule_reads_only_the_scores_that_it_needs() -> None:
    rule = Rule(tuple(View(side) for side in (10, 20, 30, 40)), 0.5)
    for scores, met, read in (
        ((1.0, 1.0, 0.0, 0.0), True, 2),
        ((0.0, 0.0, 0.9, 1.0), False, 3),
        ((0.5, 0.5, 0.5, 0.5), True, 4),
    ):
        left = iter(scores)
        assert rule.is_met(left) is met
        assert len(list(left)) == 4 - read
    capped = Rule(rule.views, 0.4, cap=0.5)
    assert capped.is_met([1.0, 1.0, 1.0, 0.2])
    assert not capped.is_met([1.0, 1.0, 1.0, 0.0]), "only 0.5 of each counts"
    sure = Rule(rule.views, 0.9, sure=0.95)
    assert sure.is_met([0.95, 0.96, 0.0, 0.0])
    assert not sure.is_met([0.95, 0.94, 1.0, 0.0])


def test_large_and_turned_faces_have_a_stricter_rule() -> None:
    shape = 400, 1000
    side = LARGE_FACE * 1000
    assert rule_for(candidate((0.0, 0.0, side, 20.0)), shape) is SMALL_FACE
    assert rule_for(candidate((0.0, 0.0, 20.0, side + 1)), shape) is SURE_FACE
    assert rule_for(candidate((0.0, 0.0, 20.0, 20.0), angle=90), shape) is SURE_FACE
    assert rule_for(candidate((0.0, 0.0, 20.0, 20.0), kind="plate"), shape) is PLATE


def test_only_detections_at_the_candidates_place_confirm_it() -> None:
    image = np.zeros((200, 200, 3), np.uint8)
    here = candidate((90.0, 90.0, 110.0, 110.0))

    def look(window: np.ndarray) -> list[Detection]:
        middle, side = window.shape[0] / 2, window.shape[0] / 2.2
        return [candidate((middle - side / 2, middle - side / 2, middle + side / 2, middle + side / 2))]

    def look_beside(window: np.ndarray) -> list[Detection]:
        return [candidate((0.0, 0.0, window.shape[1] / 3, window.shape[0] / 3))]

    assert is_confirmed(look, image, here)
    assert not is_confirmed(look_beside, image, here)


def test_faces_of_a_real_photograph_are_confirmed_and_a_wall_is_not(photos: Path, weights: None) -> None:
    """In the photograph of 1927, `mtcnn` finds a face on a wall with a score of 0.78."""
    (faces,) = build_detectors(DeidentifyConfig.model_validate({"plates": {"detector": "none"}}))
    checked = CheckedDetector(faces)
    six = read_rgb(photos / "multiface.jpg")
    found = checked.confirm(checked.detect(six), six)
    assert (len(found.confirmed), len(found.unconfirmed)) == (6, 0)
    wall = candidate((1253.0, 867.0, 1299.0, 920.0))
    assert checked.confirm([wall], read_rgb(photos / "solvay_1927.jpg")).unconfirmed == (wall,)


def test_plates_are_confirmed_and_the_side_of_a_truck_is_not(photos: Path, weights: None) -> None:
    (plates,) = build_detectors(DeidentifyConfig.model_validate({"faces": {"detector": "none"}}))
    checked = CheckedDetector(plates)
    for name in ("plate_car_1.png", "plate_car_2.webp"):
        image = read_rgb(photos / name)
        found = checked.confirm(checked.detect(image), image)
        assert (len(found.confirmed), len(found.unconfirmed)) == (1, 0)
    side = candidate((400.0, 500.0, 640.0, 600.0), kind="plate")
    assert checked.confirm([side], read_rgb(photos / "truck.jpg")).unconfirmed == (side,)
