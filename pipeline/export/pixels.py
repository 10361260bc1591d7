"""Export of masks as PNG files: a label map per image, in which smaller masks cover larger ones, or a file per mask."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.reader import MaskAnnotation, Sample
from segmint.catalogs.dataset.versions.record import VersionName
from segmint.catalogs.layout import image_stem
from segmint.operators.annotations.label_maps import paint_label_map
from segmint.pipeline.export.categories import Categories
from segmint.pipeline.export.index import ImageIndex, json_line

MOST_FILES = 1_000_000
"""Maximum number of masks that are exported as a file each, unless the user chose the images."""


class PixelsWriter:
    """Writer of an image's masks as PNG files, with a JSON file that describes them.

    With `label_maps`, an image has one file, with the number i + 1 where mask i is visible. An image has at most 10,000
    masks, so 16 bits suffice. Otherwise, each mask has a file with one bit per pixel.
    """

    def __init__(
        self,
        scratch: Path,
        manifest: DatasetManifest,
        version: VersionName,
        categories: Categories | None = None,
        label_maps: bool = True,
    ) -> None:
        self._categories = categories or Categories()
        self._label_maps = label_maps
        self._index = ImageIndex(scratch, manifest, version)

    def add(self, sample: Sample) -> dict[str, bytes]:
        """Add an image. Return its files by relative path."""
        name = f"masks/{image_stem(sample.id)}"
        files: dict[str, bytes] = {}
        described: list[dict[str, Any]] = []
        for mask in sample.masks:
            about = {"id": mask.id, "category": self._categories.name_of(mask), "area": mask.area}
            described.append(about | self._categories.facts_of(mask))
        document: dict[str, Any] = {"image": self._index.add(sample, json=f"{name}.json"), "masks": described}
        if self._label_maps:
            document = {"label_map": f"{name}.png", **document}  # first, so that `segmint import` recognizes the file
            labels = paint_label_map([mask.rle for mask in sample.masks], (sample.row["height"], sample.row["width"]))
            files[f"{name}.png"] = encode_png(labels)
            visible = np.bincount(labels.reshape(-1), minlength=len(described) + 1)
            for number, each in enumerate(described, 1):
                each |= {"value": number, "visible": round(int(visible[number]) / max(1, each["area"]), 6)}
        else:
            for mask, each in zip(sample.masks, described, strict=True):
                each["png"] = f"{name}/{mask.id}.png"
                files[each["png"]] = png_of_mask(mask)
        return {**files, f"{name}.json": json_line(document)}

    def finish(self) -> dict[str, Path]:
        """Return the export's files by relative path. The last file completes the export."""
        return self._index.finish()


def png_of_mask(mask: MaskAnnotation) -> bytes:
    """Encode a mask as a PNG with one bit per pixel. Its pixels aren't kept in memory."""
    return encode_png(coco.decode(mask.rle).astype(bool))


def encode_png(pixels: NDArray[Any]) -> bytes:
    """Encode pixels (height, width) bool, uint8, or uint16 as a PNG."""
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()
