"""Grids and crops are the reference code's; pixels can be cut from an image of another resolution."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_anything.utils.amg import build_all_layer_point_grids, generate_crop_boxes

from segmint.model.automatic.crops import Crop, crop_points, cut, generate_crops
from segmint.model.automatic.settings import MaskSettings, point_grid


@given(
    st.integers(1, 6000),
    st.integers(1, 6000),
    st.integers(0, 3),
    st.sampled_from([512 / 1500, 0.0, 0.2, 1.0]),
)
@settings(max_examples=400)
def test_crops_are_the_reference_codes(height: int, width: int, layers: int, ratio: float) -> None:
    boxes, layer_of = generate_crop_boxes((height, width), layers, ratio)

    crops = generate_crops((height, width), layers, ratio)

    assert [list(crop.box) for crop in crops] == boxes
    assert [crop.layer for crop in crops] == layer_of


@given(st.integers(1, 64), st.integers(0, 3), st.integers(1, 3))
def test_grids_are_the_reference_codes(per_side: int, layers: int, factor: int) -> None:
    if per_side < factor**layers:
        with pytest.raises(ValueError, match="points_per_side"):
            MaskSettings.sa1b(points_per_side=per_side, crop_n_layers=layers, crop_n_points_downscale_factor=factor)
        return
    made = MaskSettings.sa1b(points_per_side=per_side, crop_n_layers=layers, crop_n_points_downscale_factor=factor)
    for layer, expected in enumerate(build_all_layer_point_grids(per_side, layers, factor)):
        assert np.array_equal(point_grid(made.points_of_layer(layer)), expected)


def test_points_are_scaled_by_width_and_height_and_x_runs_fastest() -> None:
    points = crop_points(Crop(1, (10, 20, 50, 40)), point_grid(2))

    assert points.tolist() == [[10, 5], [30, 5], [10, 15], [30, 15]]


def test_sa1b_makes_twenty_one_crops_that_cover_the_image() -> None:
    crops = generate_crops((1500, 2250), 2, 512 / 1500)

    assert len(crops) == 21
    for layer in (1, 2):
        covered = np.zeros((1500, 2250), dtype=bool)
        for crop in crops:
            if crop.layer == layer:
                x0, y0, x1, y1 = crop.box
                covered[y0:y1, x0:x1] = True
        assert covered.all()


def test_windows_beyond_a_tiny_image_are_empty() -> None:
    crops = generate_crops((5, 5), 2, 512 / 1500)

    assert [crop.box for crop in crops if crop.is_empty]
    assert all(min(crop.size) > 0 for crop in crops if not crop.is_empty)


@given(st.integers(20, 300), st.integers(20, 300))
def test_cut_from_the_frame_itself_is_a_plain_slice(height: int, width: int) -> None:
    pixels = np.arange(height * width, dtype=np.uint32).view(np.uint8).reshape(height, width, 4)[..., :3]
    for crop in generate_crops((height, width), 2, 512 / 1500):
        x0, y0, x1, y1 = crop.box
        assert np.array_equal(cut(crop, (height, width), pixels), pixels[y0:y1, x0:x1])


def test_cut_from_a_larger_original_shows_the_same_part_of_the_scene_on_each_axis() -> None:
    # The scene's pixel holds its own coordinates; the original has other scales along x and y.
    y, x = np.mgrid[0:200, 0:240]
    original = np.stack([x, y, x * 0], axis=-1).astype(np.uint8)
    crop = Crop(1, (10, 20, 40, 50))

    pixels = cut(crop, (100, 60), original)

    assert pixels.shape == (60, 120, 3)
    assert pixels[0, 0].tolist() == [40, 40, 0]
    assert pixels[-1, -1].tolist() == [159, 99, 0]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_cut_always_gives_pixels(height: int, width: int, rows: int, columns: int) -> None:
    pixels = np.zeros((rows, columns, 3), dtype=np.uint8)
    for crop in generate_crops((height, width), 2, 512 / 1500):
        if not crop.is_empty:
            assert cut(crop, (height, width), pixels).size > 0
