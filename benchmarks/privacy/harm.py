"""Harm to people and to pictures: marks that stay visible, and redactions of something else.

    python benchmarks/privacy/harm.py --pictures FOLDER [--sets NAME ...] [--changes NAME ...] [--only PICTURE ...]

FOLDER contains a folder per set, with photographs and a `truth.json`. In a set of `COMPLETE`, all faces and plates are
marked, so that a redaction without a mark is false. In the other sets, only some are marked, so that they only show
whether marks are found.

`prepare_image` runs on each photograph as in a build with default settings, on the file's own bytes. With `--changes`,
it also runs on versions of the photograph that are turned, shrunk, darkened, or compressed. A mark counts as found if a
detection's box has an IoU of at least 0.3 with it. It counts as covered by the share of its pixels that the mosaic
replaces, so the boxes don't matter for that. In a set of `COMPLETE`, a mark counts as visible if no detection shows it.

The result is written to `benchmarks/results/harm.json` after each photograph. A second run with the same rule continues
it: rows that are there are kept, and others are added.
"""

import argparse
import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks.machine import become_prepare_process  # noqa: E402
from benchmarks.measuring import RESULTS, write_result  # noqa: E402
from benchmarks.privacy.pictures import Mark, Picture, marked  # noqa: E402
from benchmarks.privacy.recall import SAME, is_hard, settings  # noqa: E402
from segmint.catalogs.findings import RejectedError  # noqa: E402
from segmint.model.detectors.detection import Detection, Detector, iou  # noqa: E402
from segmint.operators.prepare import deidentify, prepare  # noqa: E402
from segmint.operators.prepare.deidentify import DeidentifyConfig, build_detectors, outline  # noqa: E402
from segmint.operators.prepare.prepare import PrepareConfig  # noqa: E402

Bools = NDArray[np.bool_]
Row = dict[str, Any]

COMPLETE = ("ordinary",)
"""Sets in which every face and every plate is marked."""
SETS = (*COMPLETE, "plates", "faces")

VIEWS: dict[str, dict[str, list[str]]] = json.loads(Path(__file__).with_name("views.json").read_text())
"""Views of the faces in a set's photographs, in the order of its `truth.json`, judged by eye.

`profile` means that only one eye could be seen. `occluded` means that something else, or the border, covers a part of
the eyes, nose, or mouth. Sunglasses don't count. All other faces are `frontal`.
"""


def _turned(angle: int) -> Callable[[Picture], Picture]:
    return lambda picture: picture.turned(angle)


def _resized(scale: float) -> Callable[[Picture], Picture]:
    return lambda picture: picture.resized(scale)


def _darkened(picture: Picture) -> Picture:
    """Darken a picture to 15 %, and add noise with a standard deviation of 2 gray levels."""
    noise = np.random.default_rng(0).normal(0, 2, picture.pixels.shape)
    dark = np.clip(np.rint(picture.pixels * 0.15 + noise), 0, 255)
    return replace(picture, pixels=dark.astype(np.uint8))


def _compressed(picture: Picture) -> Picture:
    """Compress a picture as a JPEG of quality 30."""
    with Image.open(io.BytesIO(_encoded(picture, "JPEG", quality=30))) as image:
        return replace(picture, pixels=np.asarray(image.convert("RGB")))


CHANGES: dict[str, Callable[[Picture], Picture] | None] = {
    "upright": None,
    "90": _turned(90),
    "180": _turned(180),
    "270": _turned(270),
    "half": _resized(1 / 2),
    "quarter": _resized(1 / 4),
    "dark": _darkened,
    "jpeg30": _compressed,
}
"""Functions that change a photograph, keyed by name. None keeps the file's bytes."""


