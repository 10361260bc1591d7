"""Files of a detector's boxes: what is read, and what is refused by its entry."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.pipeline.engine.evaluate.boxes import BoxesByImage, ImageBoxes, read_boxes

ENTRY: dict[str, Any] = {"image_id": 7, "category_id": 2, "bbox": [1, 2.5, 30, 40], "score": 0.5}


def read(path: Path, content: Any, of_dataset: bool = False) -> BoxesByImage:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_boxes(Location(Storage(), str(path)), of_dataset)


def test_boxes_by_image(tmp_path: Path) -> None:
    other = {**ENTRY, "image_id": "street", "score": 1}
    boxes = read(tmp_path / "boxes.json", [ENTRY, other, {**ENTRY, "bbox": [0, 0, 1, 1], "category_id": 9}])
    assert (boxes.scored, boxes.categories, boxes.facts["boxes"]) == (True, True, 3)
    found = boxes.of("7", "a.jpg")
    assert found.boxes.tolist() == [[1, 2.5, 31, 42.5], [0, 0, 1, 1]]
    assert (found.scores.tolist(), found.categories.tolist()) == ([0.5, 0.5], [2, 9])
    assert boxes.of("street", "b.jpg").scores.tolist() == [1.0]
    assert len(boxes.of("8", "c.jpg").boxes) == 0
    assert boxes.without_categories().of("7", "a.jpg").categories.tolist() == [0, 0]


def test_ids_of_a_dataset_are_those_of_its_file_names(tmp_path: Path) -> None:
    boxes = read(tmp_path / "boxes.json", [ENTRY], of_dataset=True)
    assert len(boxes.of("catalog-name", "sa_7.jpg").boxes) == 1
    assert len(boxes.of("7", "sa_8.jpg").boxes) == 0


def test_the_best_of_each_category_are_kept_in_order() -> None:
    scores = np.array([0.1, 0.9, 0.5, 0.9, 0.2, 0.3])
    categories = np.array([1, 1, 1, 1, 2, 2])
    boxes = ImageBoxes(np.arange(24.0).reshape(6, 4), scores, categories)
    best = boxes.best(2)
    assert (best.scores.tolist(), best.categories.tolist()) == ([0.9, 0.9, 0.2, 0.3], [1, 1, 2, 2])
    assert best.boxes[:, 0].tolist() == [4, 12, 16, 20]
    assert boxes.best(100).scores.tolist() == scores.tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ({"images": []}, "is not a list"),
        ([], "an empty list"),
        ([ENTRY, 5], "entry 2 is 5: expected COCO results"),
        ([{**ENTRY, "image_id": None}], "entry 1: its image_id is None"),
        ([{**ENTRY, "bbox": [1, 2, 3]}], r"its bbox is \[1, 2, 3\]"),
        ([{**ENTRY, "bbox": [1, 2, 3, True]}], "its bbox is"),
        ('[{"image_id": 1, "bbox": [1, 2, NaN, 3]}]', "its bbox is"),
        ([{**ENTRY, "bbox": [1, 2, 0, 5]}], "0 wide and 5 high"),
        ([{**ENTRY, "score": "high"}], "its score is 'high'"),
        ([{**ENTRY, "category_id": 1.5}], "its category_id is 1.5"),
        ([{**ENTRY, "bbox": [1, 2, 10**400, 3]}], "its bbox is"),
        ([{**ENTRY, "score": 10**400}], "its score is 1000"),
        ([{**ENTRY, "category_id": 2**70}], "its category_id is 1180"),
        ([ENTRY, {**ENTRY, "score": None}], "entry 2 has no score, but others do"),
        ([{**ENTRY, "category_id": None}, ENTRY], "entry 1 has no category_id, but others do"),
    ],
)
def test_another_file_is_refused_by_its_entry(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(tmp_path / "boxes.json", content)
    with pytest.raises(UsageError, match="no such file"):
        read_boxes(Location(Storage(), str(tmp_path / "missing.json")), False)
