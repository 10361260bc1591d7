from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segmint.model.detectors.detection import Detection, by_score, iou, merge, resized, search, tiles, whole_first


def face(score: float, *box: float) -> Detection:
    x0, y0, x1, y1 = box
    return Detection("face", score, (x0, y0, x1, y1), None, "test")


@given(st.integers(1, 400), st.integers(1, 400), st.integers(20, 150), st.integers(0, 19))
def test_tiles_cover_the_image_and_overlap_enough(height: int, width: int, side: int, overlap: int) -> None:
    cover = np.zeros((height, width), int)
    found = tiles(height, width, side, overlap)
    for t in found:
        assert 0 < t.width <= side
        assert 0 < t.height <= side
        assert t.x >= 0
        assert t.y >= 0
        assert t.x + t.width <= width
        assert t.y + t.height <= height
        cover[t.y : t.y + t.height, t.x : t.x + t.width] += 1
    assert cover.min() >= 1
    columns = sorted({(t.x, t.width) for t in found})
    for (x, w), (following, _) in pairwise(columns):
        assert x + w - following >= overlap


def test_an_image_no_larger_than_a_tile_is_one_tile() -> None:
    assert [(t.x, t.y, t.width, t.height) for t in tiles(90, 100, 100, 10)] == [(0, 0, 100, 90)]


def test_an_overlap_as_wide_as_the_tile_is_refused() -> None:
    with pytest.raises(ValueError, match="64 px"):
        tiles(500, 500, 64, 64)


def test_merging_keeps_neighbors_and_drops_the_same_thing_seen_twice() -> None:
    whole, part, neighbor = face(0.8, 0, 0, 40, 40), face(0.7, 10, 0, 38, 20), face(0.6, 38, 0, 80, 40)
    assert merge(by_score([neighbor, part, whole])) == [whole, neighbor]


def test_iou_of_known_boxes() -> None:
    assert iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0


def test_a_bright_spot_is_found_once_at_its_place_whatever_the_tiles_and_the_scale() -> None:
    image = np.zeros((120, 200, 3), np.uint8)
    image[50:60, 90:110] = 255

    def bright(window: np.ndarray) -> list[Detection]:
        ys, xs = np.nonzero(window[..., 0] > 127)
        return [face(0.9, xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)] if ys.size else []

    for scale in (1.0, 2.0, 0.5):
        found = merge(whole_first(search(image, resized(image, scale), partial(map, bright), side=70, overlap=45)))
        assert len(found) == 1
        assert np.allclose(found[0].box, (90, 50, 110, 60), atol=1)


def test_a_whole_view_outranks_one_cut_by_its_tile() -> None:
    cut, whole = face(0.99, 0, 0, 20, 40), face(0.71, 0, 0, 40, 40)
    assert merge(whole_first([(True, cut), (False, whole)])) == [whole]
