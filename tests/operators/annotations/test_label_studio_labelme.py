"""labelme's JSON: polygons become masks, those of a group one mask, and other shapes cost no other."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segmint.operators.annotations.folder import read_folder
from segmint.operators.annotations.image import AnnotatedImage
from segmint.operators.annotations.label_studio import read_labelme
from tests.support.locations import location_of

SQUARE = [[10.0, 6.0], [30.0, 6.0], [30.0, 24.0], [10.0, 24.0]]


def shape(points: Any = SQUARE, label: Any = "cup", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "shape_type": "polygon", "flags": {}, **more}


def written(*shapes: Any, **more: Any) -> dict[str, Any]:
    sides = {"imageHeight": 30, "imageWidth": 40}
    return {"version": "5.5.0", "shapes": list(shapes), "imagePath": "..\\photos\\sa_2.jpg", **sides, **more}


def read(*shapes: Any, **more: Any) -> AnnotatedImage:
    return read_labelme(json.dumps(written(*shapes, **more)).encode(), "sa_2.json")


def test_polygons_are_masks_and_groups_are_one() -> None:
    expected = np.zeros((30, 40), bool)
    expected[6:24, 10:30] = True
    part = [[35, 1], [39, 1], [39, 5], [35, 5]]
    old = {"label": "plate", "points": part}
    group = [shape(group_id=3), shape(part, group_id=3), shape(part, "plate", group_id=3)]
    image = read(shape(), old, *group)
    assert (image.name, image.size, image.unreadable) == ("..\\photos\\sa_2.jpg", (30, 40), [])
    assert [(mask.label, mask.id, mask.area, mask.polygon) for mask in image.masks] == [
        ("cup", None, 360, True),
        ("plate", None, 16, True),
        ("cup", None, 376, True),
        ("plate", None, 16, True),
    ]
    np.testing.assert_array_equal(image.masks[0].pixels(), expected)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (shape(shape_type="rectangle"), "shape 1: it is of type rectangle, not a polygon"),
        (shape(shape_type="mask"), "shape 1: it is of type mask"),
        (shape(points=[[1, 2], [3, 4]]), "shape 1: none of its polygons"),
        (shape(points=[[1, 2], [3, 4], [5]]), "shape 1: not enough values to unpack"),
        (shape(points="x"), "shape 1: not enough values to unpack"),
        (shape(points=None), "shape 1: 'NoneType' object is not iterable"),
        (shape(points=[[1, 2], [300, 4], [5, 6]]), "shape 1: a polygon has the coordinate 300"),
        (3, "shape 1: 'points'"),
    ],
)
def test_a_shape_that_cannot_be_read_costs_no_other(other: Any, why: str) -> None:
    image = read(other, shape())
    assert len(image.masks) == 1
    (problem,) = image.unreadable
    assert problem.startswith(why)


def test_a_folder_is_read_by_the_images_that_its_files_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(written(shape())))
    (tmp_path / "b.json").write_text(json.dumps(written(shape(), imagePath=None, imageHeight=None)))
    (tmp_path / "c.json").write_text(json.dumps(written(shapes=None)))
    (tmp_path / "d.json").write_text("{")
    one, two, three, four = read_folder(location_of(tmp_path), len, {"b.json": (30, 40)}.get)
    assert (one.name, one.size, len(one.masks)) == ("..\\photos\\sa_2.jpg", (30, 40), 1)
    assert (two.name, two.size, len(two.masks)) == ("b.json", None, 1)  # its mask has the size
    assert three.unreadable[0].startswith("the file is not labelme's JSON")
    assert four.unreadable[0].startswith("the file is not SA-1B's JSON")
    (tmp_path / "b.json").rename(tmp_path / "index.json")
    names = [image.name for image in read_folder(location_of(tmp_path), len)]
    assert names == ["..\\photos\\sa_2.jpg", "c.json", "d.json"]  # an index isn't of an image
