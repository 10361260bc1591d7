"""Reader of the annotations of one image that segmint did not write: its masks as rows, and its faults.

A missing score, crop, point, box, or area isn't a fault. If possible, the reader measures the value; otherwise, it is
null.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from segmint.catalogs.findings import Code, FindingCollector, FindingLocation
from segmint.infra.arrays import Size
from segmint.operators.annotations.coco import fill_polygons
from segmint.operators.annotations.image import UnreadableMaskError, edges_fit, mapping, read_runs, sides
from segmint.operators.audit.masks import audit_masks, finite_number, finite_numbers, is_inside
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
    size: Size | None
    masks: list[Row] = field(default_factory=list)
    boxes_alone: int = 0
    findings: FindingCollector = field(default_factory=FindingCollector)


def read_header(document: Any, image: ForeignImage) -> list[Any]:
    """Return the annotations in the parsed JSON of one image, and set the image's number and size if they are stated.

    Raises ValueError, with the reason, if `document` isn't such JSON at all.
    """
    found = mapping(document)
    header, annotations = found.get("image"), found.get("annotations")
    if not isinstance(header, dict) or not isinstance(annotations, list):
        raise ValueError("no image with a list of annotations")
    image.size = sides(header.get("height"), header.get("width"))
    own = _whole(header.get("image_id", header.get("id")))
    image.number = image.number if own is None else own
    return annotations


def read_masks(
    annotations: Sequence[Any], image: ForeignImage, place: FindingLocation, *, exact: bool, contours: bool = False
) -> None:
    """Measure annotations in COCO's form, and add them to `image`.

    With `exact`, as in SA-1B, each has run lengths, and its box and area are those of its pixels. Otherwise, masks may
    also be polygons (see `fill_polygons` for `contours`), and boxes may have no mask. Then a box may differ from its
    mask by some pixels (see `edges_fit`), and the area of polygons by half, because tools compute both differently.
    """
    rows = []
    for index, value in enumerate(annotations):
        annotation = mapping(value)
        id = _whole(annotation.get("id"))
        name = annotation.get("name", f"number {index}") if id is None else id
        if not exact and annotation.get("segmentation") is None:
            _read_box(annotation, image, place, f"mask {name}", id)
            continue
        if not exact and annotation["segmentation"] == []:
            found = "an empty list of polygons"
            image.findings.add(place.finding(Code.MASK_AREA, "a mask with an area", found, f"mask {name}", mask=id))
            continue
        try:
            row = _row(annotation, image.size, None if exact else contours)
        except UnreadableMaskError as error:
            expected = "a mask as run lengths" if exact else "a mask as run lengths or polygons"
            where = f"mask number {index}" if exact else f"mask {name}"
            image.findings.add(place.finding(Code.BAD_RLE, expected, f"one that can't be read: {error}", where))
            continue
        height, width = row["segmentation"]["size"]
        image.size = image.size or (height, width)
        rows.append(
            {**row, **_absent(row, annotation, image.size), "annotation_id": name, "given": annotation, "row": row}
        )
    if image.size is None:
        return
    measured = partial(_compared, image, exact)
    image.findings.extend(audit_masks(image.size, rows, None, place, decode=False, measured=measured))


def _read_box(
    annotation: Mapping[str, Any], image: ForeignImage, place: FindingLocation, where: str, id: int | None
) -> None:
    """Count and check an annotation without a mask. Others, such as captions, have no box either."""
    if annotation.keys().isdisjoint(("segmentation", "bbox")):
        return
    image.boxes_alone += 1
    box = finite_numbers(annotation.get("bbox"), 4)
    if box is None or not _is_inside(box, image.size):
        expected = "a box [x, y, width, height] that is in its image and isn't empty"
        image.findings.add(place.finding(Code.BOX_OUTSIDE, expected, annotation.get("bbox"), where, mask=id))


_SCORES = ("predicted_iou", "stability_score")


def _row(annotation: Mapping[str, Any], size: Size | None, contours: bool | None) -> Row:
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
        "area": finite_number(annotation.get("area")),
        "bbox": finite_numbers(annotation.get("bbox"), 4),
        "crop_box": finite_numbers(annotation.get("crop_box"), 4),
        "point_coords": _points(annotation.get("point_coords")),
        **{name: None if (score := finite_number(annotation.get(name))) is None else float(score) for name in _SCORES},
    }


def _is_inside(box: Sequence[float], size: Size | None) -> bool:
    """Return whether a box [x, y, width, height] has an area, and extends at most a pixel beyond its image."""
    x, y, width, height = box
    if min(width, height) <= 0:
        return False
    return size is None or is_inside([x + 1, y + 1, width, height], (size[0] + 2, size[1] + 2))


def _compared(image: ForeignImage, exact: bool, compared: Row, area: int, box: list[float]) -> Row:
    """Add a mask with its measured area and box to `image`. Return the row to compare with them.

    In that, absent values, and those that are close enough, are replaced by the measured ones.
    """
    x, y, width, height = box
    measured = {"area": area, "bbox": [float(v) for v in (x, y, max(width - 1, 0), max(height - 1, 0))]}
    image.masks.append({**compared["row"], **measured})
    given, stated_area, stated_box = compared["given"], compared["area"], compared["bbox"]
    is_polygon = isinstance(given["segmentation"], list)
    is_close = is_polygon and stated_area and abs(stated_area - area) <= area / 2 + 2 * (width + height)
    fits = stated_box == box  # some tools count pixels, as in COCO
    if stated_box and image.size and not exact:
        left, top, wide, high = stated_box
        fits = edges_fit([left, top, left + wide, top + high], [x, y, x + width, y + height], image.size)
    return {
        **compared,
        "area": area if is_close or given.get("area") in (None, []) else stated_area,
        "bbox": measured["bbox"] if fits or given.get("bbox") in (None, []) else stated_box,
    }


def _absent(row: Row, annotation: Mapping[str, Any], size: Size) -> Row:
    """Return valid values for those that an annotation doesn't state, so that `audit_masks` doesn't report them."""
    whole = [0.0, 0.0, float(size[1]), float(size[0])]
    crop = whole if annotation.get("crop_box") is None else row["crop_box"]
    fitting = {**dict.fromkeys(_SCORES, 1.0), "crop_box": crop, "point_coords": [crop[:2]] if crop else []}
    return {key: value for key, value in fitting.items() if annotation.get(key) in (None, [])}


def _whole(value: Any) -> int | None:
    """Return an integer from 0 that fits in 63 bits, or None for anything else."""
    return value if type(value) is int and 0 <= value < 1 << 63 else None


def _points(values: Any) -> list[Any] | None:
    if not isinstance(values, list):
        return None
    points = [finite_numbers(value, 2) for value in values]
    return None if None in points else points
