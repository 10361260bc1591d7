"""Label Studio's tasks: labels, sizes, and that nothing large is decoded for a mask of another size."""

from typing import Any

import numpy as np
import pytest
from label_studio_sdk.converter import brush

from segmint.operators.annotations import label_studio
from segmint.operators.annotations.label_studio import read_tasks

DISK = np.zeros((30, 40), bool)
DISK[5:25, 10:30] = True


def region(label: Any = "cup", **more: Any) -> dict[str, Any]:
    rle = brush.mask2rle(DISK.astype(np.uint8) * 255)
    value = {"format": "rle", "rle": rle, "brushlabels": [label]}
    return {"id": "10000", "type": "brushlabels", "original_height": 30, "original_width": 40, "value": value, **more}


def task(*regions: dict[str, Any]) -> dict[str, Any]:
    return {"data": {"image": "/data/upload/x-sa_1.jpg"}, "annotations": [{"result": list(regions)}]}


def test_masks_have_their_labels_and_ids() -> None:
    ((image, others),) = read_tasks([task(region(), region(None, id="aB"))])
    assert (image.name, image.size, others) == ("/data/upload/x-sa_1.jpg", None, 0)
    one, two = image.masks
    np.testing.assert_array_equal(one.pixels(), DISK)
    assert [(mask.id, mask.label) for mask in (one, two)] == [(10_000, "cup"), (None, None)]


def test_polygons_are_in_percent_of_the_sides() -> None:
    points = [[25.0, 20.0], [75.0, 20.0], [75.0, 80.0], [25.0, 80.0]]
    polygon = region(type="polygonlabels", value={"points": points, "closed": True, "polygonlabels": ["plate"]})
    bare = {**polygon, "id": "7", "type": "polygon", "value": {"points": points}}
    labels = {**bare, "type": "labels", "value": {"points": points, "labels": ["dish"]}}
    ((image, _),) = read_tasks([task(polygon, bare, labels, region(id="8"))])
    assert [(mask.id, mask.label, mask.polygon) for mask in image.masks] == [
        (10_000, "plate", True),
        (7, "dish", True),
        (8, "cup", False),
    ]
    assert image.unreadable == []
    expected = np.zeros((30, 40), bool)
    expected[6:24, 10:30] = True
    for mask in image.masks[:2]:
        np.testing.assert_array_equal(mask.pixels(), expected)
    minimal = {**polygon["value"], "original_height": 30, "original_width": 40}
    ((image, _),) = read_tasks([{"image": "sa_1.jpg", "annotation_id": 1, "tag": [minimal]}])
    assert [(mask.label, mask.area) for mask in image.masks] == [("plate", 360)]
    for wrong in (None, [[1, 2], [3]], [[1, 2], [3, 4]], [["a", 2], [3, 4], [5, 6]], [[1, 2], [3, 400], [5, 6]]):
        damaged = region(type="polygonlabels", value={**polygon["value"], "points": wrong})
        ((image, _),) = read_tasks([task(region(id="8"), damaged)])
        assert (len(image.masks), image.unreadable_ids) == (1, [10_000])


