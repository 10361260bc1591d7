"""YOLO's labels, painted as Ultralytics paints them. `make test-interop` opens them in Ultralytics itself."""

import csv
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from segmint.catalogs.dataset.reader import Dataset
from segmint.catalogs.dataset.versions import VersionName
from segmint.pipeline.export.categories import UNLABELED
from segmint.pipeline.export.export import ExportOptions, export_dataset
from segmint.pipeline.export.formats import Format
from segmint.pipeline.export.per_image import YoloWriter, label_line, pixel_path
from tests.support.committed import mask_row, row_of, write_dataset
from tests.support.locations import location_of


def painted(line: str, shape: tuple[int, int]) -> np.ndarray:
    """The mask of a label: numbers as float32, multiplied, cut off to whole pixels, filled."""
    name, *numbers = line.split()
    points = np.array(numbers, np.float32).reshape(-1, 2) * np.array(shape[::-1], np.float32)
    canvas = np.zeros(shape, np.uint8)
    cv2.fillPoly(canvas, [points.astype(np.int32)], (1,))
    assert name == "0"
    return canvas > 0


def export(dataset: Path, output: Path) -> tuple[list[dict[str, str]], Any]:
    """The list of what was left out, and the answer."""
    done = export_dataset(location_of(dataset), ExportOptions(Format.YOLO), location_of(output))
    with (output / "left_out.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file)), done


def test_every_mask_of_real_photographs_is_nearly_equal(small_dataset: Path, tmp_path: Path) -> None:
    skipped, _ = export(small_dataset, tmp_path / "out")
    gone = {int(row["mask"]) for row in skipped}
    compared = 0
    for sample in Dataset.open(location_of(small_dataset)):
        lines = (tmp_path / f"out/labels/sa_{sample.id}.txt").read_text().splitlines()
        kept = [mask for mask in sample.masks if mask.id not in gone]
        for line, mask in zip(lines, kept, strict=True):
            got = painted(line, mask.size)
            assert (got & mask.mask).sum() >= 0.99 * (got | mask.mask).sum()
            compared += 1
    assert compared > 6
    assert len(gone) < compared / 4


def test_what_no_polygon_is_like_is_in_a_list(tmp_path: Path) -> None:
    ring = np.hypot(*np.mgrid[-30:30, -40:40]) < 20
    ring &= np.hypot(*np.mgrid[-30:30, -40:40]) > 9
    pixel, line, apart = (np.zeros((60, 80), bool) for _ in range(3))
    pixel[59, 79] = line[20, 4:60] = apart[:6, :6] = apart[50:56, 70:76] = True

    def hard(ordinal: int, refused: bool) -> dict[str, Any]:
        row = row_of(ordinal, refused)
        if not refused:
            row["masks"] = [mask_row(mask) for mask in (pixel, ring, line, apart)] if ordinal == 0 else []
        return row

    write_dataset(location_of(tmp_path / "hard"), shards=1, make_row=hard)
    skipped, done = export(tmp_path / "hard", tmp_path / "out")
    assert [(row["image"], row["mask"], row["area"], row["reason"]) for row in skipped] == [
        ("sa_1.jpg", "10000", "1", "too small or too thin for a polygon"),
        ("sa_1.jpg", "10002", "56", "too small or too thin for a polygon"),
        ("sa_1.jpg", "10003", "72", "its parts are too far apart for one polygon: IoU 0.500"),
    ]
    assert "3 masks without a label, because no polygon matches them: left_out.csv" in done.lines()
    (line_of_ring,) = (tmp_path / "out/labels/sa_1.txt").read_text().splitlines()
    np.testing.assert_array_equal(painted(line_of_ring, (60, 80)), ring)
    assert (tmp_path / "out/labels/sa_2.txt").read_bytes() == b""


def test_points_are_found_again_in_images_of_any_size() -> None:
    y, x = np.mgrid[:61, :83]
    mask = (np.hypot(y - 30, x - 41) < 25) & (np.hypot(y - 30, x - 41) > 11)
    np.testing.assert_array_equal(painted(label_line(pixel_path(mask), mask.shape), mask.shape), mask)


def test_settings_and_credits(tmp_path: Path) -> None:
    write_dataset(location_of(tmp_path / "small"), shards=1)
    export(tmp_path / "small", tmp_path / "out")
    settings = yaml.safe_load((tmp_path / "out/data.yaml").read_text(encoding="utf-8"))
    assert (settings["train"], settings["val"], settings["names"]) == ("images", "images", {0: "object"})
    assert settings["segmint"]["dataset_digest"].startswith("sha256:")
    with (tmp_path / "out/attributions.csv").open(encoding="utf-8") as file:
        assert [(row["image"], row["attribution"]) for row in csv.DictReader(file)] == [
            ("sa_1.jpg", "Zoë"),
            ("sa_2.jpg", "Zoë"),
        ]


def test_marks_that_turn_text_are_escaped(tmp_path: Path) -> None:
    manifest = write_dataset(location_of(tmp_path / "small"), shards=1)
    named = manifest.model_copy(update={"name": "caf\u00e9\u202egpj"})
    text = YoloWriter(tmp_path, named, VersionName("0" * 64, None), UNLABELED).finish()["data.yaml"].read_text("utf-8")
    assert "\u202e" not in text
    assert yaml.safe_load(text)["segmint"]["name"] == named.name
