"""Export to FiftyOne's folder layout, `FiftyOneDataset`: samples as JSON, and each mask as a PNG cropped to its box."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.reader import MaskAnnotation, Sample
from segmint.catalogs.dataset.versions.record import VersionName
from segmint.catalogs.layout import image_name, image_stem
from segmint.pipeline.export.categories import Categories
from segmint.pipeline.export.coco import JsonItems
from segmint.pipeline.export.pixels import encode_png
from segmint.pipeline.export.provenance import CREDITS, credits_of, describe_dataset

FIELD = "masks"
"""Name of the field for masks in each sample."""

SCHEMA_VERSION = "1.0.0"
"""FiftyOne release whose schema the export uses. Later releases migrate the export when they read it."""

_CORE = "fiftyone.core"


class FiftyOneWriter:
    """Writer that collects samples in a scratch file and returns each image's mask files immediately."""

    def __init__(
        self, scratch: Path, manifest: DatasetManifest, version: VersionName, categories: Categories | None = None
    ) -> None:
        self._scratch = scratch
        self._categories = categories or Categories()
        self._about = describe_dataset(manifest, version)
        self._digest = version.digest
        self._samples = JsonItems(scratch / "samples.part")

    def add(self, sample: Sample) -> dict[str, bytes]:
        """Add an image. Return the files of its masks by relative path."""
        files: dict[str, bytes] = {}
        detections = []
        boxes = coco.toBbox([mask.rle for mask in sample.masks]).astype(int) if sample.masks else ()
        for mask, (x, y, width, height) in zip(sample.masks, boxes, strict=True):
            path = f"fields/{FIELD}.detections/{image_stem(sample.id)}/{mask.id}.png"
            pixels = mask.mask[y : y + height, x : x + width]
            files[path] = encode_png(pixels.astype(np.uint8) * np.uint8(255))
            detections.append(self._detection(mask, (x, y, width, height), path))
        row = sample.row
        metadata = {"_cls": "ImageMetadata", "width": row["width"], "height": row["height"], "num_channels": 3}
        number = self._number("image", sample.id)
        value: dict[str, Any] = {
            "_id": {"$oid": number[:24]},
            "filepath": f"images/{image_name(sample.id)}",
            "tags": [],
            "_media_type": "image",
            "_rand": int(number[24:36], 16) / 16**12,
            "metadata": metadata | {"mime_type": "image/jpeg", "size_bytes": sample.jpeg and len(sample.jpeg)},
            "segmint_id": sample.id,
            **credits_of(row),
            FIELD: {"_cls": "Detections", "detections": detections},
        }
        self._samples.extend([value])
        return files

    def finish(self) -> dict[str, Path]:
        """Return the export's files by relative path. The last file completes the export."""
        metadata, samples = self._scratch / "metadata.json", self._scratch / "samples.json"
        metadata.write_text(json.dumps(self._metadata(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        with samples.open("w", encoding="utf-8") as file:
            file.write('{"samples": ')
            self._samples.copy_into(file)
            file.write("}\n")
        return {path.name: path for path in (metadata, samples)}

    def _detection(self, mask: MaskAnnotation, box: tuple[int, int, int, int], path: str) -> dict[str, Any]:
        height, width = mask.size
        return {
            "_id": {"$oid": self._number("mask", mask.id)[:24]},
            "_cls": "Detection",
            "attributes": {},
            "tags": [],
            "label": self._categories.name_of(mask),
            "bounding_box": relative_box(box, width, height),
            "mask_path": path,
            "confidence": mask.predicted_iou,
            "stability_score": mask.stability_score,
            "area": mask.area,
            "segmint_id": mask.id,
            **self._categories.facts_of(mask),
        }

    def _number(self, kind: str, id: int) -> str:
        """Return the hexadecimal id of an object in this dataset. It is the same in every export of a version."""
        return hashlib.sha256(f"{self._digest}:{kind}:{id}".encode()).hexdigest()

    def _metadata(self) -> dict[str, Any]:
        return {
            "name": self._about["name"],
            "version": SCHEMA_VERSION,
            "media_type": "image",
            "group_media_types": {},
            "tags": [],
            "info": self._about,
            "classes": {},
            "default_classes": list(self._categories.names),
            "mask_targets": {},
            "default_mask_targets": {},
            "skeletons": {},
            "sample_fields": _sample_fields(self._categories),
            "frame_fields": [],
            "saved_views": [],
            "workspaces": [],
            "annotation_runs": {},
            "brain_methods": {},
            "evaluations": {},
            "runs": {},
        }


def relative_box(box: tuple[int, int, int, int], width: int, height: int) -> list[float]:
    """Convert a pixel box (x, y, width, height) to a relative box from which FiftyOne recovers the same pixels.

    FiftyOne multiplies by the image's sides and truncates the result. Without correction, 43 / 60 would become pixel
    42.
    """
    x, y, w, h = (int(value) for value in box)
    (left, across), (top, down) = _relative(x, w, width), _relative(y, h, height)
    return [left, top, across, down]


def _relative(start: int, length: int, side: int) -> tuple[float, float]:
    first = _at_least(start, side)
    rest = _at_least(start + length, side) - first
    while int(side * min(first + rest, 1.0)) < start + length:
        rest += np.spacing(first + rest)
    return first, float(rest)


def _at_least(pixel: int, side: int) -> float:
    """Return `pixel` relative to `side`. If truncation would lose the pixel, round up."""
    part = pixel / side
    return part if int(side * part) == pixel else float(np.nextafter(part, 1.0))


def _sample_fields(categories: Categories) -> list[dict[str, Any]]:
    tags = _field("tags", "ListField", subfield="StringField")
    metadata = [_field(name, "IntField") for name in ("size_bytes", "width", "height", "num_channels")]
    scores = [_field(name, "FloatField") for name in ("confidence", "stability_score")]
    detection = [
        _field("id", "ObjectIdField", db_field="_id"),
        tags,
        _field("attributes", "DictField", f"{_CORE}.labels.Attribute", "EmbeddedDocumentField"),
        _field("label", "StringField"),
        _field("bounding_box", "ListField", subfield="FloatField"),
        _field("mask", "ArrayField"),
        _field("mask_path", "StringField"),
        _field("index", "IntField"),
        *scores,
        _field("area", "IntField"),
        _field("segmint_id", "IntField"),
    ]
    if categories.is_labeled:
        detection += [_field("label_score", "FloatField"), _field("label_source", "StringField")]
    if categories.has_prompts:
        detection.append(_field("prompts", "ListField", subfield="DictField"))
    detections = _field("detections", "ListField", f"{_CORE}.labels.Detection", "EmbeddedDocumentField", detection)
    return [
        _field("id", "ObjectIdField", db_field="_id"),
        _field("filepath", "StringField"),
        tags,
        _field(
            "metadata",
            "EmbeddedDocumentField",
            f"{_CORE}.metadata.ImageMetadata",
            fields=[*metadata, _field("mime_type", "StringField")],
        ),
        _field("created_at", "DateTimeField", read_only=True),
        _field("last_modified_at", "DateTimeField", read_only=True),
        _field("_dataset_id", "ObjectIdField"),
        _field("_media_type", "StringField"),
        _field("_rand", "FloatField"),
        _field("segmint_id", "IntField"),
        *(_field(name, "StringField") for name in CREDITS),
        _field(FIELD, "EmbeddedDocumentField", f"{_CORE}.labels.Detections", fields=[detections]),
    ]


def _field(
    name: str,
    kind: str,
    document: str | None = None,
    subfield: str | None = None,
    fields: list[dict[str, Any]] | None = None,
    db_field: str | None = None,
    read_only: bool = False,
) -> dict[str, Any]:
    """Return a field of FiftyOne's schema in the form that FiftyOne's exporter writes."""
    return {
        "name": name,
        "ftype": f"{_CORE}.fields.{kind}",
        "embedded_doc_type": document,
        "subfield": None if subfield is None else f"{_CORE}.fields.{subfield}",
        "fields": fields or [],
        "db_field": db_field or name,
        "description": None,
        "info": None,
        "read_only": read_only,
    }
