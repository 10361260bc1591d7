import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segmint.operators.prepare.mosaic import CELLS, Patch, ellipse, mosaic, polygon, rectangle, redact_patches

SHAPE = (60, 90)


def covered(patch: Patch) -> np.ndarray:
    full = np.zeros(SHAPE, bool)
    full[patch.y : patch.y + patch.height, patch.x : patch.x + patch.width] = patch.mask
    return full


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def test_an_ellipse_covers_its_box_and_about_twice_its_area() -> None:
    mask = covered(ellipse((30, 20, 54, 44), SHAPE))
    assert mask[20:44, 30:54].all()
    assert 1.9 < mask.sum() / (24 * 24) < 2.1


def test_a_polygon_covers_its_corners_and_a_margin_in_whatever_order_they_come() -> None:
    corners = [(20, 20), (60, 26), (59, 38), (19, 32)]
    first = covered(polygon(corners, SHAPE))
    assert (first == covered(polygon(corners[::-1], SHAPE))).all()
    assert (first == covered(polygon([corners[i] for i in (2, 0, 3, 1)], SHAPE))).all()
    assert all(first[y - 3, x - 3] and first[y + 3, x + 3] for x, y in corners)
    assert not first[10, 70]


@given(st.tuples(*[st.floats(-200, 300)] * 4))
def test_patches_lie_inside_the_image_and_are_tight(values: tuple[float, float, float, float]) -> None:
    x, y, w, h = values
    points = [(x, y), (x + w, y + 5), (x, y + h)]
    for patch in (ellipse((x, y, x + w, y + h), SHAPE), polygon(points, SHAPE)):
        if patch is None:
            continue
        assert patch.x >= 0
        assert patch.y >= 0
        assert patch.x + patch.width <= SHAPE[1]
        assert patch.y + patch.height <= SHAPE[0]
        assert patch.mask[0].any()
        assert patch.mask[-1].any()
        assert patch.mask[:, 0].any()
        assert patch.mask[:, -1].any()


def test_nothing_outside_the_image_becomes_a_patch() -> None:
    assert ellipse((-50, -50, -20, -20), SHAPE) is None
    assert polygon([(100, 0), (140, 0), (140, 20), (100, 20)], SHAPE) is None
    assert rectangle(90, 0, 10, 10, SHAPE) is None


def test_corners_farther_away_than_any_number_of_pixels_cover_what_lies_between_them() -> None:
    far = 1e30
    patch = polygon([(-far, -far), (far, -far), (far, far), (-far, far)], (30, 40))
    assert patch is not None
    assert patch.mask.all()
    assert (patch.x, patch.y, patch.width, patch.height) == (0, 0, 40, 30)
    assert polygon([(far, far), (2 * far, far), (2 * far, 2 * far), (far, 2 * far)], (30, 40)) is None


def test_a_rectangle_is_clipped() -> None:
    patch = rectangle(-5, 50, 20, 20, SHAPE)
    assert (patch.x, patch.y, patch.width, patch.height) == (0, 50, 15, 10)


@pytest.mark.parametrize("shape", [(100, 80), (7, 300), (3, 2), (1, 1)])
def test_a_mosaic_depends_on_at_most_5_by_5_means(shape: tuple[int, int]) -> None:
    window = noise(*shape, 3)
    result = mosaic(window)
    assert result.shape == window.shape
    rank = np.linalg.matrix_rank(result[..., 0].astype(float), tol=2 * max(shape))
    assert rank <= CELLS


def test_windows_with_equal_means_give_equal_pixels() -> None:
    window = noise(50, 50, 3)
    cells = window.reshape(5, 10, 5, 10, 3)
    shuffled = cells[:, ::-1, :, ::-1].reshape(50, 50, 3)
    assert (shuffled != window).mean() > 0.9
    assert (mosaic(window) == mosaic(shuffled)).all()


def test_only_the_patches_change_and_the_image_given_does_not() -> None:
    image = noise(*SHAPE, 3)
    before = image.copy()
    patches = [ellipse((30, 20, 50, 40), SHAPE), rectangle(40, 10, 30, 20, SHAPE)]
    result = redact_patches(image, patches)
    union = covered(patches[0]) | covered(patches[1])
    assert (image == before).all()
    assert (result[~union] == image[~union]).all()
    assert (result[union] != image[union]).any(axis=1).mean() > 0.99
