"""Exports to datasets of other libraries: Parquet for Hugging Face, and samples of FiftyOne.

Export to FiftyOne's folder layout, `FiftyOneDataset`: samples as JSON, and each mask as a PNG cropped to its box.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pycocotools import mask as coco

from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.reader import MaskAnnotation, Sample
from segmint.catalogs.dataset.versions import VersionName
from segmint.catalogs.layout import bytes_sha256, image_name, image_stem
from segmint.catalogs.licenses import hub_licenses, size_category
from segmint.catalogs.parquet import PARQUET_OPTIONS
from segmint.infra.wording import without_turning, yaml_text
from segmint.operators.rows import MASKS
from segmint.pipeline.export.categories import CREDITS, Categories, credits_of, describe_dataset
from segmint.pipeline.export.coco import JsonItems
from segmint.pipeline.export.per_image import encode_png, png_of_mask

DATA = "data/train-*.parquet"
"""Pattern for an export's data files, as written in its card."""

GROUP_BYTES = 32 << 20
"""Bytes of images and masks per row group. This limits the memory of an export."""

FILE_BYTES = 384 << 20
"""Bytes of images and masks after which a new file starts."""

_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_OBJECT = pa.struct(
    [
        ("id", pa.int64()),
        ("area", pa.int64()),
        ("bbox", pa.list_(pa.float64())),
        ("predicted_iou", pa.float64()),
        ("stability_score", pa.float64()),
        ("size", pa.list_(pa.int32())),
        ("counts", pa.string()),
    ]
)
_LABELED = pa.struct(
    [
        *_OBJECT,
        ("category", pa.int64()),
        ("label", pa.string()),
        ("label_score", pa.float64()),
        ("label_source", pa.string()),
    ]
)
"""Type of an object in a dataset whose masks have labels."""

_COLUMNS = {
    "image": _PICTURE,
    "id": pa.int64(),
    "width": pa.int32(),
    "height": pa.int32(),
    **{name: pa.string() for name in CREDITS},
    "masks": pa.list_(_PICTURE),
    "objects": pa.list_(_OBJECT),
}


class HuggingFaceWriter:
    """Writer of rows to Parquet files in `scratch`. `add` returns each file when it is complete.

    Each row contains the lists `masks` and `objects` in the same order. `masks` are 1-bit PNGs of the image's size, and
    `objects` describe them. Without images, there is no `image` column. Without labels, `objects` contain no fields
    about labels, and without prompts, no `prompts`.
    """

    def __init__(
        self,
        scratch: Path,
        manifest: DatasetManifest,
        version: VersionName,
        with_images: bool,
        categories: Categories,
    ) -> None:
        self._scratch = scratch
        self._manifest = manifest
        self._version = version
        self._categories = categories
        self._schema = schema_of(with_images, self._categories)
        self._rows: list[dict[str, Any]] = []
        self._waiting = self._written = 0
        self._writer: pq.ParquetWriter | None = None
        self._files = 0
        self._images = self._masks = 0
        self._licenses: set[str | None] = set()

    def add(self, sample: Sample) -> dict[str, Path]:
        """Add an image with its masks. If this completes a file, return the file by relative path."""
        row = sample.row
        masks = [{"bytes": png_of_mask(mask), "path": f"{mask.id}.png"} for mask in sample.masks]
        image = None if sample.jpeg is None else {"bytes": sample.jpeg, "path": image_name(sample.id)}
        values = {"id": sample.id, "width": row["width"], "height": row["height"], "masks": masks, "image": image}
        objects = [self._object(mask) for mask in sample.masks]
        self._rows.append({**values, **credits_of(row), "objects": objects})
        self._images += 1
        self._masks += len(masks)
        self._licenses.add(row["license"] or None)
        self._waiting += len(sample.jpeg or b"") + sum(len(mask["bytes"]) for mask in masks)
        if self._waiting >= GROUP_BYTES:
            self._flush()
        return self._close() if self._written >= FILE_BYTES else {}

    def finish(self) -> dict[str, Path]:
        """Return the last Parquet file and the card by relative path. The card completes the export."""
        last = self._close() if self._rows or self._writer is not None or not self._files else {}
        card = self._scratch / "README.md"
        card.write_text(self._card(), encoding="utf-8")
        return last | {"README.md": card}

    def _flush(self) -> None:
        if self._writer is None:
            path = self._scratch / _file_name(self._files)
            options = PARQUET_OPTIONS | {"use_dictionary": list(CREDITS), "write_statistics": False}
            self._writer = pq.ParquetWriter(path, self._schema, **options)
        rows = pa.Table.from_pylist(self._rows, schema=self._schema)
        self._writer.write_table(rows, row_group_size=max(1, len(self._rows)))
        self._written += self._waiting
        self._rows, self._waiting = [], 0

    def _close(self) -> dict[str, Path]:
        if self._rows or self._writer is None:
            self._flush()
        assert self._writer is not None
        self._writer.close()
        self._writer, self._written = None, 0
        name = _file_name(self._files)
        self._files += 1
        return {f"data/{name}": self._scratch / name}

    def _object(self, mask: MaskAnnotation) -> dict[str, Any]:
        values = {field.name: getattr(mask, field.name) for field in _OBJECT} | self._categories.facts_of(mask)
        if self._categories.is_labeled:
            values |= {"category": self._categories.number_of(mask.label), "label": mask.label or None}
        return values

    def _card(self) -> str:
        about = describe_dataset(self._manifest, self._version)
        made_by = [] if "segmenter" in self._manifest.config else ["segment-anything"]
        front = {
            "pretty_name": about["name"],
            **hub_licenses(self._licenses),
            "size_categories": [size_category(self._images)],
            "task_categories": ["image-segmentation", "mask-generation"],
            "tags": [*made_by, *([] if self._categories.is_labeled else ["class-agnostic"])],
            "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": DATA}]}],
        }
        header = yaml_text(front)
        # The name is untrusted text. Inline code prevents it from acting as Markdown or HTML.
        name = _code(about["name"])
        facts = "\n".join(f"- {key}: `{_code(str(value))}`" for key, value in about.items() if key != "name")
        return _CARD.format(
            header=header, name=name, images=self._images, masks=self._masks, facts=facts,
            columns=", ".join(f"`{field.name}`" for field in self._schema),
            classes=_LABELS if self._categories.is_labeled else _CLASSLESS,
        )  # fmt: skip


