"""Reader of the annotations of one image that segmint did not write: its masks as rows, and its faults.

A missing score, crop, point, box, or area isn't a fault. If possible, the reader measures the value; otherwise, it is
null.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pycocotools import mask as coco

from segmint.catalogs.findings import Code, FindingCollector, FindingLocation
from segmint.model.automatic import rle
from segmint.operators.annotations.coco import fill_polygons
from segmint.operators.annotations.image import BOX_TOLERANCE, UnreadableMaskError, read_runs, sides
from segmint.operators.audit.masks import audit_masks
from segmint.operators.rows import Row


@dataclass
class ForeignImage:
    """Contents of an image's JSON.

    - `size`: (height, width), or None if unknown.
    - `boxes_alone`: number of annotations with a box but no mask, as in data for detectors.
    - `masks`: rows with the keys of `MASK`, and `annotation_id`, which is None if absent. The reader has measured areas
      and boxes. A box extends from the first pixel to the last. Masks whose encoding can't be read are excluded.
    """

    number: int
    size: tuple[int, int] | None
    masks: list[Row] = field(default_factory=list)
    boxes_alone: int = 0
    findings: FindingCollector = field(default_factory=FindingCollector)


def read_foreign(document: Any, size: tuple[int, int] | None, place: FindingLocation, number: int) -> ForeignImage:
    """Measure the masks in the parsed JSON of one image. `size` is its JPEG's (height, width), if known.

    Findings identify the image by its id in the JSON or, if there is none, by `number`. Raises ValueError, with the
    reason, if `document` isn't such JSON at all.
    """
    header, annotations = (document.get("image"), document.get("annotations")) if isinstance(document, dict) else (0, 0)
    if not isinstance(header, dict) or not isinstance(annotations, list):
        raise ValueError("no image with a list of annotations")
    said = sides(header.get("height"), header.get("width"))
    own = _whole(header.get("image_id", header.get("id")))
    image = ForeignImage(number if own is None else own, said or size)
    _read_masks(annotations, image, replace(place, image=image.number))
    return image


def read_listed(
    annotations: Sequence[Mapping[str, Any]], image: ForeignImage, place: FindingLocation, *, contours: bool
) -> None:
    """Measure the annotations of an image in COCO's form, whose masks may also be polygons, or boxes without a mask.

    Adds them to `image`. A box may differ from its mask by `BOX_TOLERANCE` pixels, and the area of polygons by half,
    because tools compute both in different ways. See `fill_polygons` for `contours`.
    """
    masks = []
    for index, annotation in enumerate(annotations):
        if annotation.get("segmentation"):
            masks.append(annotation)
            continue
        if annotation.keys().isdisjoint(("segmentation", "bbox")):
            continue  # a caption, for example
        image.boxes_alone += 1
        box = _numbers(annotation.get("bbox"), 4)
        if box is None or not _is_inside(box, image.size):
            expected = "a box [x, y, width, height] that is in its image and isn't empty"
            where, id = f"mask {_name(annotation, index)}", _whole(annotation.get("id"))
            image.findings.add(place.finding(Code.BOX_OUTSIDE, expected, annotation.get("bbox"), where, mask=id))
    _read_masks(masks, image, place, contours)


def _read_masks(
    annotations: Sequence[Any], image: ForeignImage, place: FindingLocation, contours: bool | None = None
) -> None:
    """Measure annotations with masks. `contours` is None for SA-1B's form, which has no polygons."""
    is_listed = contours is not None
    rows: list[Row] = []
    for index, value in enumerate(annotations):
        annotation = value if isinstance(value, dict) else {}
        name = _name(annotation, index)
        try:
            row = _row(annotation, image.size, contours)
        except UnreadableMaskError as error:
            expected = "run lengths or polygons in COCO's form" if is_listed else "run lengths in COCO's form"
            where = f"mask {name}" if is_listed else f"mask number {index}"
            image.findings.add(place.finding(Code.BAD_RLE, expected, error, where))
            continue
        image.size = image.size or (row["segmentation"]["size"][0], row["segmentation"]["size"][1])
        rows.append({**row, "given": annotation, "name": name})
    if not rows or image.size is None:
        return
    sound = [row for row in rows if _sound(row, image.size)]
    for row in sound:
        code = {**row["segmentation"], "counts": row["segmentation"]["counts"].encode("ascii")}
        area, (x, y, width, height) = int(coco.area(code)), coco.toBbox(code).tolist()
        around = [float(v) for v in (x, y, max(width - 1, 0), max(height - 1, 0))]
        row["measured"] = {"area": area, "bbox": around}
        if is_listed:
            if row["bbox"] and _fits(row["bbox"], [x, y, width, height], image.size):
                row["bbox"] = around
            is_polygon = isinstance(row["given"]["segmentation"], list)
            if is_polygon and row["area"] and abs(row["area"] - area) <= area / 2 + 2 * (width + height):
                row["area"] = area
        elif row["bbox"] == [x, y, width, height]:  # some tools count pixels, as in COCO
            row["bbox"] = around
    image.findings.extend(audit_masks(image.size, [_held(row, image.size) for row in rows], None, place, decode=False))
    image.masks = [{key: value for key, value in {**row, **row["measured"]}.items() if key in _KEPT} for row in sound]


