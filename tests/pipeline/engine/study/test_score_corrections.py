"""Corrected masks are read back from what tools write, and what cannot be read is told."""

from typing import Any

import numpy as np
import pytest
from label_studio_sdk.converter import brush
from pycocotools import mask as coco

from segmint.pipeline.engine.study.score import Corrections, read_coco, read_label_studio

SIZE = (30, 40)
SIZES = {1: SIZE, 12: SIZE}
RING = np.zeros(SIZE, bool)
RING[5:25, 10:30] = True
RING[10:15, 15:20] = False


def document(*annotations: dict[str, Any], **more: Any) -> dict[str, Any]:
    images = [{"id": 0, "file_name": "x/sa_12.jpg"}, {"id": 1, "file_name": "sa_1.jpg"}]
    return {"images": images, "annotations": list(annotations), **more}


def masks_of(found: Corrections, image: int) -> list[np.ndarray]:
    return [coco.decode(mask.rle).astype(bool) for mask in found.masks[image]]


def compressed(mask: np.ndarray) -> dict[str, Any]:
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def test_coco_in_both_kinds_of_run_lengths() -> None:
    # Columns of 30 rows: 10 empty ones, then 5 of rows 5 to 24, and so on.
    runs = [305, *[20, 10] * 5, *[5, 5, 10, 10] * 5, *[20, 10] * 9, 20, 305]
    found = read_coco(
        document(
            {"id": 7, "image_id": 0, "segmentation": compressed(RING)},
            {"id": 8, "image_id": 0, "segmentation": {"size": [30, 40], "counts": runs}},
        ),
        SIZES,
    )
    assert [mask.id for mask in found.masks[12]] == [7, 8]
    for mask in masks_of(found, 12):
        np.testing.assert_array_equal(mask, RING)
    assert (found.masks[1], found.foreign, found.superseded, found.unreadable) == ([], 0, 0, [])


def test_coco_polygons_enclose_pixels_and_the_converters_contours_run_through_them() -> None:
    around = {"id": 1, "image_id": 1, "segmentation": [[10, 5, 30, 5, 30, 25, 10, 25]]}
    through = {"id": 1, "image_id": 1, "segmentation": [[10, 5, 29, 5, 29, 24, 10, 24]]}
    filled = np.zeros(SIZE, bool)
    filled[5:25, 10:30] = True
    np.testing.assert_array_equal(masks_of(read_coco(document(around), SIZES), 1)[0], filled)
    converted = document(through, info={"contributor": "Label Studio Converter"})
    np.testing.assert_array_equal(masks_of(read_coco(converted, SIZES), 1)[0], filled)


@pytest.mark.parametrize(
    ("segmentation", "told"),
    [
        (compressed(np.ones((20, 20), bool)), "20 x 20 pixels, but its image is 40 x 30"),
        ({"size": [30, 40], "counts": "PPPP"}, "RLE counts"),
        ({"size": [30, 40], "counts": "ünü"}, "ASCII"),
        ({"size": [30, 40], "counts": [5, 10]}, "cover 15 pixels"),
        ({"size": [30, 40], "counts": [-5, 1205]}, "out of bounds|negative"),
        ({"size": [30]}, r"its size is \[30\]: expected \[height, width\]"),
        ([], "no mask"),
        (None, "no mask"),
    ],
)
def test_a_mask_that_cannot_be_read_is_told_and_costs_no_other(segmentation: Any, told: str) -> None:
    good = {"id": 4, "image_id": 1, "segmentation": compressed(RING)}
    found = read_coco(document({"id": 3, "image_id": 1, "segmentation": segmentation}, good), SIZES)
    assert [mask.id for mask in found.masks[1]] == [4]
    assert found.unreadable_ids == {3}
    (problem,) = found.unreadable
    assert problem.startswith("sa_1.jpg, mask 3: ")
    import re

    assert re.search(told, problem), problem


