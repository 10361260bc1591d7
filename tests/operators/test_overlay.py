"""Masks drawn over images."""

import io

import numpy as np
import pytest
from PIL import Image

from segmint.model.automatic.rle import MaskRecord, encode
from segmint.operators.overlay import distinct_color, draw_overlay, draw_prompts, encode_png


def record(mask: np.ndarray) -> MaskRecord:
    return MaskRecord(
        segmentation=encode(mask),
        area=int(mask.sum()),
        bbox=(0, 0, 1, 1),
        predicted_iou=0.9,
        stability_score=0.9,
        crop_box=(0, 0, 1, 1),
        point_coords=(0, 0),
    )


@pytest.fixture
def whole_and_part() -> tuple[np.ndarray, np.ndarray]:
    whole, part = np.zeros((2, 60, 80), bool)
    whole[10:50, 10:60] = True
    part[20:30, 20:40] = True
    return whole, part


def test_a_part_stays_visible_on_its_whole_in_any_order(whole_and_part):
    image = np.full((60, 80, 3), 128, np.uint8)
    whole, part = whole_and_part
    drawn = draw_overlay(image, [record(part), record(whole)])
    assert (drawn == draw_overlay(image, [record(whole), record(part)])).all()
    assert (drawn[25, 30] != drawn[45, 50]).any()
    assert (drawn[45, 50] != image[45, 50]).any()


def test_pixels_outside_the_masks_and_the_input_are_unchanged(whole_and_part):
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    before = image.copy()
    drawn = draw_overlay(image, [record(whole_and_part[0])])
    outside = ~np.pad(whole_and_part[0], 2)[4:, 4:] & ~whole_and_part[0]
    outside[8:52, 8:62] = False
    assert (image == before).all()
    assert (drawn[outside] == image[outside]).all()


def test_no_mask_draws_nothing():
    image = np.full((5, 5, 3), 7, np.uint8)
    assert (draw_overlay(image, []) == image).all()


def test_colors_are_the_same_each_time_and_differ_from_their_neighbors():
    colors = np.array([distinct_color(index) for index in range(120)], float)
    assert len({tuple(color) for color in colors}) == 120
    for window in range(len(colors) - 5):
        near = colors[window : window + 5]
        gaps = np.linalg.norm(near[:, None] - near[None], axis=2)[~np.eye(5, dtype=bool)]
        assert gaps.min() > 60


def test_prompts_are_drawn_where_they_are():
    image = np.zeros((100, 100, 3), np.uint8)
    drawn = draw_prompts(image, [(20, 30, 1), (70, 30, 0)], [(40, 60, 20, 30)])
    assert drawn[30, 20].argmax() == 1  # green: foreground
    assert drawn[30, 70].argmax() == 0  # red: background
    assert (drawn[60, 40:60] > 200).all()
    assert not drawn[5, 5].any()


def test_png_keeps_the_pixels(coffee):
    assert (np.asarray(Image.open(io.BytesIO(encode_png(coffee)))) == coffee).all()
