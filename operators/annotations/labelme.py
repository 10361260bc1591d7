"""Reader of polygons in labelme's JSON of one image."""

import json
from collections.abc import Mapping
from typing import Any

from segmint.operators.annotations.coco import fill_polygons
from segmint.operators.annotations.image import (
    AnnotatedImage,
    AnnotatedMask,
    Size,
    UnreadableMaskError,
    label_text,
    mapping,
    parse_image,
)

SHAPES = "shapes"
"""Key of the list of shapes, by which labelme's JSON is recognized."""


def read_labelme(data: bytes, name: str, size: Size | None = None) -> AnnotatedImage:
    """Read the polygons of an image. Its name is `imagePath` or, if that is missing, `name`.

    Its size is the one in the file or, if that is missing, `size` (height, width). Polygons with the same label and
    `group_id` form a mask, whose pixels are those of `fill_polygons`. Other shapes are listed as unreadable.
    """
    image, _, shapes = parse_image(data, name, None, SHAPES, "labelme's JSON", _parse)
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for number, shape in enumerate(map(mapping, shapes), 1):
        group = shape.get("group_id")
        key = f"shape {number}" if group is None else f"group {group} of {shape.get('label')}"
        groups.setdefault(key, []).append(shape)
    for key, parts in groups.items():
        polygons = []
        try:
            for shape in parts:
                if shape.get("shape_type", "polygon") != "polygon":
                    raise UnreadableMaskError(f"it is of type {str(shape['shape_type'])[:40]}, not a polygon")
                polygons.append([value for x, y in shape["points"] for value in (x, y)])
            rle = fill_polygons(polygons, image.size or size)
        except (ValueError, TypeError, KeyError) as error:
            image.unreadable.append(f"{key}: {error}")
            continue
        image.masks.append(AnnotatedMask(rle, label=label_text(parts[0].get("label")), polygon=True))
    return image


def _parse(data: bytes) -> Any:
    """Parse the JSON, and describe the image as other formats do."""
    document = json.loads(data)
    sides = {"height": document.get("imageHeight"), "width": document.get("imageWidth")}
    return {**document, "image": {"file_name": document.get("imagePath"), **sides}}
