"""Comparison of masks with their file's boxes and areas, in every convention. Contradictory masks are unreadable."""

import json
import re
from typing import Any

import numpy as np
import pytest

from segmint.operators.annotations.coco import read_coco
from segmint.operators.annotations.folder import read_geojson, read_json
from segmint.operators.annotations.image import AnnotatedImage

BOX = [60, 40, 100, 50]
MASK = np.zeros((400, 600), bool)
MASK[40:90, 60:160] = True


def runs(mask: np.ndarray, order: str = "F") -> dict[str, Any]:
    flat = np.concatenate([[False], mask.ravel(order), [True]])
    starts = np.flatnonzero(np.diff(flat.astype(np.int8))).tolist()
    return {"size": list(mask.shape), "counts": np.diff([0, *starts, mask.size][: len(starts) + 2]).tolist()}


def image_of(*annotations: dict[str, Any]) -> AnnotatedImage:
    """The image of a COCO file with these annotations, whose segmentation is MASK's unless they have another."""
    named = [
        {"id": number, "image_id": 1, "segmentation": runs(MASK), **said} for number, said in enumerate(annotations)
    ]
    about = {"id": 1, "file_name": "sa_1.jpg", "height": 400, "width": 600}
    return read_coco({"images": [about], "annotations": named}).images[0]


def polygon(x: float, y: float, width: float, height: float) -> list[list[float]]:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"segmentation": {"size": [400, 600], "counts": [10, 0, *[240_000 - 10]]}, "bbox": [0, 0, 0, 0]},
        {"segmentation": {"size": [400, 600], "counts": [0, 0, 400, 50, 0, 9, 239_541, 0]}, "bbox": [1, 0, 1, 59]},
        {"bbox": BOX, "area": 5000},
        {"bbox": [60, 40, 99, 49]},  # between the outermost pixels
        {"bbox": [62.0, 38.4, 100, 51.5]},
        {"bbox": [60, 40, 160, 90]},  # corners
        {"bbox": [0, 0, 0, 0], "area": 0},
        {"bbox": [0.1, 0.1, 0.167, 0.125]},  # shares of the sides
        {"bbox": [], "area": "5000"},
        {"bbox": [60, 40, float("nan"), 50], "area": 10**400},
        {"area": 4851},  # of the outline through the outermost pixels
        {"segmentation": polygon(-12, -8, 240, 110), "bbox": [-12, -8, 240, 110], "area": 26400},
        {"segmentation": [[60, 40, 160, 40, 60, 90]], "bbox": BOX, "area": 5000},  # area of the box
        {"segmentation": [*polygon(60, 40, 100, 50), [300, 300]], "bbox": [60, 40, 240, 260]},
    ],
)
def test_boxes_and_areas_of_every_convention_fit(said: dict[str, Any]) -> None:
    image = image_of(said)
    assert (len(image.masks), image.unreadable) == (1, [])


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"segmentation": runs(MASK, "C"), "bbox": BOX}, r"in the box .* bbox in the file is \[60.0, .*the columns"),
        ({"segmentation": runs(MASK[:, ::-1]), "bbox": BOX}, r"in the box \[440.0, 40.0, 100.0, 50.0\], but its bbox"),
        ({"segmentation": runs(~MASK), "bbox": BOX, "area": 5000}, r"in the box \[0.0, 0.0, 600.0, 400.0\]"),
        ({"segmentation": runs(~MASK), "area": 5000}, "it has 235,000 pixels, but its area in the file is 5,000"),
        ({"segmentation": runs(np.zeros_like(MASK)), "bbox": BOX}, r"in the box \[0.0, 0.0, 0.0, 0.0\]"),
        ({"segmentation": polygon(30, 20, 50, 25), "bbox": BOX}, r"50.0, 25.0\], but .* 50.0\] \("),
        ({"segmentation": polygon(40, 60, 50, 100), "bbox": BOX}, "in the box"),  # y before x
        ({"area": 50_000}, "5,000 pixels"),
        ({"area": 500}, "5,000 pixels"),
    ],
)
def test_a_mask_that_contradicts_the_file_is_unreadable(said: dict[str, Any], why: str) -> None:
    image = image_of(said)
    assert (image.masks, image.unreadable_ids) == ([], [0])
    (line,) = image.unreadable
    assert line.startswith("mask 0: it")
    assert re.search(why, line), line


@pytest.mark.parametrize(("wrong", "right", "left"), [(1, 2, 3), (2, 2, 2), (1, 1, 1), (9, 1, 1), (1, 11, 12)])
def test_a_few_masks_may_have_the_boxes_of_former_shapes(wrong: int, right: int, left: int) -> None:
    stale = {"bbox": [300, 200, 50, 50]}
    image = image_of(*wrong * [stale], *right * [{"bbox": BOX}], {})
    assert len(image.masks) == left + 1  # a mask without a box is no evidence
    assert len(image.unreadable) == wrong + right - left


def test_every_reader_of_boxes_and_areas_compares_them() -> None:
    about = {"file_name": "sa_1.jpg", "height": 400, "width": 600}
    for said, count in (({"bbox": [60, 40, 99, 49], "area": 5000}, 1), ({"bbox": [9, 9, 99, 49]}, 0), ({"area": 9}, 0)):
        data = {"image": about, "annotations": [{"id": 7, "segmentation": runs(MASK), **said}]}
        assert len(read_json(json.dumps(data).encode(), "a.json").masks) == count
    ring = np.reshape(polygon(*BOX), (-1, 2)).tolist()
    for corners, area, count in (([60, 40, 160, 90], 5000, 1), ([6, 4, 16, 9], 5000, 0), (None, 90_000, 0)):
        geometry = {"type": "Polygon", "coordinates": [ring]}
        feature = {"geometry": geometry, "bbox": corners, "properties": {"area": area}}
        data = {"features": [feature], "image": about}
        assert len(read_geojson(json.dumps(data).encode(), "a.geojson").masks) == count
    # In other tools' files, areas may be in other units.
    assert len(read_geojson(json.dumps({"features": [feature]}).encode(), "a.geojson", (400, 600)).masks) == 1
