"""FiftyOne's folder: every mask stands where FiftyOne paints it. `make test-interop` opens it in FiftyOne itself."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from segmint.catalogs.dataset.reader import Dataset
from segmint.pipeline.export.export import ExportOptions, export_dataset
from segmint.pipeline.export.formats import Format
from segmint.pipeline.export.hf import relative_box
from tests.support.committed import write_dataset
from tests.support.locations import location_of


def painted(folder: Path, detection: dict, width: int, height: int) -> np.ndarray:
    """The mask of a detection as FiftyOne 1.22 paints it: corners are cut off to whole pixels."""
    x, y, w, h = detection["bounding_box"]
    left, top, right, bottom = int(width * x), int(height * y), int(width * min(x + w, 1)), int(height * min(y + h, 1))
    mask = np.zeros((height, width), bool)
    patch = np.asarray(Image.open(folder / detection["mask_path"]))
    assert patch.shape == (bottom - top, right - left)
    mask[top:bottom, left:right] = patch > 0
    return mask


def test_every_mask_is_painted_equal(small_dataset: Path, tmp_path: Path) -> None:
    export_dataset(location_of(small_dataset), ExportOptions(Format.FIFTYONE), location_of(tmp_path / "out"))
    written = json.loads((tmp_path / "out/samples.json").read_text(encoding="utf-8"))["samples"]
    for value, sample in zip(written, Dataset.open(location_of(small_dataset)), strict=True):
        assert value["segmint_id"] == sample.id
        assert (tmp_path / "out" / value["filepath"]).read_bytes() == sample.jpeg
        assert value["license"] == sample.row["license"]
        height, width = sample.image.shape[:2]
        assert (value["metadata"]["height"], value["metadata"]["width"]) == (height, width)
        for detection, mask in zip(value["masks"]["detections"], sample.masks, strict=True):
            assert (detection["segmint_id"], detection["confidence"]) == (mask.id, mask.predicted_iou)
            np.testing.assert_array_equal(painted(tmp_path / "out", detection, width, height), mask.mask)


def test_every_field_is_in_the_schema_and_the_bytes_are_the_same_again(tmp_path: Path) -> None:
    write_dataset(location_of(tmp_path / "small"), shards=1)
    for name in ("one", "two"):
        export_dataset(location_of(tmp_path / "small"), ExportOptions(Format.FIFTYONE), location_of(tmp_path / name))
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(files) == 3 + 2 + 4
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    metadata = json.loads((tmp_path / "one/metadata.json").read_text())
    sample = json.loads((tmp_path / "one/samples.json").read_text())["samples"][0]
    assert set(sample) <= {field["db_field"] for field in metadata["sample_fields"]}
    assert sample["attribution"] == "Zoë"
    detections = metadata["sample_fields"][-1]["fields"][0]
    assert set(sample["masks"]["detections"][0]) - {"_cls"} <= {field["db_field"] for field in detections["fields"]}
    assert metadata["info"]["dataset_digest"].startswith("sha256:")


def test_boxes_are_the_same_pixels_after_they_were_multiplied_and_cut_off() -> None:
    assert int(49 * (1 / 49)) == 0  # what happens without rounding
    for side in range(1, 120):
        for start in range(side):
            for length in {1, (side - start + 1) // 2, side - start}:
                x, y, w, h = relative_box((start, start, length, length), side, side)
                assert (x, w) == (y, h)
                assert int(side * x) == start
                assert int(side * min(x + w, 1)) == start + length
