"""Turned photographs: faces are found in all four orientations, once each, and exactly where they are."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segmint.model.detectors.detection import Detection, Detector, Kind, iou
from segmint.operators.prepare.deidentify import DeidentifyConfig, PlatesConfig, build_detectors
from segmint.operators.prepare.mosaic import ORIENTATIONS, is_same, search_orientations, search_turned
from tests.conftest import read_rgb

pytestmark = pytest.mark.usefixtures("one_thread")

COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255))


class CornersDetector:
    """Finds four pixels of different colors: the corners of a plate, in the order of `COLORS`."""

    kind: Kind = "plate"
    name = "corners"
    score = 0.5

    def detect(self, image: np.ndarray) -> list[Detection]:
        places = [np.argwhere((image == color).all(axis=2))[0] + 0.5 for color in COLORS]
        (ys, xs) = zip(*(place.tolist() for place in places), strict=True)
        quad = tuple(zip(xs, ys, strict=True))
        return [Detection("plate", 0.9, (min(xs), min(ys), max(xs), max(ys)), quad, self.name)]  # type: ignore[arg-type]


@pytest.mark.parametrize("angle", ORIENTATIONS)
def test_what_is_found_turned_is_mapped_back_exactly(angle: int) -> None:
    image = np.zeros((70, 110, 3), np.uint8)
    places = ((3, 5), (60, 9), (58, 40), (1, 33))
    for (x, y), color in zip(places, COLORS, strict=True):
        image[y, x] = color
    (found,) = search_turned(CornersDetector(), image, angle)
    assert found.quad == tuple((x + 0.5, y + 0.5) for x, y in places)
    assert found.box == (1.5, 5.5, 60.5, 40.5)
    assert found.orientation == angle


@pytest.fixture(scope="module")
def faces(weights: None) -> Detector:
    return build_detectors(DeidentifyConfig(plates=PlatesConfig(detector="none")))[0]


class Counted:
    """A detector that counts its searches by the number of pixels."""

    def __init__(self, detector: Detector) -> None:
        self.kind, self.name, self.score = detector.kind, detector.name, detector.score
        self.searched: list[int] = []
        self._detector = detector

    def detect(self, image: np.ndarray) -> list[Detection]:
        self.searched.append(image.shape[0] * image.shape[1])
        return self._detector.detect(image)


@pytest.mark.parametrize(
    ("angle", "orientations"), [(0, [0]), (90, [270]), (180, [180]), (270, [0, 90])], ids=["0", "90", "180", "270"]
)
def test_a_face_is_found_however_the_photograph_lies(
    faces: Detector, astronaut: np.ndarray, angle: int, orientations: list[int]
) -> None:
    """On one of its sides, it is also found upright, with a lower score."""
    (upright,) = faces.detect(astronaut)
    turned = np.ascontiguousarray(np.rot90(astronaut, angle // 90))
    counted = Counted(faces)
    found = search_orientations(counted, turned)
    assert [each.orientation for each in found] == orientations
    (back,) = search_turned(_Fixed(found[-1]), astronaut, angle)
    assert iou(back.box, upright.box) > 0.7
    small, whole = 256**2, 512**2
    assert sorted(counted.searched) == [small] * 3 + [whole] * (2 if found[-1].orientation else 1)


class _Fixed:
    """Finds one thing at the same place of any image."""

    kind: Kind = "face"
    name = "fixed"
    score = 0.5

    def __init__(self, found: Detection) -> None:
        self._found = found

    def detect(self, image: np.ndarray) -> list[Detection]:
        return [self._found]


class MiddleDetector(_Fixed):
    """Finds the same square in the middle of any image, which is the same place in any orientation."""

    def __init__(self, score: float, name: str, upright: tuple[float, float, float, float] | None = None) -> None:
        self.score, self.name, self._upright = score, name, upright

    def detect(self, image: np.ndarray) -> list[Detection]:
        side = image.shape[0]
        box = self._upright if self._upright and side == 200 else (0.4 * side, 0.4 * side, 0.6 * side, 0.6 * side)
        return [Detection("face", self.score, box, None, self.name)]


def test_a_face_that_is_found_in_all_orientations_counts_once() -> None:
    (found,) = search_orientations(MiddleDetector(0.95, "any"), np.zeros((200, 200, 3), np.uint8))
    assert found.orientation == 0


def test_a_part_of_a_face_found_upright_does_not_hide_the_turned_face() -> None:
    """The full search of a turned orientation finds the part, too, but the one at half size the whole."""
    part = (85.0, 85.0, 100.0, 100.0)
    detector = MiddleDetector(0.95, "any", part)
    found = search_orientations(detector, np.zeros((200, 200, 3), np.uint8), (0, 180))
    assert [each.box for each in found] == [part, (100.0, 100.0, 115.0, 115.0), (80.0, 80.0, 120.0, 120.0)]


def test_a_turned_detection_with_a_higher_score_than_the_upright_one_is_kept() -> None:
    """A sideways face is often found upright as well, but only a turned second look confirms it."""
    faint = Detection("face", 0.9, (80.0, 80.0, 120.0, 120.0), None, "any")
    detector = MiddleDetector(0.95, "any")
    (upright, turned) = search_orientations(_UprightFirst(detector, faint), np.zeros((200, 200, 3), np.uint8))
    assert (upright, turned.orientation) == (faint, 90)
    assert is_same(upright, turned)
    assert not is_same(upright, replace(turned, source="other")), "an audit names each detector that finds a face"


class _UprightFirst:
    """Finds something else in the first image that it searches, which is the upright one."""

    def __init__(self, detector: Detector, upright: Detection) -> None:
        self.kind, self.name, self.score = detector.kind, detector.name, detector.score
        self._detector, self._upright = detector, [upright]

    def detect(self, image: np.ndarray) -> list[Detection]:
        return [self._upright.pop()] if self._upright else self._detector.detect(image)


@pytest.mark.parametrize(("score", "name", "count"), [(0.89, "mtcnn", 0), (0.9, "mtcnn", 2), (0.6, "own.pt", 2)])
def test_a_turned_face_counts_from_a_higher_score_for_mtcnn(score: float, name: str, count: int) -> None:
    detector = MiddleDetector(score, name, (0.0, 0.0, 20.0, 20.0))
    found = search_orientations(detector, np.zeros((200, 200, 3), np.uint8), (0, 180))
    assert [each.orientation for each in found] == [0] + [180] * count


def test_photographs_without_faces_get_none(faces: Detector, photos: Path) -> None:
    for name in ("dog.jpg", "groceries.jpg"):
        image = read_rgb(photos / name)
        assert search_orientations(faces, image) == []
