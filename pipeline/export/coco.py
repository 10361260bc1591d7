"""Streaming export to COCO instances JSON, with compressed or uncompressed run lengths, and to LVIS's variant of it."""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from pycocotools import mask as coco

from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.reader import MaskAnnotation, Sample
from segmint.catalogs.dataset.versions import VersionName
from segmint.catalogs.layout import image_name
from segmint.catalogs.licenses import license_url
from segmint.model.automatic.rle import decompress
from segmint.pipeline.export.categories import OBJECT, Categories

RARE, COMMON = 10, 100
"""Maximum number of images in a rare category and in a common category of LVIS. Larger categories are frequent."""

_OPTIONAL = {"image_id": "catalog_image_id"} | {
    name: name for name in ("attribution", "provider", "source_url", "country")
}


def uncompressed_rle(mask: MaskAnnotation) -> dict[str, Any]:
    """Return a mask with its size [height, width] and its run lengths as numbers."""
    return {"size": list(mask.size), "counts": decompress(mask.counts).tolist()}


def coco_annotations(sample: Sample, categories: Categories, compressed: bool) -> Iterator[dict[str, Any]]:
    """Yield the annotations of an image.

    `bbox` is COCO's [x, y, width, height] as floats. COCO counts pixels, so the box of a single pixel has a width of 1.
    In the dataset's boxes, as in SA-1B, the same box has a width of 0.
    """
    boxes = coco.toBbox([mask.rle for mask in sample.masks]).tolist() if sample.masks else []
    for mask, box in zip(sample.masks, boxes, strict=True):
        yield {
            "id": mask.id,
            "image_id": sample.id,
            "category_id": categories.number_of(mask.label) + 1,
            "iscrowd": 0,
            "area": mask.area,
            "bbox": box,
            "segmentation": mask.rle if compressed else uncompressed_rle(mask),
            "predicted_iou": mask.predicted_iou,
            "stability_score": mask.stability_score,
            **categories.facts_of(mask),
        }


class CocoWriter:
    """Writer that collects images and annotations in scratch files and merges the files at the end.

    `name` is the path of the result relative to the export's folder. With `lvis`, images and categories contain LVIS's
    keys.
    """

    def __init__(
        self,
        scratch: Path,
        manifest: DatasetManifest,
        version: VersionName,
        name: str,
        compressed: bool,
        categories: Categories,
        lvis: bool,
    ) -> None:
        self.name = name
        self._categories = categories
        self._lvis = lvis
        self._images_of: Counter[int] = Counter()  # by category
        self._masks_of: Counter[int] = Counter()
        self._scratch = scratch
        self._manifest = manifest
        self._version = version
        self._compressed = compressed
        self._images = JsonItems(scratch / "images.part")
        self._annotations = JsonItems(scratch / "annotations.part")
        self._licenses: dict[str, int] = {}

    def add(self, sample: Sample) -> None:
        """Add an image with its masks."""
        row = sample.row
        image: dict[str, Any] = {
            "id": sample.id,
            "file_name": image_name(sample.id),
            "width": row["width"],
            "height": row["height"],
        }
        if row["license"] is not None:
            image["license"] = self._licenses.setdefault(row["license"], len(self._licenses) + 1)
        optional = {theirs: row[ours] for ours, theirs in _OPTIONAL.items() if row[ours] is not None}
        numbers = Counter(self._categories.number_of(mask.label) for mask in sample.masks)
        self._images_of.update(numbers.keys())
        self._masks_of.update(numbers)
        if self._lvis:
            # The masks of a category are only exhaustive if a person confirmed that no mask of the image is missing.
            partial = [] if row["complete"] else [number + 1 for number in sorted(numbers)]
            optional |= {"coco_url": f"images/{image_name(sample.id)}"}  # tools use the last two parts of the path
            optional |= {"neg_category_ids": [], "not_exhaustive_category_ids": partial}
        self._images.extend([image | optional])
        self._annotations.extend(coco_annotations(sample, self._categories, self._compressed))

    def finish(self) -> dict[str, Path]:
        """Return the export's files by relative path. The last file completes the export."""
        head = {
            "info": {
                "description": self._manifest.name,
                "version": self._manifest.code_version,
                "dataset_digest": f"sha256:{self._version.digest}",
                "dataset_version": self._version.number,
            },
            "licenses": [
                {"id": number, "name": name, "url": license_url(name) or ""} for name, number in self._licenses.items()
            ],
            "categories": [self._category(number, name) for number, name in enumerate(self._categories.names)],
        }
        path = self._scratch / "coco.json"
        with path.open("w", encoding="utf-8") as file:
            file.write("{\n")
            for key, value in head.items():
                file.write(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)},\n")
            file.write('"images": ')
            self._images.copy_into(file)
            file.write(',\n"annotations": ')
            self._annotations.copy_into(file)
            file.write("\n}\n")
        return {self.name: path}

    def _category(self, number: int, name: str) -> dict[str, Any]:
        category: dict[str, Any] = {"id": number + 1, "name": name, "supercategory": OBJECT}
        if not self._lvis:
            return category
        images = self._images_of[number]
        return category | {
            "synset": "",
            "synonyms": [name],
            "def": "",
            "image_count": images,
            "instance_count": self._masks_of[number],
            "frequency": "r" if images <= RARE else "c" if images <= COMMON else "f",
        }


class JsonItems:
    """Items of a JSON array, collected in a file with one item per line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.count = 0
        path.write_text("", encoding="utf-8")

    def extend(self, values: Iterable[Any]) -> None:
        """Append items. Raises `ValueError` for NaN and infinities, which JSON doesn't support."""
        with self._path.open("a", encoding="utf-8") as file:
            for value in values:
                file.write(",\n" if self.count else "")
                file.write(json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False))
                self.count += 1

    def copy_into(self, target: TextIO) -> None:
        """Write the array with its brackets to an open file."""
        target.write("[\n")
        with self._path.open(encoding="utf-8") as file:
            shutil.copyfileobj(file, target, 1 << 16)
        target.write("\n]")
