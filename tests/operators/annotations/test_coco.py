"""COCO files of other tools: every form of mask is read, and what cannot be read costs nothing else."""

import json
import math
from typing import Any

import numpy as np
import pytest
import shapely
from pycocotools import mask as coco

from segmint.infra.errors import UsageError
from segmint.operators.annotations.coco import fill_polygons, parse_coco, read_coco, usable_polygons
from segmint.operators.annotations.image import AnnotatedFile, UnreadableMaskError

RING = np.zeros((30, 40), bool)
RING[5:25, 10:30] = True
RING[10:15, 15:20] = False
# Columns of 30 rows: 10 empty ones, then 5 of rows 5 to 24, and so on.
RUNS = [305, *[20, 10] * 5, *[5, 5, 10, 10] * 5, *[20, 10] * 9, 20, 305]


def compressed(mask: np.ndarray) -> dict[str, Any]:
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def read(*annotations: Any, sized: bool = True, **more: Any) -> AnnotatedFile:
    size = {"height": 30, "width": 40} if sized else {}
    images = [{"id": 5, "file_name": "a/one.jpg", **size}, {"id": "x", "file_name": "two.jpg", **size}]
    document = {"images": images, "annotations": list(annotations), **more}
    return read_coco(parse_coco(json.dumps(document).encode(), "masks.json"))


def mask(segmentation: Any, id: Any = 7, image_id: Any = 5, **more: Any) -> dict[str, Any]:
    return {"id": id, "image_id": image_id, "segmentation": segmentation, **more}


def test_run_lengths_of_both_kinds_with_labels_and_crowds() -> None:
    found = read(
        mask(compressed(RING), category_id=3),
        mask({"size": [30, 40], "counts": RUNS}, 8, iscrowd=1, category_id=99),
        mask(compressed(RING), "text", "x"),
        categories=[{"id": 3, "name": "cup"}, {"id": 4}, "junk"],
    )
    one, two = found.images
    assert (one.name, one.id, one.size, two.name, two.id) == ("a/one.jpg", 5, (30, 40), "two.jpg", None)
    assert [(each.id, each.label, each.crowd, each.area) for each in one.masks] == [
        (7, "cup", False, 375),
        (8, None, True, 375),
    ]
    for each in [*one.masks, *two.masks]:
        np.testing.assert_array_equal(each.pixels(), RING)
    assert two.masks[0].id is None
    assert one.unreadable == two.unreadable == found.unreadable == []


def test_polygons_enclose_pixels_and_the_converters_contours_run_through_them() -> None:
    filled = np.zeros((30, 40), bool)
    filled[5:25, 10:30] = True
    (around,) = read(mask([[10, 5, 30, 5, 30, 25, 10, 25]])).images[0].masks
    converter = {"contributor": "Label Studio Converter"}
    (through,) = read(mask([[10, 5, 29, 5, 29, 24, 10, 24]]), info=converter).images[0].masks
    for each in (around, through):
        np.testing.assert_array_equal(each.pixels(), filled)
        assert each.polygon


def test_pixels_of_polygons_are_those_whose_centers_are_inside_within_a_fifth_of_a_pixel() -> None:
    random = np.random.default_rng(0)
    y, x = np.mgrid[:60, :80] + 0.5
    for corners in (3, 5, 9, 15):
        angles = np.sort(random.uniform(0, 2 * np.pi, corners))
        reach = random.uniform(8, 28, corners)
        points = np.stack([40 + reach * np.cos(angles), 30 + reach * np.sin(angles)], axis=1)
        found = coco.decode(fill_polygons([points.reshape(-1).tolist()], (60, 80))).astype(bool)
        polygon = shapely.Polygon(points)
        wrong = found != shapely.contains_xy(polygon, x, y)
        assert found.sum() > 100
        assert (shapely.distance(polygon.exterior, shapely.points(x, y))[wrong] < 0.2).all()


@pytest.mark.parametrize("part", [[12.0, 28.0], [12, 28, 30, 29], []])
@pytest.mark.parametrize("info", [{}, {"contributor": "Label Studio Converter"}])
def test_parts_without_area_are_left_out(part: list[float], info: dict[str, str]) -> None:
    square = [10, 5, 30, 5, 30, 25, 10, 25]
    expected, *images = (
        read(mask(segmentation), info=info).images[0] for segmentation in ([square], [square, part], [part, square])
    )
    assert expected.masks
    for image in images:
        assert (image.masks, image.unreadable) == (expected.masks, [])


