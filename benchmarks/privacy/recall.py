"""Recall and false alarms of the face and plate detectors, compared with faces and plates that were marked by eye.

    python benchmarks/privacy/recall.py [--photos FOLDER] [--faces NAME ...] [--plates NAME ...] [--only PICTURE ...]

The pictures are the photographs of a folder with a `truth.json` and some of scikit-image's pictures, each at six
angles, and 40 composites made from them. `prepare_image` runs on each picture as in a build with default settings, and
the benchmark compares what it redacts with the marks. A detection matches a mark if their boxes have an IoU of at least
0.3. Hard marks, and marks smaller than 20 pixels, count neither as found nor as missed, and a detection that matches
one isn't a false alarm.

`--faces` and `--plates` list bundled detectors and files, all of which are measured. The result is written to
`benchmarks/results/privacy.json`. The last lines of the output are the entries of `RECALL` in
`operators/prepare/deidentify.py`. With `--drawn FOLDER`, each picture is also saved with its marks and detections.
"""

import argparse
import io
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.measuring import RESULTS, write_result  # noqa: E402
from benchmarks.privacy.pictures import SMALLEST, Mark, Picture, composites, photographs, turned  # noqa: E402
from benchmarks.privacy.tables import measured  # noqa: E402
from segmint.catalogs.findings import RejectedError  # noqa: E402
from segmint.model.detectors.detection import Detection, Detector, iou  # noqa: E402
from segmint.operators.prepare import deidentify, prepare  # noqa: E402
from segmint.operators.prepare.deidentify import NO_DETECTOR, DeidentifyConfig, build_detectors  # noqa: E402
from segmint.operators.prepare.ingest import IngestConfig  # noqa: E402
from segmint.operators.prepare.prepare import PrepareConfig  # noqa: E402
from segmint.operators.prepare.release import ReleaseConfig  # noqa: E402
from segmint.operators.segment.mask_config import MasksConfig  # noqa: E402

SAME = 0.3
"""Minimum IoU between a detection and a mark for the detection to count as a match."""


def main() -> None:
    """Measure, print a line per picture, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="a folder of photographs with a truth.json")
    parser.add_argument("--faces", nargs="*", default=["mtcnn"], help="names or files of face detectors")
    parser.add_argument("--plates", nargs="*", default=["clp"], help="names or files of plate detectors")
    parser.add_argument("--only", nargs="+", help="names of pictures without suffix, or of composites")
    parser.add_argument("--drawn", type=Path, help="an existing folder for pictures with marks and detections")
    parser.add_argument("--output", type=Path, default=RESULTS / "privacy.json", help="the result's file")
    arguments = parser.parse_args()

    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    machine = describe_machine(1, "fp32", packages=("onnxruntime", "opencv-python-headless", "facenet-pytorch"))
    sources = list(photographs(arguments.photos))
    rows = []
    for faces, plates in itertools.zip_longest(arguments.faces, arguments.plates, fillvalue=NO_DETECTOR):
        parts = {"faces": {"detector": faces}, "plates": {"detector": plates}}
        config = settings(DeidentifyConfig.model_validate(parts))
        detectors = build_detectors(config.deidentify, threads=1)
        for picture in (*turned(sources), *composites(sources)):
            if arguments.only and picture.name not in arguments.only:
                continue
            found, refused = redacted(picture, config, detectors)
            for row in counted(picture, detectors, found, refused):
                rows.append(row)
                print(row, flush=True)
            if arguments.drawn:
                draw(picture, found, arguments.drawn)
    parts = {"rule": deidentify.RULE, "smallest": SMALLEST, "iou": SAME, "rows": rows}
    write_result(arguments.output, "privacy", machine, parts)
    for name, kind in dict.fromkeys((row["detector"], f"{row['kind']}s") for row in rows):
        print(f'"{name}": {measured(parts, name, kind)}')  # entry for operators/prepare/deidentify.py


def settings(config: DeidentifyConfig) -> PrepareConfig:
    """Return a build's default settings with these detectors."""
    return PrepareConfig(IngestConfig(), config, ReleaseConfig(), MasksConfig().original_crops)


def redacted(
    picture: Picture, config: PrepareConfig, detectors: Sequence[Detector]
) -> tuple[tuple[Detection, ...], str | None]:
    """Run `prepare_image` on a picture. Return what it redacts, in the picture's pixels.

    If it refuses the picture, the reason is returned as well.
    """
    height, width = picture.pixels.shape[:2]
    found: dict[Detection, None] = {}
    outline = deidentify.outline

    def recorded(detection: Detection, shape: tuple[int, int], **options: Any) -> Any:
        found[detection.mapped(width / shape[1], height / shape[0])] = None
        return outline(detection, shape, **options)

    stream = io.BytesIO()
    Image.fromarray(picture.pixels).save(stream, "PNG", compress_level=1)
    reason = None
    with patch.object(deidentify, "outline", recorded):
        try:
            prepare.prepare_image(stream.getvalue(), config, detectors)
        except RejectedError as error:
            reason = str(error.reason)
    return tuple(found), reason


def counted(
    picture: Picture, detectors: Sequence[Detector], found: Sequence[Detection], refused: str | None
) -> Iterator[dict[str, Any]]:
    """Yield a row per detector with the sides of the marks that it finds and misses, and its number of false alarms."""
    for detector in detectors:
        marks = [mark for mark in picture.marks if mark.kind == detector.kind]
        boxes = [each.box for each in found if (each.kind, each.source) == (detector.kind, detector.name)]
        wanted = [mark for mark in marks if not is_hard(mark)]
        is_found = [any(iou(mark.box, box) >= SAME for box in boxes) for mark in wanted]
        yield {
            "picture": picture.name,
            "change": picture.change,
            "kind": detector.kind,
            "detector": detector.name,
            "found": [round(mark.side) for mark, hit in zip(wanted, is_found, strict=True) if hit],
            "missed": [round(mark.side) for mark, hit in zip(wanted, is_found, strict=True) if not hit],
            "false": sum(all(iou(mark.box, box) < SAME for mark in marks) for box in boxes),
            "refused": refused,
        }


def is_hard(mark: Mark) -> bool:
    """Return whether a mark is hard, so that detectors don't have to find it."""
    return mark.hard or mark.side < SMALLEST


def draw(picture: Picture, found: Sequence[Detection], folder: Path) -> None:
    """Save a picture with its marks in green, hard marks in yellow, and the boxes of detections in red."""
    drawn = picture.pixels.copy()
    for mark in picture.marks:
        color = (255, 220, 0) if is_hard(mark) else (0, 255, 0)
        cv2.polylines(drawn, [mark.points.round().astype(np.int32)], isClosed=True, color=color, thickness=2)
    for each in found:
        x0, y0, x1, y1 = (round(value) for value in each.box)
        cv2.rectangle(drawn, (x0, y0), (x1, y1), (255, 0, 0), 2)
    Image.fromarray(drawn).save(folder / f"{picture.name} {picture.change}.jpg", quality=85)


if __name__ == "__main__":
    main()
