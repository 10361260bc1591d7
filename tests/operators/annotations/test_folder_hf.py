"""Hugging Face exports: their masks are read back, and other files and damaged masks are told."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segmint.catalogs.dataset.reader import Dataset
from segmint.infra.errors import UsageError
from segmint.operators.annotations.folder import read_export
from segmint.pipeline.export.export import ExportOptions, export_dataset
from segmint.pipeline.export.formats import Format
from tests.support.committed import write_dataset
from tests.support.locations import location_of
from tests.support.mask_labels import labeled_row


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """An export of a dataset with labels."""
    write_dataset(location_of(tmp_path / "dataset"), shards=2, make_row=labeled_row)
    options = ExportOptions(Format.HF, with_images=False)
    export_dataset(location_of(tmp_path / "dataset"), options, location_of(tmp_path / "hf"))
    return tmp_path / "hf"


def changed(file: Path, **changes: Any) -> None:
    """Change the first mask of an export's first image."""
    table = pq.read_table(file)
    rows = table.to_pylist()
    rows[0]["objects"][0] |= changes
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)


def test_masks_ids_and_labels_are_read_back(exported: Path) -> None:
    hashed: list[bytes] = []
    export = read_export(location_of(exported), hashed.append)
    for image, sample in zip(export, Dataset.open(location_of(exported.parent / "dataset")), strict=True):
        assert (image.name, image.size, image.unreadable) == (f"sa_{sample.id}.jpg", (60, 80), [])
        assert [(mask.id, mask.label) for mask in image.masks] == [(mask.id, mask.label) for mask in sample.masks]
        for mask, expected in zip(image.masks, sample.masks, strict=True):
            np.testing.assert_array_equal(mask.pixels(), expected.mask)
    assert [line.split(b" ")[0] for line in hashed] == [b"data/train-00000.parquet"]
    assert next(read_export(location_of(exported), hashed.append, by_image_id=True)).name == "image-0"


@pytest.mark.parametrize("changes", [{"counts": "1000000"}, {"size": [70, 80]}, {"size": None}, {"counts": None}])
def test_a_damaged_mask_costs_no_other(exported: Path, changes: dict[str, Any]) -> None:
    changed(exported / "data/train-00000.parquet", **changes)
    image = next(read_export(location_of(exported), hashlib.sha256().update))
    assert (len(image.unreadable), [mask.id for mask in image.masks]) == (1, [10_001])


@pytest.mark.parametrize("changes", [{"bbox": [40.0, 40.0, 9.0, 9.0]}, {"area": 4799}])
def test_masks_that_contradict_their_boxes_or_areas_are_left_out(exported: Path, changes: dict[str, Any]) -> None:
    changed(exported / "data/train-00000.parquet", **changes)
    image = next(read_export(location_of(exported), hashlib.sha256().update))
    assert (len(image.unreadable), [mask.id for mask in image.masks]) == (1, [10_001])


@pytest.mark.parametrize("columns", [{"id": [1]}, {"id": [1], "objects": ["x"], "width": [1], "height": [2]}, None])
def test_another_file_is_refused_by_name(tmp_path: Path, columns: dict[str, Any] | None) -> None:
    file = tmp_path / "data" / "train-00000.parquet"
    file.parent.mkdir()
    pq.write_table(pa.table(columns or {"id": [1]}), file)
    if columns is None:  # the file ends in its footer, that footer's length, and a mark
        data = file.read_bytes()
        length = int.from_bytes(data[-8:-4], "little")
        file.write_bytes(data[: -8 - length] + b"\xff" * length + data[-8:])
    with pytest.raises(UsageError, match=r"train-00000\.parquet can't be read .*: expected a file of"):
        list(read_export(location_of(tmp_path), hashlib.sha256().update))
