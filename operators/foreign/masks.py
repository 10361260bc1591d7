"""Reader of the SA-1B-style JSON of one image that segmint did not write: its masks as rows, and its faults.

A missing score, crop, point, box, or area isn't a fault. If possible, the reader measures the value; otherwise, it is
null.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pycocotools import mask as coco

from segmint.catalogs.findings import Code, FindingCollector, FindingLocation
from segmint.model.automatic import rle
from segmint.operators.annotations.image import UnreadableMaskError, read_runs, sides
from segmint.operators.audit.masks import audit_masks
from segmint.operators.rows import Row

BoxConvention = Literal["inclusive", "pixels"]

BOXES: dict[BoxConvention, str] = {
    "inclusive": "between the outermost pixels, as in SA-1B",
    "pixels": "that count pixels, as in COCO",
}
"""Description of each box convention."""


@dataclass
class ForeignImage:
    """Contents of an image's JSON.

    - `size`: (height, width), or None if unknown.
    - `masks`: rows with the keys of `MASK`, and `annotation_id`, which is None if absent. The reader has measured areas
      and boxes. A box extends from the first pixel to the last. Masks whose encoding can't be read are excluded.
    - `boxes`: findings about boxes, by convention. The data may use either of two conventions, and only the whole
      dataset shows which. The findings for a convention are reported if the dataset uses the other one.
    """

    number: int
    size: tuple[int, int] | None
    masks: list[Row] = field(default_factory=list)
    findings: FindingCollector = field(default_factory=FindingCollector)
    boxes: dict[BoxConvention, FindingCollector] = field(
        default_factory=lambda: {name: FindingCollector() for name in BOXES}
    )


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


def _read_masks(annotations: Sequence[Any], image: ForeignImage, place: FindingLocation) -> None:
    rows: list[Row] = []
    for index, value in enumerate(annotations):
        annotation = value if isinstance(value, dict) else {}
        row, fault = _row(annotation)
        if fault:
            image.findings.add(place.finding(Code.BAD_RLE, "run lengths in COCO's form", fault, f"mask number {index}"))
            continue
        image.size = image.size or (row["segmentation"]["size"][0], row["segmentation"]["size"][1])
        name = f"number {index}" if row["annotation_id"] is None else row["annotation_id"]
        rows.append({**row, "given": annotation, "name": name})
    if not rows or image.size is None:
        return
    sound = [row for row in rows if _sound(row, image.size)]
    for row in sound:
        code = {**row["segmentation"], "counts": row["segmentation"]["counts"].encode("ascii")}
        area, (x, y, width, height) = coco.area(code), coco.toBbox(code).tolist()
        around = [float(v) for v in (x, y, max(width - 1, 0), max(height - 1, 0))]
        row["measured"] = {"area": int(area), "bbox": around}
        if area and row["bbox"] == [x, y, width, height]:
            row["bbox"] = around
            _vote(image, "pixels", row, place)
        elif area and row["bbox"] == around:
            _vote(image, "inclusive", row, place)
    image.findings.extend(audit_masks(image.size, [_held(row, image.size) for row in rows], None, place, decode=False))
    image.masks = [{key: value for key, value in {**row, **row["measured"]}.items() if key in _KEPT} for row in sound]


_SCORES = ("predicted_iou", "stability_score")
_KEPT = frozenset({"segmentation", "bbox", "area", *_SCORES, "crop_box", "point_coords", "annotation_id"})


def _row(annotation: Mapping[str, Any]) -> tuple[Row, str]:
    """Convert an annotation to a row. Return it with the reason why its mask can't be read, or with an empty string."""
    segmentation = annotation.get("segmentation")
    if not isinstance(segmentation, dict):
        return {}, "polygons" if isinstance(segmentation, list) else "none"
    try:
        size, counts = read_runs(segmentation)
    except UnreadableMaskError as error:
        return {}, str(error)
    row: Row = {
        "segmentation": {"size": list(size), "counts": counts},
        "annotation_id": _whole(annotation.get("id")),
        "area": _number(annotation.get("area")),
        "bbox": _numbers(annotation.get("bbox"), 4),
        "crop_box": _numbers(annotation.get("crop_box"), 4),
        "point_coords": _points(annotation.get("point_coords")),
        **{name: None if (score := _number(annotation.get(name))) is None else float(score) for name in _SCORES},
    }
    return row, ""


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


def _vote(image: ForeignImage, convention: BoxConvention, row: Row, place: FindingLocation) -> None:
    other = next(text for name, text in BOXES.items() if name != convention)
    expected, found = f"boxes {other}, like most boxes here", f"{row['given']['bbox']}, {BOXES[convention]}"
    where = f"mask {row['name']}"
    image.boxes[convention].add(place.finding(Code.MASK_BOX, expected, found, where, mask=row["annotation_id"]))


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
