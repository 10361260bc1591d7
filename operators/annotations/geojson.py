"""Reader of masks in GeoJSON: one feature collection per image, with polygons in pixels."""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmint.operators.annotations.coco import usable_polygons
from segmint.operators.annotations.image import (
    AnnotatedImage,
    AnnotatedMask,
    CocoRle,
    Size,
    UnreadableMaskError,
    check_pixels,
    encode_mask,
    id_number,
    label_text,
    mapping,
    parse_image,
    stated,
)

ENDING = ".geojson"


def read_geojson(data: bytes, name: str, size: Size | None = None) -> AnnotatedImage:
    """Read the features of one image. Its name is `image.file_name` or, if that is missing, the name of the file.

    `size` is the image's (height, width), if known. A mask's label is the name of its feature's classification. Masks
    that can't be read, or that contradict their boxes or areas, are listed and skipped. Beside a mask, points are
    listed as prompts.
    """
    image, about, features = parse_image(data, name, size, "features", "a GeoJSON feature collection", _parse)
    points = []
    for feature in features:
        feature = mapping(feature)
        said, geometry = mapping(feature.get("properties")), feature.get("geometry", {})
        id, kind = id_number(said.get("id")), mapping(geometry).get("type")
        if kind in ("Point", "MultiPoint"):
            points.append((id, kind))
            continue
        try:
            label, source = _label(said.get("classification")), label_text(said.get("label_source"))
            area = said.get("area") if about else None  # elsewhere, areas may be in other units
            rle = _mask(geometry, image.size)
            more = stated(area, feature.get("bbox"))
            image.masks.append(AnnotatedMask(rle, id, label, label_source=source, **more))
        except UnreadableMaskError as error:
            image.leave_out(id, error)
    for id, kind in points:
        image.leave_out_prompt(id, kind, f"its geometry is {kind}: expected Polygon or MultiPolygon")
    image.leave_out_contradictions()
    return image


def _parse(data: bytes) -> Any:
    """Parse the JSON. Other tools' files say nothing about the image."""
    document = json.loads(data)
    document["image"] = document.get("image") or {}
    return document


def fill_rings(rings: Sequence[Sequence[float]], size: Size) -> NDArray[np.bool_]:
    """Return the pixels whose centers lie inside an odd number of rings, (height, width) bool.

    A ring is a sequence of coordinates x, y, x, y, …. Pixel (0, 0) extends from corner (0, 0) to corner (1, 1).
    """
    height, width = size
    flips = np.zeros((height, width + 1), np.uint8)
    for ring in rings:
        x, y = np.asarray(ring, np.float64).reshape(-1, 2).T
        next_x, next_y = np.roll(x, -1), np.roll(y, -1)
        # Rows whose centers the edge crosses.
        edges = np.minimum(y, next_y), np.maximum(y, next_y)
        first, stop = (np.clip(np.ceil(ends - 0.5), 0, height) for ends in edges)
        counts = (stop - first).astype(np.int64)
        edge = np.repeat(np.arange(len(x)), counts)
        rows = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge].astype(np.int64)
        slope = (next_x - x)[edge] / (next_y - y)[edge]
        crossed = np.ceil(x[edge] + (rows + 0.5 - y[edge]) * slope - 0.5)
        np.add.at(flips, (rows, np.clip(crossed, 0, width).astype(np.int64)), 1)
    return (np.cumsum(flips, axis=1, dtype=np.uint8)[:, :width] & 1).astype(bool)


def _mask(geometry: Any, size: Size | None) -> CocoRle:
    if size is None:
        raise UnreadableMaskError("neither the dataset nor the file has a height and width for its image")
    check_pixels(size)
    if geometry is None:
        return encode_mask(np.zeros(size, bool))
    found: Any = mapping(geometry)
    kind, coordinates = found.get("type"), found.get("coordinates")
    if kind not in ("Polygon", "MultiPolygon"):
        raise UnreadableMaskError(f"its geometry is {str(kind)[:40]}: expected Polygon or MultiPolygon")
    try:
        polygons = [coordinates] if kind == "Polygon" else coordinates
        parts = [
            [[value for point in ring for value in (point[0], point[1])] for ring in polygon] for polygon in polygons
        ]
    except (TypeError, LookupError) as error:
        raise UnreadableMaskError("its coordinates are not lists of points") from error
    if any(len(polygon) > 1 and len(polygon[0]) < 3 for polygon in polygons):  # its holes would be filled
        raise UnreadableMaskError("a polygon with holes has an outline of fewer than three points")
    usable_polygons(list(itertools.chain.from_iterable(parts)), size)
    mask = np.zeros(size, bool)
    for rings in parts:
        mask |= fill_rings(rings, size)
    return encode_mask(mask)


def _label(classification: Any) -> str | None:
    """Return the name of a classification. QuPath writes a class that has a parent as a list of `names`."""
    if not isinstance(classification, Mapping):
        return label_text(classification)
    names = classification.get("names")
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return label_text(": ".join(names))
    return label_text(classification.get("name"))
