"""Export to Parquet with a dataset card for `datasets.load_dataset`: images, masks as PNG, and run lengths."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.reader import MaskAnnotation, Sample
from segmint.catalogs.dataset.versions.record import VersionName
from segmint.catalogs.hub import hub_licenses, size_category
from segmint.catalogs.layout import image_name
from segmint.catalogs.parquet import PARQUET_OPTIONS
from segmint.infra.wording import without_turning, yaml_text
from segmint.operators.schemas import MASKS
from segmint.pipeline.export.categories import Categories
from segmint.pipeline.export.pixels import png_of_mask
from segmint.pipeline.export.provenance import CREDITS, credits_of, describe_dataset

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
    about labels, and without prompts, no `prompts`. `group_bytes` limits the row groups, and `file_bytes` the files.
    """

    def __init__(
        self,
        scratch: Path,
        manifest: DatasetManifest,
        version: VersionName,
        with_images: bool = True,
        categories: Categories | None = None,
        group_bytes: int = GROUP_BYTES,
        file_bytes: int = FILE_BYTES,
    ) -> None:
        self._scratch = scratch
        self._manifest = manifest
        self._version = version
        self._categories = categories or Categories()
        self._schema = schema_of(with_images, self._categories)
        self._limits = group_bytes, file_bytes
        self._rows: list[dict[str, Any]] = []
        self._waiting = self._written = 0
        self._writer: pq.ParquetWriter | None = None
        self._files = 0
        self._images = self._masks = 0
        self._licenses: set[str] = set()

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
        self._licenses.update([row["license"]] if row["license"] else ())
        self._waiting += len(sample.jpeg or b"") + sum(len(mask["bytes"]) for mask in masks)
        group, file = self._limits
        if self._waiting >= group:
            self._flush()
        return self._close() if self._written >= file else {}

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


def schema_of(with_images: bool, categories: Categories | None = None) -> pa.Schema:
    """Return the schema of the files. Its metadata tells `datasets` which columns are images and categories."""
    categories = categories or Categories()
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