@pytest.mark.parametrize(
    ("segmentation", "why"),
    [
        (compressed(np.ones((20, 25), bool)), "25 x 20 pixels, but its image is 40 x 30"),
        ({"size": [30, 40], "counts": "PPPP"}, "RLE counts"),
        ({"size": [30, 40], "counts": "ünü"}, "ASCII"),
        ({"size": [30, 40], "counts": [5, 10]}, "cover 15 pixels"),
        ({"size": [30, 40], "counts": [-5, 1205]}, "negative"),
        ({"size": [30, 40], "counts": [1.5]}, "not integers"),
        ({"size": [30, 1 << 40], "counts": [5]}, "its size is"),
        ({"size": [30, 40]}, "counts"),
        ({"size": [65_535, 65_535], "counts": [65_535**2]}, "4,294,836,225 pixels: the limit is 250,000,000"),
        ([], "no mask"),
        (None, "no mask"),
        ("text", "neither run lengths nor polygons"),
        ([[1, 2]], "three points"),
        ([[1, 2, 3, 4]], "three points"),
        ([[1, 2, 3, 4], [5, 5], []], "three points"),
        ([[1, 2, 3, 4, 5, 6], [5, 5, 5]], "three points"),
        ([[1, 2, 3, 4, 5, 6], [5, "x"]], "coordinate x"),
        ([[1, 2, 3, 4, 5, 6], [5, 1e12]], "coordinate 1000000000000"),
        ([{"a": 1}], "three points"),
        ([[1, 2, 3, "x", 5, 6]], "coordinate x"),
        ([[1, 2, 3, 1e12, 5, 6]], "coordinate 1000000000000"),
        ([[1, 2, 3, 10**400, 5, 6]], "coordinate 1000000000000"),
        ([[1, 2, 3, math.nan, 5, 6]], "coordinate nan"),
        ([[1, 2, 43, 3, 5, 6]], "coordinate 43: expected pixels of the image, from 0 to 40"),
        ([[1, 2, 3, -3, 5, 6]], "coordinate -3: expected pixels of the image, from 0 to 30"),
        ([[20, 10, 60, 10, 60, 50, 20, 50]], "coordinate 60: expected pixels of the image"),  # in 80 x 60 pixels
        ([[0.5, 0.5, 1, 0.5, 1, 1], [0, 0, 1, 0]], "probably shares of the image"),
        ([[0, 0, 40, 0] * 15_000], "1 outlines of 1,230,000 pixels: the limit is 1,000,000"),
        ([[0, 0, 40, 0] * 1_500] * 10, "10 outlines of 1,230,000 pixels"),
    ],
)
def test_a_mask_that_cannot_be_read_is_listed_and_costs_no_other(segmentation: Any, why: str) -> None:
    found = read(mask(segmentation, 3), mask(compressed(RING), 4))
    image = found.images[0]
    assert [each.id for each in image.masks] == [4]
    (line,) = image.unreadable
    assert line.startswith("mask 3: ")
    assert why in line
    assert image.unreadable_ids == [3]


def test_the_first_pixel_may_be_a_mask() -> None:
    (found,) = read(mask([[0, 0, 1, 0, 1, 1, 0, 1]])).images[0].masks
    assert (found.area, found.pixels()[0, 0]) == (1, True)


def test_an_area_too_large_for_a_float_is_not_stated() -> None:
    (found,) = read(mask(compressed(RING), area=10**400)).images[0].masks
    assert found.stated_area is None


def test_odd_entries_are_listed() -> None:
    images = [
        {"id": 1, "file_name": "same.jpg"},
        {"id": 2, "file_name": "same.jpg"},
        {"id": 1, "file_name": "other.jpg"},
        {"id": 3},
    ]
    annotations = [
        mask(compressed(RING), image_id=1),
        mask([[1, 1, 9, 1, 9, 9]], image_id=2),
        mask(None, image_id=9),
        5,
    ]
    found = read_coco({"images": images, "annotations": annotations})
    assert [(each.name, each.id, len(each.masks)) for each in found.images] == [
        ("same.jpg", 1, 0),
        ("same.jpg", 2, 0),
        ("other.jpg", 1, 0),
    ]
    twice = ["another image also has the id 1, so its masks are unknown"]
    assert found.images[0].unreadable == found.images[2].unreadable == twice
    assert found.images[1].unreadable == ["mask 7: it is a polygon, but the file has no height and width for its image"]
    assert found.homeless == 2
    assert found.unreadable == [
        "image number 4 has no file_name",
        "annotation number 1 refers to the image_id 1 of several images",
        "annotation number 3 refers to no image in the file",
        "annotation number 4 refers to no image in the file",
    ]


