"""A privacy study's score: counts by kind, and the largest share of images that they allow."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from segmint.catalogs.dataset.regions import WantedRegion, read_regions
from segmint.infra.errors import UsageError
from segmint.pipeline.engine.study.privacy import (
    Mark,
    read_coco,
    read_label_studio,
    read_marks,
    sample_privacy,
    score_privacy,
)
from segmint.pipeline.quality.statistics.ratings import read_score
from tests.support.committed import write_dataset
from tests.support.locations import location_of

SIZES = {1: (30, 40), 12: (30, 40), 13: (30, 40)}
CATEGORIES = [{"id": 1, "name": "face"}, {"id": 2, "name": "Plate"}, {"id": 3, "name": "dog"}]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """The images 1, 2, 4 and 5."""
    write_dataset(location_of(tmp_path / "small"), shards=2)
    sample_privacy(location_of(tmp_path / "small"), 4, 0, location_of(tmp_path / "study"))
    return tmp_path / "study"


def answer(study: Path, images: list[int], *marks: tuple[int, int, list[float]]) -> None:
    """Put the answers for some images: marks of (image, category, box)."""
    document = {
        "categories": [{"id": n, "name": name} for n, name in enumerate(("face", "plate", "other", "cat"), 1)],
        "images": [{"id": n, "file_name": f"sa_{n}.jpg", "width": 80, "height": 60} for n in images],
        "annotations": [
            {"id": n, "image_id": image, "category_id": category, "bbox": box}
            for n, (image, category, box) in enumerate(marks)
        ],
    }
    (study / "corrected.json").write_text(json.dumps(document))


def test_marks_are_counted_by_kind_and_become_regions(study: Path, tmp_path: Path) -> None:
    answer(study, [1, 2, 4], (1, 1, [0, 0, 4, 4]), (1, 1, [9, 9, 4, 4]), (1, 2, [20, 1, 9, 4]), (2, 4, [1, 1, 3, 3]))
    score = score_privacy(location_of(study), regions=location_of(tmp_path / "missed.jsonl"))
    assert (score.images, score.population, score.answered) == (4, 4, 3)
    counts = {each.kind: (each.marks, each.images) for each in score.missed}
    assert counts == {"face": (2, 2), "plate": (1, 2), "other": (0, 1), "any": (3, 2)}, "a cat may have been a face"
    assert score.any.share == pytest.approx(2 / 3)
    assert score.any.at_most == pytest.approx(0.98305, abs=1e-5)  # 1 - p^3 = 0.05
    assert "1 image without an answer" in "\n".join(score.lines())
    found = read_regions(location_of(tmp_path / "missed.jsonl"), WantedRegion)
    assert [(each.id, each.kind, each.x, each.y, each.w, each.h) for each in found] == [
        (1, "face", 0, 0, 4, 4),
        (1, "face", 9, 9, 4, 4),
        (1, "plate", 20, 1, 9, 4),
    ]


def test_nothing_marked_is_a_bound_and_no_file(study: Path, tmp_path: Path) -> None:
    answer(study, [1, 2, 4, 5])
    score = score_privacy(location_of(study), regions=location_of(tmp_path / "missed.jsonl"))
    assert score.any.at_most == pytest.approx(1 - 0.05 ** (1 / 4))
    assert score.regions is None
    assert not (tmp_path / "missed.jsonl").exists()


def test_no_answer_is_no_bound(study: Path) -> None:
    answer(study, [9])
    score = score_privacy(location_of(study))
    assert (score.answered, score.foreign, score.any.at_most) == (0, 1, None)
    assert "no image was answered, so there is no bound" in score.lines()


def test_a_score_is_read_back_and_one_that_was_edited_is_not(study: Path, tmp_path: Path) -> None:
    answer(study, [1, 2], (1, 1, [0, 0, 4, 4]))
    score = score_privacy(location_of(study))
    file = location_of(tmp_path / "score.json")
    with pytest.raises(UsageError, match="does not exist"):
        read_score(file)
    file.put(json.dumps(asdict(score)).encode())
    assert read_score(file) == score
    value = asdict(score)
    value["missed"][0]["at_most"] = 0.001
    for wrong in (json.dumps(value).encode(), b"{}", b"no"):
        file.put(wrong)
        with pytest.raises(UsageError, match="is not a score"):
            read_score(file)


def coco(*annotations: dict[str, Any]) -> dict[str, Any]:
    """As CVAT exports COCO: three images of the sample and a foreign one, renumbered."""
    images = [{"id": n, "file_name": f"x/sa_{n + 11}.jpg", "width": 40, "height": 30} for n in (1, 2, 9)]
    return {"images": [*images, images[0]], "categories": CATEGORIES, "annotations": list(annotations)}


def rectangle(label: str = "face", **value: Any) -> dict[str, Any]:
    box = {"x": 25.0, "y": 10.0, "width": 12.5, "height": 20.0, "rotation": 0, **value}
    sizes = {"original_width": 40, "original_height": 30, "image_rotation": 0}
    return {"id": "r", "type": "rectanglelabels", **sizes, "value": {**box, "rectanglelabels": [label]}}


def task(image: int, *regions: dict[str, Any], cancelled: bool = False) -> dict[str, Any]:
    annotation = {"result": list(regions), "was_cancelled": cancelled, "updated_at": "2026-03-01T11:00:00Z"}
    return {"data": {"image": f"/data/local-files/?d=images/sa_{image}.jpg"}, "annotations": [annotation]}


def test_coco_boxes_cover_every_pixel_that_they_touch_and_stay_inside() -> None:
    marks = read_coco(
        coco(
            {"id": 5, "image_id": 1, "category_id": 1, "bbox": [1.5, 2.0, 3.2, 4.0]},
            {"id": 6, "image_id": 1, "category_id": 2, "bbox": [-3, 20, 10, 50]},
            {"id": 7, "image_id": 9, "category_id": 2, "bbox": [0, 0, 10, 10]},
        ),
        SIZES,
    )
    assert marks.found == {12: [Mark("face", 1, 2, 4, 4), Mark("plate", 0, 20, 7, 10)], 13: []}
    assert (marks.foreign, marks.further, marks.unreadable) == (1, 1, [])


def test_the_marks_of_all_answers_for_an_image_count() -> None:
    """Whoever came last: what one person saw is there."""
    document = coco({"id": 5, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]})
    document["images"][-1] = {**document["images"][0], "id": 7}
    document["annotations"].append({"id": 6, "image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 4]})
    assert [mark.kind for mark in read_coco(document, SIZES).found[12]] == ["face", "plate"]
    with pytest.raises(ValueError, match="a mark is in image '1', which isn't in the file"):
        read_coco(coco({"id": 5, "image_id": "1", "category_id": 1, "bbox": [1, 2, 3, 4]}), SIZES)
    both = task(12, rectangle())
    both["annotations"].append({"result": [], "was_cancelled": False, "updated_at": "2026-03-02T11:00:00Z"})
    marks = read_label_studio([both], SIZES)
    assert ([mark.kind for mark in marks.found[12]], marks.further) == (["face"], 1)


def test_a_box_that_cvat_turned_is_covered() -> None:
    annotation = {"id": 5, "image_id": 1, "category_id": 1, "bbox": [10, 10, 8, 2], "attributes": {"rotation": 90.0}}
    assert read_coco(coco(annotation), SIZES).found[12] == [Mark("face", 13, 7, 2, 8)]


@pytest.mark.parametrize(
    ("annotation", "problem"),
    [
        ({"category_id": 3, "bbox": [1, 1, 5, 5]}, "mark 4: its label is 'dog', expected face, plate, other"),
        ({"category_id": 1, "bbox": [50, 1, 5, 5]}, "is outside the image"),
        ({"category_id": 1, "bbox": [1, float("nan"), 5, 5]}, "ValueError"),
        ({"category_id": 1, "bbox": [1, 1, float("inf"), 5]}, "OverflowError"),
        ({"category_id": 1, "bbox": []}, "ValueError"),
        ({"category_id": 9, "bbox": [1, 1, 5, 5]}, "KeyError"),
    ],
)
def test_what_cannot_be_read_makes_its_image_doubtful(annotation: dict[str, Any], problem: str) -> None:
    marks = read_coco(coco({"id": 4, "image_id": 1, **annotation}), SIZES)
    assert (marks.doubtful, marks.found) == ({12}, {12: [], 13: []})
    assert problem in marks.unreadable[0]
    assert marks.unreadable[0].startswith("sa_12.jpg, mark 4: ")


def test_boxes_of_a_picture_of_another_size_are_not_taken() -> None:
    document = coco({"id": 4, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]})
    document["images"][0] |= {"width": 20, "height": 15}
    (problem,) = read_coco(document, SIZES).unreadable
    assert problem.endswith("drawn in an image of 20 x 15 pixels, but the released one is 40 x 30")


def test_label_studio_has_percent_and_what_was_not_submitted_is_no_answer() -> None:
    tasks = [task(12, rectangle()), task(13), task(1, rectangle(), cancelled=True), {**task(1), "annotations": []}]
    assert read_label_studio(tasks, SIZES).found == {12: [Mark("face", 10, 3, 5, 6)], 13: []}


def test_label_studio_turns_about_the_upper_left_corner() -> None:
    marks = read_label_studio([task(12, rectangle("plate", rotation=90))], SIZES)
    assert marks.found[12] == [Mark("plate", 4, 3, 6, 5)]


def test_label_studios_json_min() -> None:
    flat = {**rectangle()["value"], "original_width": 40, "original_height": 30}
    tasks = [{"image": "sa_12.jpg", "annotation_id": 3, "missed": [flat]}, {"image": "sa_13.jpg", "annotation_id": 4}]
    assert read_label_studio(tasks, SIZES).found == {12: [Mark("face", 10, 3, 5, 6)], 13: []}


def test_a_brush_stroke_is_no_box() -> None:
    marks = read_label_studio([task(12, {"id": "b", "type": "brushlabels", "value": {"rle": [1]}})], SIZES)
    assert marks.doubtful == {12}
    assert "its type is brushlabels, not a rectangle" in marks.unreadable[0]


@pytest.mark.parametrize("text", [b"{}", b"[1]", b"no JSON", b"\xff", b"[" * 9000, b'{"images": [], "categories": 1}'])
def test_another_file_is_refused(text: bytes, tmp_path: Any) -> None:
    file = location_of(tmp_path / "marks.json")
    with pytest.raises(UsageError, match="there is no file"):
        read_marks(file, SIZES)
    file.put(text)
    with pytest.raises(UsageError, match="can't be read as marks"):
        read_marks(file, SIZES)
