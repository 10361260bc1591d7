from pathlib import Path

import cv2
import numpy as np
import pytest
from facenet_pytorch import MTCNN
from PIL import Image

from segmint.model.detectors.faces import FaceDetector
from tests.support.labels import MULTIFACE, found_again

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def cascade() -> MTCNN:
    return MTCNN(keep_all=True, min_face_size=20)


@pytest.fixture(scope="module")
def multiface(photos: Path) -> np.ndarray:
    with Image.open(photos / "multiface.jpg") as image:
        return np.asarray(image.convert("RGB"))


def test_the_astronaut_has_one_face(cascade: MTCNN, astronaut: np.ndarray) -> None:
    (found,) = FaceDetector(cascade).detect(astronaut)
    assert found_again([(172, 62, 276, 190)], [found.box])
    assert (found.kind, found.source, found.quad) == ("face", "mtcnn", None)
    assert 0.9 < found.score <= 1


def test_an_image_within_one_tile_gives_what_the_cascade_gives(cascade: MTCNN, multiface: np.ndarray) -> None:
    boxes, _ = cascade.detect(multiface)
    found = FaceDetector(cascade).detect(multiface)
    assert sorted(d.box for d in found) == sorted(map(tuple, np.asarray(boxes, float).tolist()))
    assert [d.score for d in found] == sorted((d.score for d in found), reverse=True)


def test_tiles_find_each_face_once_small_or_larger_than_a_tile(cascade: MTCNN, multiface: np.ndarray) -> None:
    tiled = FaceDetector(cascade, tile_side=500, tile_overlap=150).detect(multiface)
    assert len(tiled) == 6
    assert len(found_again(MULTIFACE, [d.box for d in tiled])) == 6
    close = cv2.resize(multiface[200:400, 180:350], None, fx=6, fy=6, interpolation=cv2.INTER_CUBIC)
    (face,) = FaceDetector(cascade, tile_side=500, tile_overlap=150).detect(close)
    assert found_again([(276, 294, 750, 942)], [face.box])


def test_small_faces_are_seen_in_a_large_photograph(cascade: MTCNN, multiface: np.ndarray) -> None:
    canvas = np.full((1700, 3200, 3), 120, np.uint8)
    small = cv2.resize(multiface, None, fx=0.3, fy=0.3, interpolation=cv2.INTER_AREA)
    places = [(40, 60), (1400, 700), (2800, 1450)]
    for x, y in places:
        canvas[y : y + small.shape[0], x : x + small.shape[1]] = small
    found = [d.box for d in FaceDetector(cascade).detect(canvas)]
    labels = [(x + 0.3 * a, y + 0.3 * b, x + 0.3 * c, y + 0.3 * d) for x, y in places for a, b, c, d in MULTIFACE]
    assert len(found_again(labels, found)) == 18


def test_a_huge_image_is_searched_shrunk_and_boxes_are_in_its_own_pixels(cascade: MTCNN, multiface: np.ndarray) -> None:
    found = FaceDetector(cascade, max_pixels=250_000).detect(multiface)
    assert len(found_again(MULTIFACE, [d.box for d in found])) == 6


@pytest.mark.parametrize("shape", [(1, 1), (11, 300), (19, 19), (64, 12)])
def test_images_too_small_for_the_cascade_have_no_face(cascade: MTCNN, shape: tuple[int, int]) -> None:
    assert FaceDetector(cascade).detect(np.zeros((*shape, 3), np.uint8)) == []


def test_a_blank_image_has_no_face(cascade: MTCNN) -> None:
    assert FaceDetector(cascade).detect(np.full((64, 64, 3), 200, np.uint8)) == []


def test_a_higher_score_finds_fewer(cascade: MTCNN, multiface: np.ndarray) -> None:
    scores = [d.score for d in FaceDetector(cascade).detect(multiface)]
    fewer = FaceDetector(cascade, score=0.9995).detect(multiface)
    assert [d.score for d in fewer] == [s for s in scores if s >= 0.9995]
    assert len(fewer) < len(scores)