def test_ids_and_labels_that_no_table_can_hold() -> None:
    categories = [{"id": 1, "name": "caf\ud800"}]
    found = read(*(mask(compressed(RING), id, category_id=1) for id in (2**70, -1, 2**53, 3.0)), categories=categories)
    assert [(each.id, each.label) for each in found.images[0].masks] == [(id, "caf?") for id in (None, None, 2**53, 3)]


def test_a_category_with_several_names_gives_no_label() -> None:
    categories = [{"id": 1, "name": "cat"}, {"id": "1", "name": "dog"}, *2 * [{"id": 2, "name": "cup"}]]
    masks = (mask(compressed(RING), id, category_id=category) for id, category in ((7, 1), (8, 2)))
    image = read(*masks, categories=categories).images[0]
    assert [(each.id, each.label) for each in image.masks] == [(8, "cup")]
    assert image.unreadable == ["mask 7: its category has several names: 'cat', 'dog'"]
    assert image.unreadable_ids == [7]


@pytest.mark.parametrize("id", [5.0, "5"])
def test_an_id_may_be_written_in_several_ways(id: float | str) -> None:
    found = read(mask(compressed(RING), image_id=id))
    assert ([len(image.masks) for image in found.images], found.homeless) == ([1, 0], 0)


def test_a_polygon_in_another_size_than_the_images_is_unreadable() -> None:
    image = {"id": 1, "file_name": "a.jpg", "height": 60, "width": 80}
    document = {"images": [image], "annotations": [mask([[10, 5, 30, 5, 30, 25, 10, 25]], image_id=1)]}
    (found,) = read_coco(document, {"a.jpg": (30, 40)}.get).images
    assert (found.masks, found.size, found.other) == ([], (30, 40), (60, 80))
    assert found.unreadable == ["mask 7: it is a polygon in 80 x 60 pixels, but its image is 40 x 30"]


@pytest.mark.parametrize("info", [{}, {"contributor": "Label Studio Converter"}])
def test_no_memory_is_taken_for_the_size_that_a_file_claims(info: dict[str, str]) -> None:
    """A contour in 65,535 x 65,535 pixels would take 4 GB."""
    image = {"id": 1, "file_name": "a.jpg", "height": 65_535, "width": 65_535}
    document = {"info": info, "images": [image], "annotations": [mask([[0, 0, 9, 0, 9, 9]], image_id=1)]}
    (found,) = read_coco(document).images
    assert found.unreadable == ["mask 7: its size is 65535 x 65535, 4,294,836,225 pixels: the limit is 250,000,000"]


def test_points_slightly_outside_of_the_image_are_cut_off() -> None:
    filled = np.zeros((30, 40), bool)
    filled[:10, 30:] = True
    (one,) = read(mask([[30, -2, 42, -2, 42, 10, 30, 10]])).images[0].masks
    np.testing.assert_array_equal(one.pixels(), filled)
    usable_polygons([[-20, 0, 1020, 0, 9, 9]], (100, 1000))
    with pytest.raises(UnreadableMaskError, match=r"1020.5: expected pixels of the image, from 0 to 1000"):
        usable_polygons([[0, 0, 1020.5, 0, 9, 9]], (100, 1000))


def test_a_known_size_comes_before_the_files() -> None:
    document = {"images": [{"id": 1, "file_name": "a.jpg", "height": 9, "width": 9}], "annotations": []}
    document["annotations"] = [mask(compressed(RING), image_id=1)]
    assert len(read_coco(document, {"a.jpg": (30, 40)}.get).images[0].masks) == 1
    assert not read_coco(document).images[0].masks


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x89PNG", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "no list `images`: expected.*COCO results"),
        (b"{}", "it has no list `images`"),
        (b'{"images": [], "annotations": {}}', "it has no list `annotations`"),
    ],
)
def test_a_file_that_is_no_coco_is_an_error_that_says_so(data: bytes, why: str) -> None:
    with pytest.raises(UsageError, match=f"masks.json is.*{why}"):
        parse_coco(data, "masks.json")
