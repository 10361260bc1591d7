"""The benchmark counts marks that a build would redact or miss, hard ones, and false alarms."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.privacy.pictures import Mark, Picture
from benchmarks.privacy.recall import counted, redacted
from segmint.infra.arrays import Box
from segmint.model.detectors.detection import Detection
from segmint.operators.prepare.deidentify import DeidentifyConfig, build_detectors
from segmint.operators.prepare.ingest import IngestConfig
from segmint.operators.prepare.prepare import PrepareConfig
from segmint.operators.prepare.release import ReleaseConfig
from tests.support.onnx_detectors import fragile, listed
from tests.support.torchscript import spot

GRAY = np.full((192, 320, 3), 90, np.uint8)


def mark(x0: float, y0: float, x1: float, y1: float, *, hard: bool = False) -> Mark:
    return Mark("face", np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float), hard)


def files(path: Path) -> PrepareConfig:
    parts = {"faces": {"detector": str(path)}, "plates": {"detector": "none"}}
    return PrepareConfig(IngestConfig(), DeidentifyConfig.model_validate(parts), ReleaseConfig(short_side=96), None)


def test_detections_are_in_the_pictures_pixels(tmp_path: Path) -> None:
    """The build searches half of the size."""
    config = files(listed(tmp_path / "faces.onnx"))
    detectors = build_detectors(config.deidentify, threads=1)
    picture = Picture("spot", "0", spot(GRAY, 128, 64, 64), (mark(128, 64, 192, 128), mark(0, 0, 40, 40)))
    found, refused = redacted(picture, config, detectors)
    assert refused is None
    assert (128, 64, 192, 128) in [each.box for each in found]
    (row,) = counted(picture, detectors, found, refused)
    assert (row["picture"], row["change"], row["detector"], row["kind"]) == ("spot", "0", "faces.onnx", "face")
    assert (row["found"], row["missed"]) == ([64], [40])


def test_a_refused_picture_says_so(tmp_path: Path) -> None:
    config = files(fragile(tmp_path / "faces.onnx"))
    detectors = build_detectors(config.deidentify, threads=1)
    picture = Picture("spot", "0", spot(GRAY, 128, 64, 64), ())
    assert redacted(picture, config, detectors) == ((), "detector_failed")


@pytest.mark.parametrize(
    ("boxes", "found", "missed", "false"),
    [
        ([], [], [50], 0),
        ([(100, 100, 150, 150)], [50], [], 0),
        ([(100, 100, 150, 117)], [50], [], 0),
        ([(100, 100, 150, 114)], [], [50], 1),
        ([(100, 100, 150, 150), (102, 102, 152, 152)], [50], [], 0),
        ([(0, 0, 40, 40), (60, 0, 70, 10)], [], [50], 0),
        ([(200, 100, 240, 140), (250, 100, 280, 140)], [], [50], 2),
    ],
    ids=["nothing", "exact", "IoU 0.34", "IoU 0.28", "twice", "hard and small ones", "elsewhere"],
)
def test_marks_are_matched_by_their_boxes(boxes: list[Box], found: list[int], missed: list[int], false: int) -> None:
    class Finder:
        kind, name, score = "face", "finder", 0.5

    marks = (mark(100, 100, 150, 150), mark(0, 0, 40, 40, hard=True), mark(60, 0, 70, 10))
    detections = [Detection("face", 0.9, box, None, "finder") for box in boxes]
    other = Detection("plate", 0.9, (300, 300, 340, 320), None, "other")
    (row,) = counted(Picture("x", "0", GRAY, marks), [Finder()], [*detections, other], None)  # type: ignore[list-item]
    assert (row["found"], row["missed"], row["false"]) == (found, missed, false)
