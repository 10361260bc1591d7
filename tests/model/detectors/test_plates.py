"""The decoding alone; the network finds its plates in tests/operators/prepare/test_deidentify.py."""

from collections.abc import Sequence

import numpy as np
import pytest

from segmint.model.detectors.detection import Detection, bounds
from segmint.model.detectors.plates import PlateDetector, agreed, anchors, decode


def plate(score: float, *box: float) -> Detection:
    x0, y0, x1, y1 = box
    quad = ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    return Detection("plate", score, (x0, y0, x1, y1), quad, "test")


def test_anchors_are_in_the_middle_of_their_cells_level_by_level() -> None:
    table = anchors(331, 518)
    assert table.shape == (7220, 3)  # what the network answers for an image of this size
    assert table[:3].tolist() == [[4, 4, 24], [4, 4, 48], [12, 4, 24]]
    assert table[2 * 65].tolist() == [4, 12, 24]  # the second row
    assert table[-1].tolist() == [16.5 * 32, 10.5 * 32, 768]


def test_decoding_moves_by_a_tenth_and_grows_by_e_to_a_fifth() -> None:
    loc = np.array([[0, 0, 0, 0], [1, -2, 5, 0]], np.float32)
    landms = np.array([[0] * 8, [10, 0, 0, 10, -10, 0, 0, -10]], np.float32)
    boxes, corners = decode(loc, landms, np.array([[100, 50, 20], [100, 50, 20]], np.float32))
    assert boxes[0].tolist() == [90, 40, 110, 60]
    half = 10 * np.e
    assert boxes[1] == pytest.approx([102 - half, 36, 102 + half, 56], rel=1e-6)
    assert corners[0].tolist() == [[100, 50]] * 4
    assert corners[1].tolist() == [[120, 50], [100, 70], [80, 50], [100, 30]]


def test_a_plate_needs_a_second_view_and_covers_what_all_of_them_saw() -> None:
    part, whole, alone = plate(0.98, 0, 0, 60, 30), plate(0.4, 0, 0, 100, 30), plate(0.99, 200, 0, 300, 30)
    wider, too_unsure = plate(0.1, -20, 0, 60, 30), plate(0.09, 0, -20, 60, 30)
    (found,) = agreed([[part], [whole], [alone]], [part, whole, alone, wider, too_unsure], score=0.5)
    assert found.score == 0.98
    assert found.box == pytest.approx((0, 0, 100, 30), abs=1e-3)
    assert bounds(found.quad or ()) == pytest.approx((-20, 0, 100, 30), abs=1e-3)


def test_two_views_that_are_both_unsure_are_no_plate() -> None:
    first, second = plate(0.4, 0, 0, 60, 30), plate(0.45, 0, 0, 60, 30)
    assert agreed([[first], [second]], [first, second], score=0.5) == []


def test_a_large_image_is_searched_in_windows_of_bounded_size() -> None:
    sizes = []

    def network(windows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        (window,) = windows
        count = len(anchors(*window.shape[:2]))
        sizes.append(window.shape[:2])
        return (np.zeros((1, count, 4)), np.zeros((1, count, 2)), np.zeros((1, count, 8)))

    detector = PlateDetector(network, tile_side=128, tile_overlap=32, max_pixels=40_000, enlarged_pixels=90_000)
    assert detector.detect(np.zeros((300, 500, 3), np.uint8)) == []
    assert max(max(size) for size in sizes) <= 128
    searched = sum(height * width for height, width in sizes)
    assert searched < 3 * 40_000  # scales 0.35, 0.5, 0.7 and 1 of 40,000 pixels, and the overlaps


def test_windows_of_one_size_are_searched_together_up_to_so_many_pixels() -> None:
    """Each gets its own answer, whatever else is in the batch."""
    image = np.random.default_rng(0).integers(0, 256, (300, 500, 3)).astype(np.uint8)
    batches = []

    def network(windows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        batch = np.stack(windows)
        batches.append(batch.shape)
        table = anchors(*batch.shape[1:3])
        likely = (np.arange(len(table))[None] % 997 == batch[:, :1, 0, 2].astype(int)).astype(np.float32)
        count = len(batch), len(table)
        return np.zeros((*count, 4)), np.stack([1 - likely, likely], axis=2), np.zeros((*count, 8))

    alone, together = (PlateDetector(network, tile_side=128, tile_overlap=32, batch_pixels=p) for p in (0, 60_000))
    expected = alone.detect(image)
    assert {shape[0] for shape in batches} == {1}
    windows = len(batches)
    batches.clear()
    assert together.detect(image) == expected
    assert expected
    assert sum(shape[0] for shape in batches) == windows
    assert len(batches) < 0.7 * windows
    assert all(shape[0] * shape[1] * shape[2] <= 60_000 for shape in batches if shape[0] > 1)
