"""Reader of masks in COCO files: run lengths, compressed or not, or polygons."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

from segmint.infra.arrays import Size
from segmint.infra.errors import UsageError
from segmint.model.automatic.rle import CocoRle
from segmint.operators.annotations.image import (
    AnnotatedFile,
    AnnotatedImage,
    AnnotatedMask,
    BoxFile,
    UnreadableBoxError,
    UnreadableMaskError,
    check_pixels,
    checked_box,
    checked_rle,
    encode_mask,
    id_number,
    label_text,
    mapping,
    objects,
    sides,
    stated,
)

CocoKey = int | str
"""Id in a COCO file, from `coco_key`."""

_CONVERTER = "Label Studio Converter"

LONGEST_OUTLINE = 1_000_000
"""Maximum number of steps along a mask's polygons.

pycocotools follows edges pixel by pixel and uses about 80 bytes per pixel.
"""


def parse_coco(data: bytes, name: str) -> Mapping[str, Any]:
    """Parse a COCO file. `name` is the file's name in errors.

    Raises `UsageError` if the file isn't JSON or lacks the lists of images and annotations.
    """
    expected = "expected COCO's JSON, with the lists `images` and `annotations`"
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not JSON ({error}): {expected}") from error
    if isinstance(document, list):
        expected += ". COCO results contain no images; pass the annotations file."
    for key in ("images", "annotations"):
        if not isinstance(mapping(document).get(key), list):
            raise UsageError(f"{name} is not a COCO file, because it has no list `{key}`: {expected}")
    return mapping(document)


def read_coco(document: Mapping[str, Any], size_of: Callable[[str], Size | None] = lambda name: None) -> AnnotatedFile:
    """Read the images and masks of a document from `parse_coco`, in its order.

    `size_of` maps an image's file name to its (height, width), or to None if unknown. This size overrides the size in
    the document. If the two differ, polygons can't be read. A mask is listed as unreadable and skipped if it can't be
    read, if its size differs from its image's, or if it contradicts its box or area, as do many masks of its image.
    Labels are the names of categories.

    Two images with the same name stay separate. If several images share an id, masks with that id can't be assigned to
    an image, so they are skipped. Masks are also skipped if several categories with different names share their id.
    """
    # The converter's contours go through the centers of the outermost pixels; COCO's polygons go around these pixels.
    info = document.get("info")
    contours = isinstance(info, dict) and info.get("contributor") == _CONVERTER
    labels = _labels(document.get("categories"))
    images: list[AnnotatedImage] = []
    by_id: dict[CocoKey, list[AnnotatedImage | None]] = {}
    unreadable: list[str] = []
    homeless = 0
    for number, entry, id in coco_entries(document, "images", "id"):
        image = coco_image(entry, size_of)
        if id is not None:
            by_id.setdefault(id, []).append(image)
        if image is None:
            unreadable.append(f"image number {number} has no file_name")
            continue
        images.append(image)
        if id is None:
            image.unreadable.append("it has no id, so its masks are unknown")
    for id, several in by_id.items():
        for image in several if len(several) > 1 else ():
            if image is not None:
                image.unreadable.append(f"another image also has the id {id}, so its masks are unknown")
    for number, entry, id in coco_entries(document, "annotations", "image_id"):
        homes = by_id.get(id, []) if id is not None else []
        if len(homes) == 1 and homes[0] is not None:
            _add(homes[0], entry, labels, contours)
            continue
        homeless += not homes
        found = f"the image_id {id} of several images" if len(homes) > 1 else "no image in the file"
        unreadable.append(f"annotation number {number} refers to {found}")
    for image in images:
        image.leave_out_contradictions()
    return AnnotatedFile(images, unreadable, _frequencies(document.get("categories")), homeless)


def read_coco_boxes(document: Mapping[str, Any]) -> BoxFile:
    """Read the boxes of a document from `parse_coco`, with labels and scores. Those of crowds are left out.

    A box is listed as unreadable and left out if it isn't inside its image, or if its image or category isn't clear.
    """
    labels = _labels(document.get("categories"))
    images: list[dict[str, Any]] = []
    by_id: dict[CocoKey | None, list[dict[str, Any]]] = {}
    boxes = BoxFile([], images.__getitem__)
    for number, entry, id in coco_entries(document, "images", "id"):
        image = coco_image(entry)
        if image is None or image.size is None or id is None:
            boxes.unreadable.append(f"image number {number} has no id, file_name, width, or height")
            continue
        boxes.names.append(image.name)
        images.append({"width": float(image.size[1]), "height": float(image.size[0]), "prompts": []})
        by_id.setdefault(id, []).append(images[-1])
    for number, entry, id in coco_entries(document, "annotations", "image_id"):
        homes = by_id.get(id, [])
        names = labels.get(coco_key(entry.get("category_id")), [])
        try:
            if len(homes) != 1 or len(names) != 1:
                raise UnreadableBoxError(f"{len(homes)} images have its image_id, and {len(names)} names its category")
            if entry.get("iscrowd"):
                boxes.crowds += 1
                continue
            if entry.get("bbox") is None:
                raise UnreadableBoxError("it has no bbox; masks aren't read")
            frame = homes[0]["width"], homes[0]["height"]
            homes[0]["prompts"].append(checked_box(entry.get("bbox"), names[0], entry.get("score"), frame))
        except UnreadableBoxError as error:
            boxes.unreadable.append(f"annotation number {number}: {error}")
    return boxes


def coco_entries(
    document: Mapping[str, Any], items: str, id: str
) -> Iterator[tuple[int, Mapping[str, Any], CocoKey | None]]:
    """Yield the entries of a document's list `items`, each with its number from 1, and its value of the key `id`."""
    for number, entry in enumerate(map(mapping, document[items]), 1):
        yield number, entry, coco_key(entry.get(id))