def test_coco_images_that_were_not_drawn_or_come_twice_are_counted() -> None:
    value = document({"id": 1, "image_id": 5, "segmentation": compressed(RING)})
    value["images"] += [{"id": 5, "file_name": "sa_99.jpg"}, {"id": 6, "file_name": "sa_12.jpg"}]
    value["annotations"].append({"id": 2, "image_id": 6, "segmentation": compressed(RING)})
    found = read_coco(value, SIZES)
    assert (found.foreign, found.superseded, found.masks) == (1, 1, {12: [], 1: []})


def region(mask: np.ndarray, id: str = "120000", **more: Any) -> dict[str, Any]:
    rle = brush.mask2rle(mask.astype(np.uint8) * 255)
    size = {"original_height": mask.shape[0], "original_width": mask.shape[1]}
    return {"id": id, "type": "brushlabels", **size, "value": {"format": "rle", "rle": rle}, **more}


def task(*annotations: dict[str, Any], image: str = "/data/local-files/?d=images/sa_12.jpg") -> dict[str, Any]:
    return {"id": 1, "data": {"image": image}, "annotations": list(annotations), "predictions": [{"result": [1]}]}


def test_label_studio_the_latest_answer_that_was_not_cancelled_counts() -> None:
    old = {"result": [], "updated_at": "2026-01-01T00:00:00Z"}
    new = {"result": [region(RING)], "updated_at": "2026-01-02T00:00:00Z"}
    gone = {"result": [], "updated_at": "2026-01-03T00:00:00Z", "was_cancelled": True}
    found = read_label_studio([task(old, new, gone)], SIZES)
    assert [mask.id for mask in found.masks[12]] == [120000]
    np.testing.assert_array_equal(masks_of(found, 12)[0], RING)
    assert found.superseded == 1


def test_label_studio_no_answer_is_none_and_an_empty_one_is_one() -> None:
    assert read_label_studio([task()], SIZES).masks == {}
    assert read_label_studio([task({"result": [], "was_cancelled": True})], SIZES).masks == {}
    assert read_label_studio([task({"result": []})], SIZES).masks == {12: []}
    assert read_label_studio([task({"result": []}, image="sa_99.jpg")], SIZES).foreign == 1


def test_label_studio_ids_of_new_regions_are_no_ids() -> None:
    found = read_label_studio([task({"result": [region(RING, id="aB3x")]})], SIZES)
    assert [mask.id for mask in found.masks[12]] == [None]


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({"type": "ellipselabels", "value": {"x": 5}}, "of type ellipselabels, neither a brush stroke nor a polygon"),
        (region(np.ones((20, 20), bool)), "20 x 20 pixels, but its image is 40 x 30"),
        (region(RING, original_width=41), "41 x 30 pixels, but its image is 40 x 30"),
        ({**region(RING), "value": {"rle": [255, 255, 255, 255, 57, 27]}}, "run lengths have 4294967295 values"),
        ({**region(RING), "value": {"rle": [0, 0, 18, 192, 57, 27]}}, "are cut off after 0 of 4800 values"),
        ({**region(RING), "value": {"rle": [0, 0, 18, 192, "x"]}}, "not a list of numbers from 0 to 255"),
        ({**region(RING), "value": {"rle": 10**15}}, "not a list of numbers"),
    ],
)
def test_label_studio_what_cannot_be_read_is_told(bad: dict[str, Any], told: str) -> None:
    bad = {"id": "120001", **bad} if "id" not in bad else {**bad, "id": "120001"}
    link = {"type": "relation", "from_id": "120000", "to_id": "120001"}
    found = read_label_studio([task({"result": [region(RING), bad, link]})], SIZES)
    assert [mask.id for mask in found.masks[12]] == [120000]
    (problem,) = found.unreadable
    assert problem.startswith("sa_12.jpg, mask 120001: ")
    assert told in problem


def test_json_min_the_latest_of_several_answers_counts() -> None:
    value = {**region(RING)["value"], "original_height": 30, "original_width": 40}
    times = ("2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z", "2026-01-01T00:00:00Z")
    records = [
        {"image": "sa_12.jpg", "id": 1, "annotation_id": n, "updated_at": time, "tag": [value] * n}
        for n, time in enumerate(times)
    ]
    found = read_label_studio(records, SIZES)
    assert (len(found.masks[12]), found.superseded) == (1, 2)