def test_a_mask_of_another_size_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(runs: object, size: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(label_studio, "decode_runs", never)
    ((image, _),) = read_tasks([task(region())], lambda name: (40, 30))
    assert (image.masks, image.unreadable_ids) == ([], [10_000])
    assert image.unreadable == ["mask 10000: 40 x 30 pixels, but its image is 30 x 40"]
    ((image, _),) = read_tasks([task(region(original_width=40_000, original_height=30_000))])
    assert image.unreadable == ["mask 10000: its size is 40000 x 30000, 1,200,000,000 pixels: the limit is 250,000,000"]


def test_what_is_no_mask_costs_no_other() -> None:
    said = [{"id": "a", "type": kind, "value": {kind: ["good"]}} for kind in ("choices", "textarea")]
    nameless = {**task(region()), "data": {}}
    tasks: list[Any] = [task(*said, {}, region()), nameless, task(region())]
    tasks[0]["annotations"][0]["result"].insert(0, 3)
    answers = list(read_tasks(tasks))
    assert [(len(image.masks), image.unreadable) for image, _ in answers] == [
        (1, []),
        (0, ["it has no `image`"]),
        (1, []),
    ]
    assert answers[1].image.name == "task number 2"
    with pytest.raises(TypeError, match="task number 2 is not an object"):
        list(read_tasks([task(region()), 5]))


def test_a_region_may_be_spread_over_several_results() -> None:
    """As the tags Brush and Labels write it, in any order, also if the labels repeat the shape."""
    brush = region()
    value = {name: each for name, each in brush["value"].items() if name != "brushlabels"}
    shape, bare = {**brush, "type": "brush", "value": value}, {"id": "10000", "type": "labels"}
    choice = {"id": "10000", "type": "choices", "value": {**value, "choices": ["good"]}}
    for said in ({**value, "labels": ["Cup"]}, {"labels": ["Cup", "Dish"]}):
        labels = {**bare, "original_height": 30, "original_width": 40, "value": said}
        for results in ([shape, labels], [labels, shape], [choice, labels, choice, shape, region("plate", id="x")]):
            ((image, _),) = read_tasks([task(*results)])
            named = [(mask.id, mask.label) for mask in image.masks]
            assert named == [(10_000, "Cup"), *[(None, "plate")] * (len(results) == 5)]
            assert image.unreadable == image.prompts == []
    # The records of JSON_MIN have no ids or types.
    sized = {"original_height": 30, "original_width": 40}
    tags = {"brush": [{**value, **sized}], "name": [{**value, "labels": ["Cup"], **sized}]}
    ((image, _),) = read_tasks([{"image": "sa_1.jpg", "id": 1, "annotation_id": 1, **tags}])
    assert [(mask.label, mask.area) for mask in image.masks] == [("Cup", DISK.sum())]


def test_results_without_an_id_and_other_strokes_of_an_id_stay_masks() -> None:
    other = region("dish")
    other["value"]["rle"] = brush.mask2rle(np.ones((30, 40), np.uint8) * 255)
    ((image, _),) = read_tasks([task(region(), other, region("plate", id=None), region(None, id=None))])
    assert [(mask.id, mask.label) for mask in image.masks] == [
        (10_000, "cup"),
        (10_000, "dish"),
        (None, "plate"),
        (None, None),
    ]


KEYPOINT = {"id": "k", "type": "keypointlabels", "value": {"x": 50, "y": 50, "width": 1, "keypointlabels": ["cup"]}}


def rectangle(x: float, y: float, width: float, height: float, **changes: Any) -> dict[str, Any]:
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": ["cup"]}
    return {"id": "r", "type": "rectanglelabels", "value": value, **changes}


@pytest.mark.parametrize(
    "prompt",
    [
        KEYPOINT,
        {**KEYPOINT, "type": "keypoint"},
        {**KEYPOINT, "id": "10000"},
        rectangle(20, 15, 60, 70),
        rectangle(-5, -5, 110, 110, type="rectangle"),
    ],
)
def test_prompts_beside_a_mask_are_no_masks(prompt: dict[str, Any]) -> None:
    for results in ([region(), prompt], [prompt, region()]):
        ((image, _),) = read_tasks([task(*results)])
        assert (len(image.masks), image.unreadable, len(image.prompts)) == (1, [], 1)
    ((image, _),) = read_tasks([task(prompt)])  # alone, nobody said that the image has no masks
    assert (image.masks, len(image.unreadable), image.prompts) == ([], 1, [])
    minimal = [{**region()["value"], "original_height": 30, "original_width": 40}]
    record = {"image": "sa_1.jpg", "annotation_id": 1, "tag": minimal, "prompt": [KEYPOINT["value"]]}
    ((image, _),) = read_tasks([{**record, "choice": [{"choices": ["good"]}]}])
    assert (len(image.masks), image.unreadable, len(image.prompts)) == (1, [], 1)


CUT = {"format": "rle", "rle": [0, 0, 1], "brushlabels": ["cup"]}


@pytest.mark.parametrize(
    ("result", "problems"),
    [
        ({"id": "b", "type": "brush", "value": {"format": "rle"}}, 1),
        (region(id="b", value=CUT), 1),
        (region(id="b", value=CUT, type="labels"), 1),
        (region(id="10000", value={**CUT, "rle": None}), 1),
        (
            {"id": "p", "type": "polygonlabels", "value": {"points": [[1, 1], [9, 1], [9, 9]], "polygonlabels": ["a"]}},
            1,
        ),
        ({"id": "e", "type": "ellipse", "value": {"x": 5, "y": 5, "radiusX": 2, "radiusY": 2}}, 1),
        ({"id": "m", "type": "bitmask", "value": {"imageDataURL": "data:,"}}, 1),
        ({"id": "l", "type": "labels", "value": {"labels": ["cup"]}}, 1),
        (rectangle(0, 0, 20, 20), 1),  # an object that nobody drew
        (rectangle(float("nan"), 0, 1e300, 20), 1),
        (rectangle(0, 0, 20, 20, value={"x": "a"}), 1),
    ],
)
def test_shapes_that_cannot_be_read_are_listed_beside_a_mask(result: dict[str, Any], problems: int) -> None:
    ((image, _),) = read_tasks([task(region(), result, KEYPOINT)])
    assert (len(image.masks), len(image.unreadable), len(image.prompts)) == (1, problems, 1)


@pytest.mark.parametrize("other", [{"to_name": "second"}, {"item_index": 1}])
def test_masks_of_several_images_in_a_task_are_unreadable(other: dict[str, Any]) -> None:
    first = {"to_name": "image", "item_index": 0}
    ((image, _),) = read_tasks([task(region(**first), region(**{**first, **other}, id="7"))])
    assert (image.masks, image.unreadable_ids) == ([], [10_000, 7])
    assert image.unreadable[1] == "mask 7: its task contains masks of several images"
    rating = {"id": "r", "type": "choices", **other, "value": {"choices": ["good"]}}
    ((image, _),) = read_tasks([task(region(to_name="image"), region("dog", **first, id="7"), rating)])
    assert (len(image.masks), image.unreadable) == (2, [])


def test_what_has_no_result_is_no_answer() -> None:
    path = {"image": "sa_1.jpg"}
    old = {"result": [region()], "updated_at": "2026-01-01T00:00:00Z"}
    new = {"result": None, "updated_at": "2026-01-02T00:00:00Z"}
    answers = list(read_tasks([{"data": path, "annotations": None}, {"data": path, "annotations": [new, old]}]))
    assert [(len(image.masks), others) for image, others in answers] == [(1, 0)]


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("2026-01-01T09:00:00Z", "2026-01-01T09:00:00.5Z"),
        ("2026-01-01T11:00:00+02:00", "2026-01-01T10:00:00Z"),
        (None, "2026-01-01T10:00:00"),
    ],
)
def test_the_latest_answer_is_that_of_the_latest_time(earlier: str | None, later: str) -> None:
    annotations = [{"result": [], "updated_at": earlier}, {"result": [region()], "updated_at": later}]
    for each in (annotations, annotations[::-1]):
        ((image, others),) = read_tasks([{"data": {"image": "sa_1.jpg"}, "annotations": each}])
        assert (len(image.masks), others) == (1, 1)