def coco_image(
    entry: Mapping[str, Any], size_of: Callable[[str], Size | None] = lambda _: None
) -> AnnotatedImage | None:
    """Return the image of an entry in `images`, still without masks, or None if it has no name."""
    name = entry.get("file_name", _lvis_name(entry.get("coco_url")))
    if not isinstance(name, str) or not name:
        return None
    stated_size = sides(entry.get("height"), entry.get("width"))
    known = size_of(name)
    negative = _ids(entry["neg_category_ids"]) if "neg_category_ids" in entry else None
    not_exhaustive = _ids(entry.get("not_exhaustive_category_ids"))
    id, other = id_number(entry.get("id")), stated_size if known else None
    return AnnotatedImage(name, id, known or stated_size, other=other, negative=negative, not_exhaustive=not_exhaustive)


def _lvis_name(url: Any) -> str | None:
    """Extract an image's folder and name, such as `val2017/000000000139.jpg`, from the URL in an LVIS file."""
    return "/".join(url.split("/")[-2:]) if isinstance(url, str) else None


def _ids(value: Any) -> frozenset[int]:
    return frozenset(each for each in value if type(each) is int) if isinstance(value, list) else frozenset()


def _add(
    image: AnnotatedImage, entry: Mapping[str, Any], labels: Mapping[Any, list[str | None]], contours: bool
) -> None:
    id = id_number(entry.get("id"))
    segmentation = entry.get("segmentation")
    try:
        rle = _rle(segmentation, image, contours)
        image.check_size(rle["size"])
        label, *others = labels.get(coco_key(entry.get("category_id")), [None])
        if others:
            raise UnreadableMaskError(f"its category has several names: {label!r:.40}, {others[0]!r:.40}")
    except UnreadableMaskError as error:
        image.leave_out(id, error)
        return
    crowd, category = entry.get("iscrowd") in (1, True), id_number(entry.get("category_id"))
    source, box = label_text(entry.get("label_source")), entry.get("bbox")
    is_polygon = isinstance(segmentation, list)
    if isinstance(segmentation, list) and min(map(len, segmentation)) < 6:
        box = None  # it may contain the polygons without area, which are left out
    more = stated(entry.get("area"), box)
    image.masks.append(AnnotatedMask(rle, id, label, crowd, is_polygon, category, label_source=source, **more))


def _rle(segmentation: Any, image: AnnotatedImage, contours: bool) -> CocoRle:
    if isinstance(segmentation, dict):
        return checked_rle(segmentation)
    if not segmentation:
        raise UnreadableMaskError("it has a box but no mask")
    if not isinstance(segmentation, list):
        raise UnreadableMaskError("its segmentation is neither run lengths nor polygons")
    size = image.size
    if size is not None and image.other not in (None, size):
        raise UnreadableMaskError(
            f"it is a polygon in {image.other[1]} x {image.other[0]} pixels, but its image is {size[1]} x {size[0]}"
        )
    return fill_polygons(segmentation, size, contours)


