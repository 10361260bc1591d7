"""Label Studio's tasks: its SDK takes them, and reads every mask back as it is in the dataset."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_studio_sdk.label_interface import LabelInterface

from segmint.catalogs.dataset.digest import current_digest
from segmint.catalogs.dataset.reader import Dataset
from segmint.operators.annotations.label_studio import read_tasks
from segmint.pipeline.export.categories import Categories
from segmint.pipeline.export.export import ExportOptions, export_dataset
from segmint.pipeline.export.formats import Format
from segmint.pipeline.export.label_studio import labeling
from tests.support.committed import mask_row, masks, row_of, write_dataset
from tests.support.label_studio import answered, convert, decode
from tests.support.locations import location_of


@pytest.fixture(scope="module")
def tasks(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The tasks of the small real dataset."""
    output = tmp_path_factory.mktemp("label-studio") / "out"
    export_dataset(location_of(small_dataset), ExportOptions(Format.LABEL_STUDIO), location_of(output))
    assert LabelInterface((output / "label_config.xml").read_text()).get_control("brush").tag == "BrushLabels"
    return json.loads((output / "tasks.json").read_text())


def test_the_sdk_finds_nothing_wrong_with_them(tasks: list[dict[str, Any]]) -> None:
    interface = LabelInterface(labeling(Categories()))
    assert len(tasks) == 6
    for task in tasks:
        assert interface.validate_prediction(task["predictions"][0])


def test_a_task_says_which_dataset_it_is_of(tasks: list[dict[str, Any]], small_dataset: Path) -> None:
    digest = f"sha256:{current_digest(location_of(small_dataset))}"
    assert [task["meta"] for task in tasks] == [{"dataset_digest": digest, "dataset_version": None}] * 6


def test_every_mask_is_read_back_equal(tasks: list[dict[str, Any]], small_dataset: Path) -> None:
    for task, sample in zip(tasks, Dataset.open(location_of(small_dataset)), strict=True):
        assert task["data"]["segmint_id"] == sample.id
        regions = task["predictions"][0]["result"]
        assert [region["id"] for region in regions] == [str(mask.id) for mask in sample.masks]
        for region, mask in zip(regions, sample.masks, strict=True):
            np.testing.assert_array_equal(decode(region), mask.mask)


def test_its_converter_gives_every_mask_equal(tasks: list[dict[str, Any]], small_dataset: Path, tmp_path: Path) -> None:
    folder = convert(answered(tasks), tmp_path / "converted", "BRUSH_TO_NUMPY")
    for sample in Dataset.open(location_of(small_dataset)):
        paths = sorted(folder.glob(f"task-{30 + sample.id}-*"), key=lambda path: int(re.findall(r"\d+", path.stem)[-1]))
        for path, mask in zip(paths, sample.masks, strict=True):
            np.testing.assert_array_equal(np.load(path) == 255, mask.mask)


def test_pictures_are_found_below_the_served_folder(tasks: list[dict[str, Any]]) -> None:
    assert tasks[0]["data"]["image"] == "/data/local-files/?d=images/sa_1.jpg"
    assert tasks[0]["data"]["license"] == "CC0-1.0"


def test_an_image_with_many_masks_is_split_and_read_back_as_one(tmp_path: Path) -> None:
    def many(ordinal: int, refused: bool) -> dict[str, Any]:
        row = row_of(ordinal, refused)
        if ordinal == 1:
            row["masks"] = [mask_row(np.roll(masks(0)[1], n, axis=1)) for n in range(101)]
        return row

    write_dataset(location_of(tmp_path / "many"), shards=1, make_row=many)
    options = ExportOptions(Format.LABEL_STUDIO)
    done = export_dataset(location_of(tmp_path / "many"), options, location_of(tmp_path / "out"))
    assert [line for line in done.lines() if line.startswith("1 image with over 100 masks: split into 2 tasks")]
    written = json.loads((tmp_path / "out/tasks.json").read_text())
    assert [len(task["predictions"][0]["result"]) for task in written] == [2, 100, 1]
    assert [task.get("id") for task in written] == [1, None, None]
    assert [task["data"].get("segmint_part") for task in written] == [None, "1/2", "2/2"]
    # As Label Studio gives them back, the last part first.
    answers = [{**task, "annotations": [{"result": task["predictions"][0]["result"]}]} for task in reversed(written)]
    small, whole = read_tasks(answers)
    for answer, sample in zip((small, whole), Dataset.open(location_of(tmp_path / "many")), strict=True):
        assert answer.image.unreadable == []
        assert [mask.id for mask in answer.image.masks] == [mask.id for mask in sample.masks]
        for read, mask in zip(answer.image.masks, sample.masks, strict=True):
            np.testing.assert_array_equal(read.pixels(), mask.mask)
