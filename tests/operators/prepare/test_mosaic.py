import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segmint.operators.prepare import mosaic as module
from segmint.operators.prepare.mosaic import (
    CELLS,
    WHOLE,
    ImagePatch,
    ellipse,
    mosaic,
    polygon,
    rectangle,
    redact_patches,
)
from segmint.operators.redactions import FACE_BAND, PLATE_BAND

SHAPE = (60, 90)


def covered(patch: ImagePatch) -> np.ndarray:
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


CORNERS = [(0, 0), (28, 5), (27, 16), (-1, 11)]


def banded(x: float = 40, y: float = 30) -> list[ImagePatch]:
    """A face and a tilted plate with bands that overlap, around (x, y)."""
    face = ellipse((x - 14, y - 14, x, y + 6), SHAPE, FACE_BAND)
    plate = polygon([(x + dx, y + dy) for dx, dy in CORNERS], SHAPE, band=PLATE_BAND)
    assert face is not None
    assert plate is not None
    return [face, plate]


def placed(values: np.ndarray, patch: ImagePatch) -> np.ndarray:
    full = np.zeros(SHAPE, values.dtype)
    full[patch.y : patch.y + patch.height, patch.x : patch.x + patch.width] = values
    return full


@pytest.mark.parametrize("place", [(40, 30), (2, 3), (85, 58)])
def test_what_lies_inside_shows_in_mosaics_alone_and_bands_hide_no_less(
    monkeypatch: pytest.MonkeyPatch, place: tuple[int, int]
) -> None:
    """With mosaics held, other pixels inside change nothing anywhere, and other pixels outside nothing inside."""
    cover = noise(*SHAPE, 3)
    monkeypatch.setattr(module, "mosaic", lambda window: cover[: window.shape[0], : window.shape[1]])
    patches = banded(*place)
    image = noise(*SHAPE, 3)[::-1].copy()
    inside = np.any([covered(patch) for patch in patches], axis=0)
    result = redact_patches(image, patches)
    for where, same in [(inside, np.ones(SHAPE, bool)), (~inside, inside)]:
        other = image.copy()
        other[where] ^= 255
        assert (redact_patches(other, patches)[same] == result[same]).all()
    around = np.any([placed(patch.weight, patch) > 0 for patch in patches], axis=0)
    assert around.sum() > 1.2 * inside.sum()
    assert (result[~around] == image[~around]).all()
    assert (result[around] != image[around]).any(axis=1).mean() > 0.8


def test_the_weight_of_a_mosaic_falls_outwards_from_all_to_nothing() -> None:
    plain = [ellipse((26, 16, 40, 36), SHAPE), polygon([(40 + dx, 30 + dy) for dx, dy in CORNERS], SHAPE)]
    for patch, without in zip(banded(), plain, strict=True):
        weight, mask = placed(patch.weight, patch).astype(int), covered(patch)
        assert (mask == covered(without)).all(), "the outline is the same without a band"
        assert (weight[mask] == WHOLE).all()
        assert (weight[~mask] < WHOLE).all()
        row = weight[patch.y + patch.height // 2]
        rising, falling = np.split(row, [int(row.argmax())])
        assert (np.diff(rising) >= 0).all()
        assert (np.diff(falling) <= 0).all()
        assert len(np.unique(row)) > 3


def test_weights_are_the_same_on_every_cpu() -> None:
    digest = hashlib.sha256(b"".join(patch.weight.tobytes() for patch in banded()))
    assert digest.hexdigest()[:16] == "2a1adaab4ba4cbbf"
