"""The marks of changed pictures stay where their faces and plates are."""

from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest

from benchmarks.privacy.pictures import ANGLES, COMPOSITES, Mark, Picture, composites, photographs, turned

SOURCES = tuple(photographs(None))
ASTRONAUT = SOURCES[0]
PAINT = (255, 0, 255)


def painted(picture: Picture) -> Picture:
    """The picture in gray, with its marks in one color, and a plate in the upper left corner if it has no marks."""
    pixels = np.full_like(picture.pixels, 100)
    plate = np.array([(20, 20), (120, 20), (120, 50), (20, 50)], float)
    marks = picture.marks or ((Mark("plate", plate, hard=False),) if picture.name == "coffee" else ())
    for mark in marks:
        cv2.fillConvexPoly(pixels, mark.points.round().astype(np.int32), PAINT)
    return replace(picture, pixels=pixels, marks=marks)


def paint_in(picture: Picture, mark: Mark) -> tuple[float, float]:
    """Share of the mark, and of the ring around it, that is painted, at any brightness."""
    inside, around = np.zeros((2, *picture.pixels.shape[:2]), np.uint8)
    middle = mark.points.mean(axis=0)
    cv2.fillConvexPoly(inside, (middle + (mark.points - middle) * 0.8).round().astype(np.int32), 1)
    cv2.fillConvexPoly(around, (middle + (mark.points - middle) * 1.4).round().astype(np.int32), 1)
    cv2.fillConvexPoly(around, (middle + (mark.points - middle) * 1.15).round().astype(np.int32), 0)
    red, green, _ = picture.pixels.astype(int).transpose(2, 0, 1)
    is_painted = red > 2 * green + 4
    return float(is_painted[inside == 1].mean()), float(is_painted[around == 1].mean())


def test_scikit_images_pictures_are_marked() -> None:
    assert {each.name: len(each.marks) for each in SOURCES} == {
        "astronaut": 1,
        "camera": 1,
        "chelsea": 0,
        "coffee": 0,
        "rocket": 0,
        "stereo_motorcycle": 0,
    }
    assert ASTRONAUT.marks[0].box == pytest.approx((172, 64, 280, 179))


def test_turned_by_90_degrees_the_box_is_exact() -> None:
    found = {each.change: each for each in turned([ASTRONAUT])}
    assert list(found) == list(map(str, ANGLES))
    assert found["90"].marks[0].box == pytest.approx((64, 512 - 280, 179, 512 - 172))
    assert found["180"].marks[0].box == pytest.approx((512 - 280, 512 - 179, 512 - 172, 512 - 64))
    assert found["270"].marks[0].box == pytest.approx((512 - 179, 172, 512 - 64, 280))
    assert (found["90"].pixels == np.rot90(ASTRONAUT.pixels)).all()
    side = found["45"].marks[0].side
    assert side == pytest.approx(np.hypot(108, 115) / np.sqrt(2), rel=0.01), "an ellipse stays as tight as it was"


def test_what_is_marked_moves_with_its_mark() -> None:
    pictures = [painted(each) for each in SOURCES]
    found = [*turned(pictures), *composites(pictures, seed=5)]
    shares = [paint_in(each, mark) for each in found for mark in each.marks]
    assert len(shares) > len(ANGLES) * 3 + COMPOSITES / 2
    assert min(inside for inside, _ in shares) > 0.9
    assert max(around for _, around in shares) < 0.1


def test_composites_are_the_same_for_a_seed_and_half_of_each_kind_are_marked() -> None:
    found, again, other = (tuple(composites(SOURCES, seed)) for seed in (1, 1, 2))
    assert all((one.pixels == two.pixels).all() for one, two in zip(found, again, strict=True))
    assert any(one.pixels.shape != two.pixels.shape for one, two in zip(found, other, strict=True))
    assert len(found) == COMPOSITES
    assert set(Counter(each.change for each in found).values()) == {COMPOSITES / 5}
    marked = Counter(each.change for each in found if each.marks)
    assert min(marked[each.change] for each in found) >= COMPOSITES / 10
    for each in found:
        for mark in each.marks:
            x0, y0, x1, y1 = mark.box
            assert 0 <= x0 < x1 <= each.pixels.shape[1]
            assert 0 <= y0 < y1 <= each.pixels.shape[0]
