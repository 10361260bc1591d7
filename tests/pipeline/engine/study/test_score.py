"""A study's round trip: masks eroded by known amounts give the known answer, whatever tool they came through."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from segmint.infra.errors import UsageError
from segmint.pipeline.engine.study.sample import sample_study
from segmint.pipeline.engine.study.score import StudyScore, score_study
from tests.support.committed import write_dataset
from tests.support.label_studio import answered, convert, decode, painted
from tests.support.locations import location_of

Work = Callable[[int, np.ndarray], np.ndarray | None]
"""What people make of a mask of an image, (height, width) bool: another one, or None."""

SQUARES = {1: (1, 0), 2: (2, 0), 4: (2, 2), 5: (4, 4), 7: (0, 0), 8: None}
"""What is taken off each image's square of 20 x 30 pixels, in rows and columns; None: all of it."""

IOUS = {1: 19 * 30 / 600, 2: 18 * 30 / 600, 4: 18 * 28 / 600, 5: 16 * 26 / 600, 7: 1.0}
"""What that makes of them: .95, .90, .84, .693, 1."""


def erode(image: int, mask: np.ndarray) -> np.ndarray | None:
    """Takes off of squares what `SQUARES` says, and leaves disks as they are."""
    if mask.sum() != 600:
        return mask
    taken = SQUARES[image]
    if taken is None:
        return None
    rows, columns = taken
    smaller = np.zeros_like(mask)
    smaller[10 + rows // 2 : 30 - (rows - rows // 2), 20 + columns // 2 : 50 - columns // 2] = True
    return smaller


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images, each with a square and a disk."""
    folder = tmp_path_factory.mktemp("study")
    write_dataset(location_of(folder / "dataset"), shards=3)
    sample_study(location_of(folder / "dataset"), 500, 0, location_of(folder / "study"))
    return folder / "study"


def score(study: Path, corrected: object) -> StudyScore:
    return score_study(location_of(study), location_of(corrected))


def coco_work(study: Path, file: Path, work: Work, renumber: bool = False) -> Path:
    """Corrects the study's COCO file; with `renumber` as a tool does that counts images and annotations anew."""
    document = json.loads((study / "instances.json").read_text())
    kept = []
    for annotation in document["annotations"]:
        mask = work(annotation["image_id"], coco.decode(annotation["segmentation"]).astype(bool))
        if mask is not None:
            rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
            annotation["segmentation"] = {**rle, "counts": rle["counts"].decode()}
            kept.append(annotation)
    if renumber:
        numbers = {image["id"]: index for index, image in enumerate(document["images"])}
        document["images"] = [{**image, "id": numbers[image["id"]]} for image in document["images"]]
        kept = [{**each, "id": 9_999 + n, "image_id": numbers[each["image_id"]]} for n, each in enumerate(kept[::-1])]
    file.write_text(json.dumps({**document, "annotations": kept}))
    return file


def label_studio_work(study: Path, work: Work) -> list[dict[str, Any]]:
    """Corrects the study's tasks as people do in Label Studio."""

    def edit(image: int, region: dict[str, Any]) -> dict[str, Any] | None:
        mask = work(image, decode(region))
        return None if mask is None else painted(region, mask)

    return answered(json.loads((study / "tasks.json").read_text()), edit)


def check(result: StudyScore, by_id: bool) -> None:
    """The known answer: 12 masks, of which one was deleted."""
    assert (result.images, result.answered, result.drawn) == (6, 6, 12)
    assert (result.by_id, result.by_iou) == ((11, 0) if by_id else (0, 11))
    assert (result.deleted, result.added, result.unread, result.unanswered_masks) == (1, 0, 0, 0)
    assert (result.unreadable, result.foreign, result.superseded) == ([], 0, 0)
    assert result.mean_iou == pytest.approx((6 + sum(IOUS.values())) / 11)
    high, low = result.shares
    assert (high.threshold, high.over, high.pairs, high.paper) == (0.90, 8, 11, 0.94)
    assert (low.threshold, low.over, low.pairs, low.paper) == (0.75, 10, 11, 0.97)
    assert (high.share, high.of_all) == (8 / 11, 8 / 12)
    for share in result.shares:
        assert (share.images, share.interval) == (6, None)
    assert result.interval is None


def test_through_coco(study: Path, tmp_path: Path) -> None:
    check(score(study, coco_work(study, tmp_path / "corrected.json", erode)), by_id=True)


def test_through_coco_numbered_anew(study: Path, tmp_path: Path) -> None:
    file = coco_work(study, tmp_path / "corrected.json", erode, renumber=True)
    assert any(each["id"] == 10_000 for each in json.loads(file.read_text())["annotations"])  # a mask of image 1
    check(score(study, file), by_id=False)


def test_through_label_studio(study: Path, tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text(json.dumps(label_studio_work(study, erode)))
    check(score(study, tmp_path / "export.json"), by_id=True)


@pytest.mark.parametrize(
    ("format", "file", "by_id"),
    [("JSON", "result.json", True), ("JSON_MIN", "result.json", False), ("BRUSH_TO_COCO", "result_coco.json", False)],
)
def test_through_label_studios_converter(study: Path, tmp_path: Path, format: str, file: str, by_id: bool) -> None:
    folder = convert(label_studio_work(study, erode), tmp_path / "converted", format)
    result = score(study, folder / file)
    check(result, by_id)
    assert result.polygons == (11 if format == "BRUSH_TO_COCO" else 0)
    assert ("came back as polygons" in "\n".join(result.lines())) == (format == "BRUSH_TO_COCO")


def test_masks_of_real_photographs_come_back_as_they_were(small_dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    sample_study(location_of(small_dataset), 4, 0, location_of(folder))
    (tmp_path / "export.json").write_text(json.dumps(label_studio_work(folder, lambda image, mask: mask)))
    result = score(folder, tmp_path / "export.json")
    assert result.by_id == result.drawn > 4
    assert result.mean_iou == 1.0
    minimal = convert(label_studio_work(folder, lambda image, mask: mask), tmp_path / "minimal", "JSON_MIN")
    result = score(folder, minimal / "result.json")
    assert (result.by_iou, result.mean_iou) == (result.drawn, 1.0)


def test_nothing_is_dropped_in_silence(study: Path, tmp_path: Path) -> None:
    tasks = label_studio_work(study, erode)
    del tasks[0]  # image 1
    tasks[0]["annotations"][0]["was_cancelled"] = True  # image 2
    square, disk = tasks[1]["annotations"][0]["result"]  # image 4
    new = {**disk, "id": "x7Kd", "value": {**disk["value"], "rle": painted(disk, ~decode(disk))["value"]["rle"]}}
    tasks[1]["annotations"][0]["result"] = [{**square, "value": {"points": []}, "type": "polygonlabels"}, disk, new]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    result = score(study, tmp_path / "export.json")
    assert (result.answered, result.unanswered_masks, result.unread, result.added, result.deleted) == (4, 4, 1, 1, 1)
    assert result.drawn == result.by_id + result.by_iou + result.deleted + result.unread + result.unanswered_masks
    (problem,) = result.unreadable
    assert problem.startswith("sa_4.jpg, mask 40000: none of its polygons is a list x, y, x, y, … of at least three")
    text = "\n".join(result.lines())
    assert "4 of 6 images answered; of 12 masks drawn 6 are paired (6 by id, 0 by IoU), 1 deleted, 1 unreadable" in text
    assert "added: 1 mask;" in text
    assert "not checked: 21 more" in replace(result, unreadable=["x"] * 30).lines()


def test_no_answer_has_no_score(study: Path, tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text("[]")
    result = score(study, tmp_path / "export.json")
    assert (result.answered, result.mean_iou, result.shares, result.unanswered_masks) == (0, None, [], 12)
    assert result.version is not None
    assert result.lines()[-2:] == ["no masks came back, so there is nothing to score", result.version.line()]


@pytest.mark.parametrize("text", ["", "hello", "[1]", '[{"id": 1}', "{}", '{"images": [], "annotations": 3}', "7"])
def test_a_file_of_something_else_is_a_plain_error(study: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "corrected.json").write_text(text)
    with pytest.raises(UsageError, match="can't be read as corrected masks"):
        score(study, tmp_path / "corrected.json")


def test_what_is_missing_is_named(study: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a study"):
        score(tmp_path, tmp_path / "corrected.json")
    with pytest.raises(UsageError, match=r"corrected\.json doesn't exist\. Pass the corrected masks"):
        score_study(location_of(study), None)


def test_drawn_masks_that_were_changed_are_refused(study: Path, tmp_path: Path) -> None:
    for name in ("manifest.json", "instances.json"):
        (tmp_path / name).write_bytes((study / name).read_bytes())
    coco_work(study, tmp_path / "instances.json", lambda image, mask: mask[::-1])
    with pytest.raises(UsageError, match="has changed since it was drawn"):
        score(tmp_path, study / "instances.json")
    document = json.loads((study / "instances.json").read_text())
    document["annotations"].pop()
    (tmp_path / "instances.json").write_text(json.dumps(document))
    with pytest.raises(UsageError, match="has changed since it was drawn"):
        score(tmp_path, study / "instances.json")