def schema_of(with_images: bool, categories: Categories) -> pa.Schema:
    """Return the schema of the files. Its metadata tells `datasets` which columns are images and categories."""
    columns = {name: kind for name, kind in _COLUMNS.items() if with_images or name != "image"}
    described = _LABELED if categories.is_labeled else _OBJECT
    if categories.has_prompts:
        described = pa.struct([*described, MASKS.field("prompts")])
    columns["objects"] = pa.list_(described)
    features = {name: _feature(kind) for name, kind in columns.items()}
    if categories.is_labeled:
        features["objects"][0]["category"] = {"names": list(categories.names), "_type": "ClassLabel"}
    return pa.schema(list(columns.items()), metadata={"huggingface": json.dumps({"info": {"features": features}})})


def _feature(kind: pa.DataType) -> Any:
    """Return the `datasets` feature for an Arrow type."""
    if kind == _PICTURE:
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return [_feature(kind.value_type)]
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    return {"dtype": {"double": "float64"}.get(str(kind), str(kind)), "_type": "Value"}


def _code(text: str) -> str:
    """Return text that is safe as inline code in Markdown."""
    return without_turning(re.sub(r"[`\s]+", " ", text))


def _file_name(number: int) -> str:
    return f"train-{number:05d}.parquet"


_CLASSLESS = "Masks have no class."
_LABELS = "`category` is the number of the mask's class. `label` is its name, or\nnull if it has none."

_CARD = """\
---
{header}---

# `{name}`

{images:,} images with {masks:,} masks, exported by segmint.

```python
from datasets import load_dataset

dataset = load_dataset("path/of/this/folder", split="train")
row = dataset[0]
row["masks"]  # a 1-bit PIL image for each mask
```

Columns: {columns}. `masks` and `objects` describe the same masks in the same order. `counts` with `size` are COCO's
compressed run lengths, exactly the same pixels: to read only those, leave out the pictures with
`load_dataset(…, columns=["image", "objects"])`. `bbox` is x, y, width and height from the first to the last pixel, so
that a single pixel has width 0. {classes}

Each row has the license and the credit of its image: pass them on with it.

{facts}
"""


FIELD = "masks"
"""Name of the field for masks in each sample."""

SCHEMA_VERSION = "1.0.0"
"""FiftyOne release whose schema the export uses. Later releases migrate the export when they read it."""

_CORE = "fiftyone.core"


class FiftyOneWriter:
    """Writer that collects samples in a scratch file and returns each image's mask files immediately."""

    def __init__(self, scratch: Path, manifest: DatasetManifest, version: VersionName, categories: Categories) -> None:
        self._scratch = scratch
        self._categories = categories
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
        return bytes_sha256(f"{self._digest}:{kind}:{id}".encode())

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
