"""Base of writers with files per image: a list of the images with their credits, `index.json`."""

import json
from pathlib import Path
from typing import Any

from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.reader import Sample
from segmint.catalogs.dataset.versions.record import VersionName
from segmint.catalogs.layout import image_name
from segmint.pipeline.export.categories import Categories
from segmint.pipeline.export.coco import JsonItems
from segmint.pipeline.export.provenance import credits_of, describe_dataset

INDEX = "index.json"


class IndexedWriter:
    """Writer that collects a description of the dataset and of each image in the folder `scratch`.

    Its subclasses have a method `add` for a sample, which calls `describe_image`, and returns the files of the image.
    """

    def __init__(
        self, scratch: Path, manifest: DatasetManifest, version: VersionName, categories: Categories | None = None
    ) -> None:
        self.scratch = scratch
        self.categories = categories or Categories()
        self._about = describe_dataset(manifest, version)
        self._images = JsonItems(scratch / "images.part")

    def describe_image(self, sample: Sample, **more: Any) -> dict[str, Any]:
        """Add an image, its number of masks, and `more` keys to the list. Return its description without them."""
        row = sample.row
        image = {"id": sample.id, "file_name": image_name(sample.id), "width": row["width"], "height": row["height"]}
        image |= credits_of(row)
        self._images.extend([{**image, "masks": len(sample.masks), **more}])
        return image

    def finish(self) -> dict[str, Path]:
        """Return the remaining files by relative path. The last file, the list, completes the export."""
        path = self.scratch / INDEX
        with path.open("w", encoding="utf-8") as file:
            file.write(f'{{"dataset": {json.dumps(self._about, ensure_ascii=False)},\n"images": ')
            self._images.copy_into(file)
            file.write("}\n")
        return {INDEX: path}


def json_line(value: Any) -> bytes:
    """Return a value as compact JSON with a line break. Raises `ValueError` for NaN and infinities."""
    return f"{json.dumps(value, separators=(',', ':'), ensure_ascii=False, allow_nan=False)}\n".encode()
