"""The JSON of an image that somebody else wrote: what is read, and what is wrong with it."""

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from segmint.catalogs.findings import Code, FindingLocation
from segmint.operators.foreign.masks import ForeignImage, read_header, read_masks

PLACE = FindingLocation("sa_1.json", 0)


def annotation(mask: np.ndarray, **values: Any) -> dict[str, Any]:
    code = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"segmentation": {"size": list(mask.shape), "counts": code["counts"].decode()}, **values}


def read(*annotations: Any, image: Any = None) -> ForeignImage:
    header = {"image_id": 3, "width": 40, "height": 30} if image is None else image
    return read_document({"image": header, "annotations": list(annotations)}, None)


def read_document(document: Any, size: tuple[int, int] | None) -> ForeignImage:
    image = ForeignImage(70, None)
    found = read_header(document, image)
    image.size = image.size or size
    read_masks(found, image, PLACE, exact=True)
    return image


def square() -> np.ndarray:
    mask = np.zeros((30, 40), bool)
    mask[5:15, 10:30] = True
    return mask


def test_a_mask_is_measured_whatever_it_says_of_itself() -> None:
    found = read(annotation(square(), id=7, area=1, bbox=[0, 0, 1, 1], predicted_iou=1))
    (mask,) = found.masks
    assert (mask["area"], mask["bbox"], mask["annotation_id"]) == (200, [10, 5, 19, 9], 7)
    assert (mask["predicted_iou"], mask["stability_score"], mask["crop_box"]) == (1.0, None, None)
    assert (found.number, found.size) == (3, (30, 40))
    assert list(found.findings.counts) == [Code.MASK_AREA]


@pytest.mark.parametrize("box", [[10, 5, 19, 9], [10.0, 5.0, 20.0, 10.0]])
def test_a_box_may_extend_between_the_outermost_pixels_or_count_pixels(box: list[float]) -> None:
    found = read(annotation(square(), id=7, bbox=box), annotation(square()))
    assert found.findings.total == 0
    assert found.masks[0]["bbox"] == [10, 5, 19, 9]


def test_null_is_as_good_as_nothing() -> None:
    names = ("bbox", "area", "crop_box", "point_coords", "predicted_iou", "stability_score", "id")
    assert read(annotation(square(), **dict.fromkeys(names))).findings.total == 0
    assert read(annotation(square(), point_coords=[], crop_box=[0, 0, 40, 30])).findings.total == 0


def test_lists_of_run_lengths_are_read() -> None:
    code = annotation(square())
    lengths = [10 * 30 + 5, *[10, 20] * 19, 10, 15 + 10 * 30]
    found = read({"segmentation": {"size": [30, 40], "counts": lengths}})
    assert found.masks[0]["segmentation"] == code["segmentation"]
    assert found.findings.total == 0


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [[1, 2, 3, 4]],
        {"size": [30, 40], "counts": None},
        {"size": [30, 40], "counts": "é" * 4},
        {"size": [30, 40], "counts": [1200.0]},
        {"size": [30, 40], "counts": [True, 1199]},
        {"size": [30, 40], "counts": [10**30]},
        {"size": [30, 40], "counts": "~~~"},
        {"size": [30, 10**9], "counts": "0"},
        {"size": "30", "counts": "0"},
        {"size": [30, 40], "counts": ""},
    ],
)
def test_what_is_no_mask_is_a_finding_and_left_out(segmentation: Any) -> None:
    found = read({"segmentation": segmentation, "id": 4}, annotation(square()))
    assert found.findings.counts == {Code.BAD_RLE: 1}
    assert len(found.masks) == 1


@pytest.mark.parametrize("value", [float("nan"), "0.9", True, 10**400])
def test_numbers_that_are_none_are_findings(value: Any) -> None:
    found = read(annotation(square(), predicted_iou=value))
    assert found.findings.counts == {Code.SCORE_RANGE: 1}
    assert found.masks[0]["predicted_iou"] is None


@pytest.mark.parametrize("document", ["", None, [], {}, {"annotations": []}])
def test_what_is_no_such_json_is_told(document: Any) -> None:
    with pytest.raises(ValueError, match=r"no image with"):
        read_document(document, None)


def test_the_size_comes_from_json_then_jpeg_then_masks() -> None:
    assert read(annotation(square()), image={}).size == (30, 40)
    document = {"image": {"width": 4, "height": -1}, "annotations": []}
    assert read_document(document, (7, 8)).size == (7, 8)
    assert read_document(document, None).size is None
    assert read(annotation(square()), image={"width": 30, "height": 40}).findings.counts == {Code.RLE_SIZE: 1}
