"""GeoJSON of segmint and of other tools: pixels whose centers are inside, classes, and what cannot be read."""

import itertools
import json
from typing import Any

import numpy as np
import pytest

from segmint.catalogs.dataset.reader import MaskSequence
from segmint.operators.annotations.folder import fill_rings, read_geojson
from segmint.pipeline.export.categories import Categories
from segmint.pipeline.export.per_image import feature_of
from tests.interop.datasets import shapes
from tests.support.committed import mask_row


def feature(mask: np.ndarray, id: int) -> dict[str, Any]:
    """A mask as an export writes it."""
    (annotation,) = MaskSequence([{"id": id, **mask_row(mask)}], mask.shape, {}, [None], [None])
    return feature_of(annotation, Categories())


def read(features: Any, **about: Any) -> Any:
    return read_geojson(
        json.dumps({"type": "FeatureCollection", "features": features, **about}).encode(), "sa_7.geojson"
    )


def test_every_shape_comes_back_bit_for_bit() -> None:
    image = read([feature(mask, number) for number, mask in enumerate(shapes())], image={"height": 60, "width": 80})
    assert (image.name, image.size, image.unreadable) == ("sa_7.geojson", (60, 80), [])
    assert [mask.id for mask in image.masks] == list(range(len(shapes())))
    for mask, expected in zip(image.masks, shapes(), strict=True):
        np.testing.assert_array_equal(mask.pixels(), expected)


def test_slanted_edges_take_the_pixels_whose_centers_are_inside() -> None:
    y, x = np.mgrid[:60, :80] + 0.5
    triangle = [10.2, 5.1, 70.9, 20.3, 30.4, 55.8, 10.2, 5.1]
    corners = np.reshape(triangle, (-1, 2))
    inside = np.ones((60, 80), bool)
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        inside &= (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) > 0
    np.testing.assert_array_equal(fill_rings([triangle], (60, 80)), inside)
    # A ring around the image.
    np.testing.assert_array_equal(fill_rings([[-40, -30, 160, -30, 160, 120, -40, 120]], (60, 80)), np.ones((60, 80)))


def test_polygons_of_a_shape_may_overlap() -> None:
    def square(x: int, y: int, side: int) -> list[list[int]]:
        return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]

    ring = [square(0, 0, 10), square(2, 2, 4)]
    for polygons, area in (
        ([[square(0, 0, 10)], [square(5, 5, 10)]], 175),
        ([[square(0, 0, 10)], [square(0, 0, 10)]], 100),
        ([ring, [square(20, 20, 5)]], 109),
        ([ring, [square(3, 3, 10)]], 100 - 16 + 100 - 40),
    ):
        geometry = {"type": "MultiPolygon", "coordinates": polygons}
        (mask,) = read([{"geometry": geometry}], image={"height": 60, "width": 80}).masks
        assert mask.area == area, polygons


@pytest.mark.parametrize(
    ("classification", "label"),
    [
        ({"name": 'Tumor, "core"', "color": [1, 2, 3]}, 'Tumor, "core"'),
        ({"names": ["Immune cells", "CD8"]}, "Immune cells: CD8"),
        ("Stroma", "Stroma"),
        (None, None),
    ],
)
def test_a_class_is_a_label(classification: Any, label: str | None) -> None:
    drawn = feature(shapes()[0], 0) | {"id": "c2f7", "properties": {"classification": classification}}
    (mask,) = read([drawn], image={"height": 60, "width": 80}).masks
    assert (mask.label, mask.id) == (label, None)


@pytest.mark.parametrize(
    ("geometry", "problem"),
    [
        ({"type": "LineString", "coordinates": [[1, 2], [3, 4]]}, "its geometry is LineString: expected Polygon or"),
        ({"type": "Polygon", "coordinates": 7}, "its coordinates are not lists of points"),
        (
            {"type": "Polygon", "coordinates": [[[1], [1], [9], [1], [9], [9]]]},
            "its coordinates are not lists of points",
        ),
        ({"type": "Polygon", "coordinates": [[{"x": 1, "y": 2}]]}, "its coordinates are not lists of points"),
        (
            {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]},
            "none of its polygons is a list x, y, x, y, … of at least three points",
        ),
        (
            {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]], [[2, 2], [9, 2], [9, 9]]]},
            "a polygon with holes has an outline of fewer than three points",
        ),
        ({"type": "Polygon", "coordinates": [[[0, 0], [9e9, 1], [1, 1]]]}, "a polygon has the coordinate 9000000000"),
        ([], "its geometry is None"),
    ],
)
def test_a_shape_that_cannot_be_read_costs_no_other(geometry: Any, problem: str) -> None:
    wrong = {"type": "Feature", "geometry": geometry, "properties": {"id": 5}}
    image = read([wrong, feature(shapes()[0], 6), 3], image={"height": 60, "width": 80})
    assert [mask.id for mask in image.masks] == [6]
    assert image.unreadable[0].startswith("mask 5: ")
    assert problem in image.unreadable[0]
    assert len(image.unreadable) == 2


def test_points_beside_a_mask_are_no_masks() -> None:
    point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}, "properties": {"id": 5}}
    image = read([point, feature(shapes()[0], 6)], image={"height": 60, "width": 80})
    assert (len(image.masks), image.unreadable, image.prompts) == (1, [], ["mask 5: Point"])
    image = read([point], image={"height": 60, "width": 80})
    assert image.unreadable == ["mask 5: its geometry is Point: expected Polygon or MultiPolygon"]
    assert image.prompts == []


def test_parts_and_holes_without_area_are_left_out() -> None:
    square = [[10, 5], [30, 5], [30, 25], [10, 25], [10, 5]]
    hole = [[15, 10], [20, 10], [20, 15], [15, 15], [15, 10]]
    whole, *others = (
        read([{"geometry": {"type": "MultiPolygon", "coordinates": coordinates}}], image={"height": 60, "width": 80})
        for coordinates in ([[square, hole]], [[square, hole], [[[50, 50], [50, 50]]]], [[square, hole, [[22, 20]]]])
    )
    assert whole.masks[0].area == 375
    for image in others:
        assert (image.masks, image.unreadable) == (whole.masks, [])


@pytest.mark.parametrize("data", [b"[]", b"{", b'{"features": 3}', b'{"features": [], "image": 3}'])
def test_another_document_is_unreadable(data: bytes) -> None:
    assert read_geojson(data, "sa_1.geojson").unreadable[0].startswith("the file is not a GeoJSON feature collection")


def test_the_size_in_the_file_is_kept_beside_the_image_s() -> None:
    """So that masks of a photograph in another size are not drawn on this one."""
    document = {"type": "FeatureCollection", "features": [], "image": {"height": 60, "width": 80}}
    image = read_geojson(json.dumps(document).encode(), "sa_7.geojson", (120, 160))
    assert (image.size, image.other) == ((120, 160), (60, 80))


def test_without_a_size_nothing_can_be_drawn() -> None:
    assert "neither the dataset nor the file has a height and width" in read([feature(shapes()[0], 6)]).unreadable[0]
