"""Export of masks as PNG files: a label map per image, in which smaller masks cover larger ones, or a file per mask."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from segmint.catalogs.dataset.reader import MaskAnnotation, Sample
from segmint.catalogs.layout import image_stem
from segmint.operators.annotations.label_maps import paint_label_map
from segmint.pipeline.export.categories import Categories
from segmint.pipeline.export.index import IndexedWriter, json_line

MOST_FILES = 1_000_000
"""Maximum number of masks that are exported as a file each, unless the user chose the images."""


class LabelMapsWriter(IndexedWriter):
    """Writer of one label map per image, with 16 bits per pixel, and a JSON file that describes its masks.

    The number i + 1 is where mask i is visible. An image has at most 10,000 masks, so 16 bits suffice.
    """

    def add(self, sample: Sample) -> dict[str, bytes]:
        """Add an image. Return its files by relative path."""
        name = f"masks/{image_stem(sample.id)}"
        labels = paint_label_map([mask.rle for mask in sample.masks], (sample.row["height"], sample.row["width"]))
        visible = np.bincount(labels.reshape(-1), minlength=len(sample.masks) + 1)
        masks = []
        for number, mask in enumerate(sample.masks, 1):
            share = round(int(visible[number]) / max(1, mask.area), 6)
            masks.append({"value": number, **_description(mask, self.categories), "visible": share})
        image = self.describe_image(sample, json=f"{name}.json")
        # `segmint import` recognizes the file by its first key.
        document = {"label_map": f"{name}.png", "image": image, "masks": masks}
        return {f"{name}.png": encode_png(labels), f"{name}.json": json_line(document)}


class PngMasksWriter(IndexedWriter):
    """Writer of one PNG file per mask, with one bit per pixel, and a JSON file per image that describes its masks."""

    def add(self, sample: Sample) -> dict[str, bytes]:
        """Add an image. Return its files by relative path."""
        name = f"masks/{image_stem(sample.id)}"
        files: dict[str, bytes] = {}
        masks = []
        for mask in sample.masks:
            path = f"{name}/{mask.id}.png"
            files[path] = png_of_mask(mask)
            masks.append({**_description(mask, self.categories), "png": path})
        document = {"image": self.describe_image(sample, json=f"{name}.json"), "masks": masks}
        return {**files, f"{name}.json": json_line(document)}


def _description(mask: MaskAnnotation, categories: Categories) -> dict[str, Any]:
    return {"id": mask.id, "category": categories.name_of(mask), "area": mask.area, **categories.facts_of(mask)}


def png_of_mask(mask: MaskAnnotation) -> bytes:
    """Encode a mask as a PNG with one bit per pixel. Its pixels aren't kept in memory."""
    return encode_png(coco.decode(mask.rle).astype(bool))


def encode_png(pixels: NDArray[Any]) -> bytes:
    """Encode pixels (height, width) bool, uint8, or uint16 as a PNG."""
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()
