"""Faces by MTCNN's networks on one pyramid: as many as by the package's own driver, in images of any size."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from facenet_pytorch import MTCNN
from PIL import Image

from segmint.model.detectors.cascade import CascadeDetector
from tests.support.labels import ASTRONAUT, MULTIFACE, found_again

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def networks(weights: None) -> MTCNN:
    return MTCNN(keep_all=True).eval().to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def multiface(photos: Path) -> np.ndarray:
    with Image.open(photos / "multiface.jpg") as image:
        return np.asarray(image.convert("RGB"))


def test_the_astronaut_has_one_face(networks: MTCNN, astronaut: np.ndarray) -> None:
    (found,) = CascadeDetector(networks).detect(astronaut)
    assert found_again(ASTRONAUT, [found.box])
    assert (found.kind, found.source, found.quad) == ("face", "mtcnn", None)
    assert 0.9 < found.score <= 1


def test_boxes_are_those_of_the_package_to_a_tenth_of_a_side(networks: MTCNN, multiface: np.ndarray) -> None:
    boxes, _ = networks.detect(multiface)
    ours = np.array(sorted(each.box for each in CascadeDetector(networks).detect(multiface)))
    theirs = np.array(sorted(map(tuple, np.asarray(boxes, float).tolist())))
    assert ours.shape == theirs.shape == (6, 4)
    assert np.abs(ours - theirs).max() < 0.1 * (theirs[:, 2] - theirs[:, 0]).min()


def test_strips_of_a_level_find_what_the_level_as_a_whole_does(networks: MTCNN, multiface: np.ndarray) -> None:
    """Whatever is left for the last strip."""
    detector, at_once = CascadeDetector(networks), CascadeDetector(networks)
    at_once.strip = 10**6
    assert detector.strip == 32
    for rows in (10, 11, 12, 73, 74, 75, 76, 77, 138, 300):
        level = multiface[200 : 200 + rows, :401]
        with torch.inference_mode():
            strips = detector.scan(level, 0.6)
            whole = at_once.scan(level, 0.6) if rows >= 12 else torch.zeros((0, 9))
        assert torch.equal(strips[:, :4], whole[:, :4])
        torch.testing.assert_close(strips[:, 4:], whole[:, 4:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale", [0.3, pytest.param(1.0, marks=pytest.mark.long), 6.0])
def test_faces_are_found_in_a_large_photograph(networks: MTCNN, multiface: np.ndarray, scale: float) -> None:
    canvas = np.full((1700, 3200, 3), 120, np.uint8)
    window = multiface[:, :700] if scale > 1 else multiface
    part = cv2.resize(window, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    part = part[1100:2800, 1000:4200] if scale > 1 else part
    canvas[: part.shape[0], : part.shape[1]] = part
    moved = (1000, 1100) if scale > 1 else (0, 0)
    labels = [tuple(scale * v - moved[i % 2] for i, v in enumerate(box)) for box in MULTIFACE]
    inside = [box for box in labels if min(box) >= 0 and box[2] <= 3200 and box[3] <= 1700]
    assert inside
    found = [each.box for each in CascadeDetector(networks).detect(canvas)]
    assert len(found_again(inside, found)) == len(inside)


@pytest.mark.parametrize("shape", [(1, 1), (11, 300), (19, 19), (64, 12), (20, 21), (64, 64)])
def test_blank_images_of_any_size_have_no_face(networks: MTCNN, shape: tuple[int, int]) -> None:
    assert CascadeDetector(networks).detect(np.full((*shape, 3), 200, np.uint8)) == []


@pytest.mark.parametrize("score", [0.3, 0.99985])  # the second lies between the scores of two faces
def test_the_score_decides_what_is_found(networks: MTCNN, multiface: np.ndarray, score: float) -> None:
    usual = [each.score for each in CascadeDetector(networks).detect(multiface)]
    scores = [each.score for each in CascadeDetector(networks, score=score).detect(multiface)]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) >= score
    assert [each for each in scores if each >= max(score, 0.7)] == [each for each in usual if each >= score]
    assert (len(scores) < len(usual)) == (score > 0.7)