def fill_polygons(
    polygons: Sequence[Any], size: Size | None, contours: bool = False, whole: float | None = None
) -> CocoRle:
    """Return the mask that polygons cover in an image of `size` (height, width), after the checks of `usable_polygons`.

    Coordinates x, y, x, y, … lie between pixels: pixel (0, 0) extends from corner (0, 0) to (1, 1). With `whole`, they
    are shares of the image's sides, of which each is `whole`. pycocotools decides which pixels are inside: those whose
    centers are, within a fifth of a pixel. Where a polygon encloses an area twice, the area is outside. With
    `contours`, the points are pixels instead, and OpenCV also paints the polygon's border.
    """
    if size is None:
        raise UnreadableMaskError("it is a polygon, but the file has no height and width for its image")
    check_pixels(size)
    if whole is not None:
        sides = itertools.cycle((size[1] / whole, size[0] / whole))
        polygons = [[value * side for value, side in zip(polygon, sides, strict=False)] for polygon in polygons]
    usable = usable_polygons(polygons, size)
    if contours:
        import cv2

        mask = np.zeros(size, np.uint8)
        cv2.fillPoly(mask, [np.asarray(points, np.int32).reshape(-1, 2) for points in usable], 1)
        return encode_mask(mask)
    merged = coco.merge(coco.frPyObjects([[float(value) for value in polygon] for polygon in usable], *size))
    return {"size": list(size), "counts": merged["counts"]}


def usable_polygons(polygons: Sequence[Any], size: Size) -> list[list[float]]:
    """Return a mask's polygons of at least three points, checked, before pycocotools follows them.

    Points and lines have no area, so they are left out beside other polygons. Raises `UnreadableMaskError` if a polygon
    is invalid, or if none has three points. pycocotools checks nothing and treats four numbers as a box. Some tools
    write points slightly outside the image, so a point may be outside by 2 % of the side or 2 pixels. Points farther
    outside probably refer to another size of the image, and polygons with fractions of the first pixel to shares of the
    image, so they are invalid. `size` is the image's (height, width).
    """
    farthest = size[1], size[0]
    steps = 0.0
    usable = []
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) % 2:
            raise UnreadableMaskError("one of its polygons is not a list x, y, x, y, … of at least three points")
        for place, value in enumerate(polygon):
            side = farthest[place % 2]
            margin = max(2, side / 50)
            if type(value) not in (int, float) or not -margin <= value <= side + margin:
                raise UnreadableMaskError(
                    f"a polygon has the coordinate {str(value)[:40]}: expected pixels of the image, from 0 to {side}"
                )
        if len(polygon) < 6:
            continue
        usable.append(polygon)
        points = np.asarray(polygon, np.float64).reshape(-1, 2)
        steps += float((np.abs(points - np.roll(points, 1, axis=0)).max(axis=1) + 1).sum())
    if not usable:
        raise UnreadableMaskError("none of its polygons is a list x, y, x, y, … of at least three points")
    values = np.asarray([value for polygon in usable for value in polygon], np.float64)
    if values.max() <= 1 and (values % 1).any():
        raise UnreadableMaskError(
            "its polygons are within the first pixel, so their coordinates are probably shares of the image: expected "
            "pixels"
        )
    if steps > LONGEST_OUTLINE:
        raise UnreadableMaskError(
            f"its polygons have {len(usable):,} outlines of {steps:,.0f} pixels: the limit is {LONGEST_OUTLINE:,}"
        )
    return usable


def _labels(categories: Any) -> dict[Any, list[str | None]]:
    """Map each category's id to its name, or to all names if several categories share the id."""
    labels: dict[Any, list[str | None]] = {}
    for each in objects(categories):
        name, key = each.get("name"), coco_key(each.get("id"))
        if isinstance(name, str) and key is not None:
            labels[key] = list(dict.fromkeys([*labels.get(key, ()), label_text(name)]))
    return labels


def _frequencies(categories: Any) -> dict[int, str]:
    known = [each for each in objects(categories) if each.get("frequency") in ("r", "c", "f")]
    return {each["id"]: each["frequency"] for each in known if type(each.get("id")) is int}


def coco_key(value: Any) -> CocoKey | None:
    """Return an id in a normalized form, in which 1, 1.0, and "1" are equal, or None for anything that isn't an id."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str):
        return int(value) if len(value) < 19 and value.isdecimal() and str(int(value)) == value else value
    return value if type(value) is int else None