_SCORES = ("predicted_iou", "stability_score")
_KEPT = frozenset({"segmentation", "bbox", "area", *_SCORES, "crop_box", "point_coords", "annotation_id"})


def _row(annotation: Mapping[str, Any], size: tuple[int, int] | None, contours: bool | None) -> Row:
    """Convert an annotation to a row. Raises `UnreadableMaskError` if its mask can't be read."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list) and contours is not None:
        if size is None:
            raise UnreadableMaskError("polygons, but nothing says how large their image is")
        side, counts = size, fill_polygons(segmentation, size, contours)["counts"].decode("ascii")
    elif isinstance(segmentation, dict):
        side, counts = read_runs(segmentation)
    else:
        raise UnreadableMaskError("polygons" if isinstance(segmentation, list) else "none")
    return {
        "segmentation": {"size": list(side), "counts": counts},
        "annotation_id": _whole(annotation.get("id")),
        "area": _number(annotation.get("area")),
        "bbox": _numbers(annotation.get("bbox"), 4),
        "crop_box": _numbers(annotation.get("crop_box"), 4),
        "point_coords": _points(annotation.get("point_coords")),
        **{name: None if (score := _number(annotation.get(name))) is None else float(score) for name in _SCORES},
    }


def _name(annotation: Mapping[str, Any], index: int) -> object:
    """Return the id of an annotation, or else its line in a label file or its place in the list."""
    id = _whole(annotation.get("id"))
    return annotation.get("name", f"number {index}") if id is None else id


def _is_inside(box: Sequence[float], size: tuple[int, int] | None) -> bool:
    """Return whether a box [x, y, width, height] has an area, and extends at most a pixel beyond its image."""
    x, y, width, height = box
    if min(width, height) <= 0 or size is None:
        return min(width, height) > 0
    return min(x, y) >= -1 and x + width <= size[1] + 1 and y + height <= size[0] + 1


def _fits(stated: Sequence[float], around: Sequence[float], size: tuple[int, int]) -> bool:
    """Return whether each edge of a box, cut at the image, is at most `BOX_TOLERANCE` pixels from that of another."""
    edges = [np.clip([x, y, x + w, y + h], 0, [*size[::-1], *size[::-1]]) for x, y, w, h in (stated, around)]
    return bool(np.abs(edges[0] - edges[1]).max() <= BOX_TOLERANCE)


def _sound(row: Row, size: tuple[int, int]) -> bool:
    if row["segmentation"]["size"] != list(size):
        return False
    try:
        rle.area(rle.Rle(size, row["segmentation"]["counts"]))
    except ValueError:
        return False
    return True


def _held(row: Row, size: tuple[int, int]) -> Row:
    """Replace missing values in a row with valid ones, so that `audit_masks` doesn't report them."""
    given: Mapping[str, Any] = row["given"]
    whole = [0.0, 0.0, float(size[1]), float(size[0])]
    crop = whole if given.get("crop_box") is None else row["crop_box"]
    fitting = {
        **row.get("measured", {}),
        **dict.fromkeys(_SCORES, 1.0),
        "crop_box": crop,
        "point_coords": [crop[:2]] if crop else [],
    }
    absent = {key: value for key, value in fitting.items() if given.get(key) in (None, [])}
    return {**row, **absent, "annotation_id": row["name"]}


def _whole(value: Any) -> int | None:
    """Return an integer from 0 that fits in 63 bits, or None for anything else."""
    return value if type(value) is int and 0 <= value < 1 << 63 else None


def _number(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    try:
        return value if type(value) in (int, float) and math.isfinite(value) else None
    except OverflowError:
        return None


def _numbers(values: Any, count: int) -> list[float] | None:
    if not isinstance(values, list) or len(values) != count:
        return None
    found = [_number(value) for value in values]
    return [float(value) for value in found if value is not None] if None not in found else None


def _points(values: Any) -> list[list[float]] | None:
    if not isinstance(values, list):
        return None
    points = [_numbers(value, 2) for value in values]
    return [point for point in points if point is not None] if None not in points else None
