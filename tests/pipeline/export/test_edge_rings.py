"""Polygons along the edges of pixels: shapely finds them valid, and exactly the pixels inside."""

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from segmint.pipeline.export.per_image import edge_polygons


def shape_of(mask: np.ndarray) -> shapely.MultiPolygon:
    return shapely.MultiPolygon([shapely.Polygon(rings[0], rings[1:]) for rings in edge_polygons(mask)])


def check(mask: np.ndarray) -> shapely.MultiPolygon:
    shape = shape_of(mask)
    assert shape.is_valid, shapely.is_valid_reason(shape)
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
    np.testing.assert_array_equal(shapely.contains_xy(shape, x + 0.5, y + 0.5), mask)
    assert shape.area == mask.sum()
    return shape


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.6, 1.5]), st.floats(0.02, 0.98))
def test_any_mask_is_inside_of_its_polygons_bit_for_bit(seed: int, sigma: float, share: float) -> None:
    noise = np.random.default_rng(seed).normal(size=(24, 32)).astype(np.float32)
    if sigma:
        noise = cv2.GaussianBlur(noise, (0, 0), sigma)
    check(noise > np.quantile(noise, share))


@pytest.mark.parametrize(
    ("rows", "parts", "holes"),
    [
        (["#"], 1, 0),
        (["##", "##"], 1, 0),
        (["#.", ".#"], 2, 0),
        ([".#", "#."], 2, 0),
        (["###", "#.#", "###"], 1, 1),
        (["####", "#.##", "##.#", "####"], 1, 2),  # two holes that touch in a corner
        (["###", "#.#", "##."], 1, 1),  # a hole that touches the outside in a corner
        (["#####", "#...#", "#.#.#", "#...#", "#####"], 2, 1),
    ],
)
def test_parts_and_holes(rows: list[str], parts: int, holes: int) -> None:
    shape = check(np.array([[pixel == "#" for pixel in row] for row in rows]))
    assert (len(shape.geoms), sum(len(part.interiors) for part in shape.geoms)) == (parts, holes)
    assert all(part.exterior.is_ccw for part in shape.geoms)  # as RFC 7946 wants it, with y upwards


def test_an_empty_mask_has_none() -> None:
    assert edge_polygons(np.zeros((3, 4), bool)) == []