def test_json_min_has_a_record_an_answer_with_its_time() -> None:
    record = {"image": "sa_1.jpg", "id": 1, "tag": [{**region()["value"], "original_height": 30, "original_width": 40}]}
    times = ("2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z")
    records = [{**record, "annotation_id": n, "updated_at": time} for n, time in enumerate(times)]
    (first, _), (second, _) = read_tasks(records)
    assert first.saved is not None
    assert second.saved is not None
    assert first.saved - second.saved == 86_400


def part(which: str, id: int, saved: str | None = None) -> dict[str, Any]:
    whole = task(region(id=str(id)))
    whole["annotations"][0]["updated_at"] = saved
    return {**whole, "data": {**whole["data"], "segmint_part": which}}


def test_an_image_that_was_exported_in_parts_is_one_again() -> None:
    later, earlier = "2026-03-02T00:00:00Z", "2026-03-01T00:00:00Z"
    tasks = [part("2/2", 10_001, later), part("1/2", 10_000, earlier), part("2/2", 10_002, earlier), task(region())]
    plain, (image, superseded) = read_tasks(tasks)
    assert len(plain.image.masks) == 1
    assert [mask.id for mask in image.masks] == [10_000, 10_001]
    assert (image.unreadable, superseded) == ([], 1)
    assert image.saved == 1772409600.0  # the later one's


def test_a_part_without_an_answer_is_missed() -> None:
    """Its masks were not deleted by anybody: who replaces masks must know that some are missing."""
    ((image, _),) = read_tasks([part("3/3", 10_002), part("1/3", 10_000)])
    assert [mask.id for mask in image.masks] == [10_000, 10_002]
    assert image.unreadable == ["the masks of part 2 of 3: its task has no submission"]
