"""List of an export's images with their credits, `index.json`, for formats with files per image."""

import json
from pathlib import Path
from typing import Any

from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.reader import Sample
from segmint.catalogs.dataset.versions.record import VersionName
from segmint.catalogs.layout import image_name
from segmint.pipeline.export.coco import JsonItems
from segmint.pipeline.export.provenance import credits_of, describe_dataset

INDEX = "index.json"


class ImageIndex:
    """Description of the dataset, and one of each image, collected in the folder `scratch`."""

    def __init__(self, scratch: Path, manifest: DatasetManifest, version: VersionName) -> None:
        self._path = scratch / INDEX
        self._about = describe_dataset(manifest, version)
        self._images = JsonItems(scratch / "images.part")

    def add(self, sample: Sample, **more: Any) -> dict[str, Any]:
        """Add an image, its number of masks, and `more` keys. Return the description of the image without them."""
        row = sample.row
        image = {"id": sample.id, "file_name": image_name(sample.id), "width": row["width"], "height": row["height"]}
        image |= credits_of(row)
        self._images.extend([{**image, "masks": len(sample.masks), **more}])
        return image

    def finish(self) -> dict[str, Path]:
        """Write the list, and return it by relative path."""
        with self._path.open("w", encoding="utf-8") as file:
            file.write(f'{{"dataset": {json.dumps(self._about, ensure_ascii=False)},\n"images": ')
            self._images.copy_into(file)
            file.write("}\n")
        return {INDEX: self._path}


def json_line(value: Any) -> bytes:
    """Return a value as compact JSON with a line break. Raises `ValueError` for NaN and infinities."""
    return f"{json.dumps(value, separators=(',', ':'), ensure_ascii=False, allow_nan=False)}\n".encode()
