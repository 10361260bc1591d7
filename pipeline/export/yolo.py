"""YOLO's segmentation labels: a text file an image, a polygon a mask, holes and parts joined by bridges."""

import csv
import json
from pathlib import Path
from typing import Any

from segmint.catalogs.attributions import write_attributions_csv
from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.reader import MaskAnnotation, Sample
from segmint.catalogs.dataset.versions.record import VersionName
from segmint.catalogs.layout import image_name, image_stem
from segmint.infra.wording import counted, yaml_text
from segmint.pipeline.export.coco import CATEGORY
from segmint.pipeline.export.pixel_paths import Points, paint, pixel_path
from segmint.pipeline.export.provenance import describe_dataset

LEAST_IOU = 0.99
"""A mask whose polygon, painted, is not at least so much like it has no label."""

LEFT_OUT = "left_out.csv"
ATTRIBUTIONS = "attributions.csv"

_CREDITED = ("id", "image_id", "attribution", "provider", "license", "source_url")


class YoloWriter:
    """Writes a label file an image; lists masks that no polygon is like, and the authors of the images."""

    def __init__(self, scratch: Path, manifest: DatasetManifest, version: VersionName) -> None:
        self._scratch = scratch
        self._about = describe_dataset(manifest, version)
        self._rows = scratch / "rows.part"
        self._skipped = scratch / LEFT_OUT
        self._rows.write_text("", encoding="utf-8")
        self._skipped.write_text("image,mask,area,reason\n", encoding="utf-8")
        self._missing = 0

    def add(self, sample: Sample) -> dict[str, bytes]:
        """Add an image; return its file of labels, by path below the export's folder."""
        lines, missing = [], []
        for mask in sample.masks:
            path, reason = polygon_of(mask)
            if reason is None:
                lines.append(label_line(path, mask.size))
            else:
                missing.append((image_name(sample.id), mask.id, mask.area, reason))
        with self._skipped.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(missing)
        with self._rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps({name: sample.row[name] for name in _CREDITED}) + "\n")
        self._missing += len(missing)
        return {f"labels/{image_stem(sample.id)}.txt": "".join(lines).encode("ascii")}

    def finish(self) -> dict[str, Path]:
        """Return the files of the export, by path below its folder; the last one completes it."""
        credits, data = self._scratch / ATTRIBUTIONS, self._scratch / "data.yaml"
        with self._rows.open(encoding="utf-8") as rows, credits.open("w", encoding="utf-8", newline="") as file:
            write_attributions_csv(map(json.loads, rows), file)
        settings = {"train": "images", "val": "images", "names": {0: CATEGORY["name"]}, "segmint": self._about}
        text = yaml_text(settings)
        data.write_text(f"# YOLO wants `val`: nothing is split, so that it names the same images.\n{text}", "utf-8")
        return {path.name: path for path in (self._skipped, credits, data)}

    def notes(self) -> list[str]:
        """Return what a person should know of the export."""
        if not self._missing:
            return []
        return [f"{counted(self._missing, 'mask')} without a label, as no polygon is like them: {LEFT_OUT}"]


def polygon_of(mask: MaskAnnotation) -> tuple[Points, str | None]:
    """Return the path of a mask as points (N, 2), and the reason if it cannot be a label."""
    pixels = mask.mask
    path = pixel_path(pixels)
    if len(path) < 3 or (path.max(axis=0) == path.min(axis=0)).any():
        return path, "too small or too thin for a polygon"
    painted = paint(path, mask.size)
    iou = int((painted & pixels).sum()) / int((painted | pixels).sum())
    if iou < LEAST_IOU:
        return path, f"its parts are too far apart for one polygon: IoU {iou:.3f}"
    return path, None


def label_line(path: Points, size: tuple[int, int]) -> str:
    """Return a line of a label file: class and points x, y in parts of the image's width and height.

    A point is the center of its pixel, so that it is found again where the product is cut off to whole pixels.
    """
    height, width = size
    values: list[Any] = [f"{(x + 0.5) / width:.6f} {(y + 0.5) / height:.6f}" for x, y in path.tolist()]
    return f"0 {' '.join(values)}\n"
