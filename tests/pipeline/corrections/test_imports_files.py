"""The format of a file or folder with masks, as its content decides it."""

import json
from pathlib import Path
from typing import Any

import pytest

from segmint.infra.errors import UsageError
from segmint.pipeline.corrections.imports import ImportFormat, detect_format
from tests.support.committed import write_dataset
from tests.support.imported import FIRST, coco_of
from tests.support.locations import location_of

COCO = coco_of({1: [(FIRST, None)]})
TASK = {"id": 3, "data": {"image": "sa_1.jpg", "image_id": "x"}, "annotations": [{"result": []}]}
RECORD = {"image": "sa_1.jpg", "image_id": "x", "label": [{"rle": [1, 2]}], "id": 3, "annotation_id": 4}
SA1B = {"image": {"image_id": 1}, "annotations": [{"id": 10_000, "bbox": [1, 2, 3, 4]}]}


@pytest.mark.parametrize(
    ("document", "format"),
    [
        (COCO, ImportFormat.COCO),
        (dict(reversed(COCO.items())), ImportFormat.COCO),
        ({"annotations": COCO["annotations"], "images": COCO["images"]}, ImportFormat.COCO),
        ({"info": {"image": "no key of the document"}, "annotations": [], "images": []}, ImportFormat.COCO),
        ([TASK, TASK], ImportFormat.LABEL_STUDIO),
        ([RECORD], ImportFormat.LABEL_STUDIO),
    ],
)
def test_a_file_is_known_by_its_keys(document: Any, format: ImportFormat, tmp_path: Path) -> None:
    (tmp_path / "masks").write_text(f"\n {json.dumps(document)}")
    assert detect_format(location_of(tmp_path / "masks")) is format


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (json.dumps(SA1B), "pass its folder"),
        (json.dumps(dict(reversed(SA1B.items()))), "pass its folder"),
        ('{"version": "5.5.0", "shapes": []}', "pass its folder"),
        (
            json.dumps([{"image_id": 1, "category_id": 1}, TASK]),
            "--format, one of coco, label-studio, hf, yolo, folder, dataset",
        ),
        ("[]", "--format"),
        ("{}", "--format"),
        ('"masks"', "--format"),
        ("", "--format"),
        ("\x00\xff no JSON", "--format"),
        ('{"annotations": [', "--format"),
    ],
)
def test_a_file_that_decides_nothing_is_refused(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "masks.json").write_text(text)
    with pytest.raises(UsageError, match=r"(?s)is neither COCO's nor Label Studio's JSON.*\. ") as refused:
        detect_format(location_of(tmp_path / "masks.json"))
    assert told in str(refused.value)


def test_folders_and_datasets(tmp_path: Path) -> None:
    write_dataset(location_of(tmp_path / "dataset"), 1)
    assert detect_format(location_of(tmp_path / "dataset")) is ImportFormat.DATASET
    (tmp_path / "masks" / "below").mkdir(parents=True)
    with pytest.raises(UsageError, match="does not exist: expected a file or folder with masks, or another dataset"):
        detect_format(location_of(tmp_path / "masks"))
    (tmp_path / "masks" / "below" / "sa_1.json").write_text(json.dumps(SA1B))
    assert detect_format(location_of(tmp_path / "masks")) is ImportFormat.FOLDER
    (tmp_path / "masks" / "labels").mkdir()
    (tmp_path / "masks" / "labels" / "sa_1.txt").write_text("")
    assert detect_format(location_of(tmp_path / "masks")) is ImportFormat.FOLDER
    (tmp_path / "masks" / "data.yaml").write_text("names: [cup]")
    assert detect_format(location_of(tmp_path / "masks")) is ImportFormat.YOLO