def main() -> None:
    """Measure, print a line per photograph, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True, help="a folder with a folder per set")
    parser.add_argument("--sets", nargs="+", default=SETS, help="names of the sets' folders")
    parser.add_argument("--changes", nargs="+", choices=CHANGES, default=["upright"], help="versions to measure")
    parser.add_argument("--only", nargs="+", help="file names of photographs")
    parser.add_argument("--output", type=Path, default=RESULTS / "harm.json", help="the result's file")
    arguments = parser.parse_args()

    machine = become_prepare_process()
    config = settings(DeidentifyConfig())
    detectors = build_detectors(config.deidentify, threads=1)
    rows = recorded_rows(arguments.output)
    done = {(row["set"], row["picture"], row["change"]) for row in rows}
    for name in arguments.sets:
        for change in arguments.changes:
            for path, truth in photographs(arguments.pictures / name, arguments.only):
                if (name, path.name, change) in done:
                    continue
                row = {"set": name, "picture": path.name, "change": change}
                row |= measure(path, truth, change, config, detectors)
                if name not in COMPLETE:
                    row["false"] = None
                rows.append(row)
                print(row, flush=True)
                parts = {"rule": deidentify.RULE, "iou": SAME, "rows": rows}
                write_result(arguments.output, "harm", machine, parts)


def recorded_rows(path: Path) -> list[Row]:
    """Return the rows of an earlier run with this rule, or none."""
    if not path.exists():
        return []
    result = json.loads(path.read_text())
    rows: list[Row] = result["rows"]
    return rows if result["rule"] == deidentify.RULE else []


def photographs(folder: Path, only: Sequence[str] | None) -> Iterator[tuple[Path, Row]]:
    """Yield the path and truth of each photograph of a set, with the views of its faces if `VIEWS` has them."""
    views = VIEWS.get(folder.name, {})
    for name, truth in json.loads((folder / "truth.json").read_text()).items():
        if only is None or name in only:
            if name in views:
                for face, view in zip(truth["faces"], views[name], strict=True):
                    face["view"] = view
            yield folder / name, truth


def measure(path: Path, truth: Row, change: str, config: PrepareConfig, detectors: Sequence[Detector]) -> Row:
    """Prepare one version of a photograph, and return what happens to its marks and to everything else.

    `marks` has an entry per mark that isn't hard: its kind, its side in pixels, its view if known, whether it was
    found, whether it stays visible because no detection shows it, and the share of its pixels under a mosaic. `false`
    has an entry per redaction of something else: its kind, and its share of the image. `released` is false if the image
    was refused; then nothing of it stays visible.
    """
    data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        picture = marked(path.name, np.asarray(image.convert("RGB")), truth)
    make = CHANGES[change]
    if make is not None:
        picture = make(picture)
        data = _encoded(picture, "PNG", compress_level=1)
    start = time.process_time()
    found, shape, is_released = redactions(data, config, detectors)
    took = time.process_time() - start
    scale = np.array([shape[1] / picture.pixels.shape[1], shape[0] / picture.pixels.shape[0]])
    marks = [replace(mark, points=mark.points * scale) for mark in picture.marks]
    return {
        "pixels": shape[0] * shape[1],
        "cpu_seconds": round(took, 4),
        "released": is_released,
        "marks": mark_rows(marks, found, shape),
        "false": false_rows(marks, found, shape),
    }


def redactions(
    data: bytes, config: PrepareConfig, detectors: Sequence[Detector]
) -> tuple[tuple[Detection, ...], tuple[int, int], bool]:
    """Run `prepare_image`, and return its last redactions, the redacted image's shape (h, w), and the verdict.

    The verdict is false if the image was refused.
    """
    seen: list[tuple[tuple[Detection, ...], tuple[int, int]]] = []
    redact = prepare.deidentify

    def recorded(image: NDArray[np.uint8], found: Sequence[Detection]) -> Any:
        seen.append((tuple(found), (image.shape[0], image.shape[1])))
        return redact(image, found)

    is_released = True
    with patch.object(prepare, "deidentify", recorded):
        try:
            prepare.prepare_image(data, config, detectors)
        except RejectedError:
            is_released = False
    found, shape = seen[-1]
    return found, shape, is_released


def mark_rows(marks: Sequence[Mark], found: Sequence[Detection], shape: tuple[int, int]) -> list[Row]:
    """Describe what happens to each mark that isn't hard."""
    hidden = replaced(found, shape)
    rows = []
    for mark in marks:
        if is_hard(mark):
            continue
        inside = np.zeros(shape, np.uint8)
        cv2.fillPoly(inside, [mark.points.round().astype(np.int32)], 1)
        is_found = any(each.kind == mark.kind and iou(each.box, mark.box) >= SAME for each in found)
        row = {"kind": mark.kind, "side": round(mark.side), "found": is_found}
        if mark.view is not None:
            row["view"] = mark.view
        row["visible"] = not any(shows(each, mark) for each in found)
        row["covered"] = round(float(hidden[inside.astype(bool)].mean()), 4)
        rows.append(row)
    return rows


def false_rows(marks: Sequence[Mark], found: Sequence[Detection], shape: tuple[int, int]) -> list[Row]:
    """Describe each redaction that shows no mark, hard or not, with its share of the image."""
    rows = []
    for each in found:
        if not any(shows(each, mark) for mark in marks):
            share = float(replaced([each], shape).mean())
            rows.append({"kind": each.kind, "share": round(share, 6), "orientation": each.orientation})
    return rows


def shows(found: Detection, mark: Mark) -> bool:
    """Return whether a detection shows a mark: the IoU is at least `SAME`, or its center is in the mark's box.

    Some marks are larger than the detections that they were drawn for.
    """
    x, y = (found.box[0] + found.box[2]) / 2, (found.box[1] + found.box[3]) / 2
    x0, y0, x1, y1 = mark.box
    is_inside = x0 <= x <= x1 and y0 <= y <= y1
    return found.kind == mark.kind and (is_inside or iou(mark.box, found.box) >= SAME)


def replaced(found: Sequence[Detection], shape: tuple[int, int]) -> Bools:
    """Return the pixels of an image of `shape` (h, w) that a mosaic replaces, without the bands around the mosaics."""
    hidden = np.zeros(shape, bool)
    for each in found:
        patch_of = outline(each, shape)
        if patch_of is not None:
            hidden[patch_of.y : patch_of.y + patch_of.height, patch_of.x : patch_of.x + patch_of.width] |= patch_of.mask
    return hidden


def _encoded(picture: Picture, form: str, **options: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture.pixels).save(stream, form, **options)
    return stream.getvalue()


if __name__ == "__main__":
    main()
