"""Reader of YOLO's segmentation labels: one text file per image, with a class and a polygon in each line."""

import hashlib
import itertools
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from PIL import Image

from segmint.catalogs.layout import MOST_MEMBER_BYTES
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import ObjectTooLargeError
from segmint.infra.storage.location import Location
from segmint.operators.annotations.boxes import read_yolo_settings
from segmint.operators.annotations.coco import fill_polygons
from segmint.operators.annotations.image import (
    AnnotatedImage,
    AnnotatedMask,
    CocoRle,
    Size,
    UnreadableMaskError,
    label_text,
)
from segmint.operators.prompts import TOLERANCE

_LABELS, _IMAGES = "labels", "images"
_PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_MOST_DIGITS = 9
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)
_UNREADABLE = (OSError, ValueError, SyntaxError, LookupError, TypeError, struct.error, Image.DecompressionBombError)


def is_yolo(names: Sequence[str]) -> bool:
    """Return whether a folder with files of these names has YOLO's layout: a YAML file beside folders of labels."""
    return bool(_settings_among(names)) and any(map(_is_label_file, names))


def read_yolo_folder(
    folder: Location, add_to_hash: Callable[[bytes], Any], size_of: Callable[[str], Size | None] = lambda name: None
) -> Iterator[AnnotatedImage]:
    """Yield an image for each file `….txt` in the folders `labels`, sorted by file name.

    The YAML file in `folder` contains the names of the classes. An image's name and size are those of its picture,
    which has the same path in `images`. `size_of` maps an image's name to its (height, width) in a dataset, or to None
    if unknown, and overrides that size, because coordinates are shares of the sides. A picture of another shape may
    have been cropped, so its image is unreadable. `add_to_hash` is called with each file's name and hash.

    Raises `UsageError` if there isn't exactly one YAML file, or if it doesn't name the classes.
    """
    names = sorted(found.name for found in folder.walk())
    settings = _settings_among(names)
    if len(settings) != 1:
        found = f"found {', '.join(settings)}" if settings else "found none"
        raise UsageError(
            f"{folder}: expected one YAML file with the names of YOLO's classes, such as data.yaml; {found}"
        )
    about = read_yolo_settings(folder / settings[0])
    add_to_hash(f"{settings[0]} {(folder / settings[0]).sha256()}\n".encode())
    pictures = {str(PurePosixPath(name).with_suffix("")): name for name in names if name.lower().endswith(_PICTURES)}
    for name in filter(_is_label_file, names):
        try:
            data = (folder / name).read(max_bytes=MOST_MEMBER_BYTES)
        except ObjectTooLargeError as error:
            yield AnnotatedImage(name, None, None, unreadable=[f"the file: {error}"])
            continue
        add_to_hash(f"{name} {hashlib.sha256(data).hexdigest()}\n".encode())
        picture = pictures.get(_picture_stem(name))
        own = None if picture is None else _picture_size(folder / picture)
        size = size_of(picture or name)
        if own is not None and size is not None and not _is_same_shape(own, size):
            shapes = f"its picture is {own[1]} x {own[0]} pixels, but its image is {size[1]} x {size[0]}"
            yield AnnotatedImage(picture or name, None, size, unreadable=[f"the labels: {shapes}, another shape"])
            continue
        yield read_yolo_labels(data, picture or name, size or own, about["names"], "segmint" in about)


def read_yolo_labels(
    data: bytes, name: str, size: Size | None, labels: Mapping[int, Any], through_centers: bool = False
) -> AnnotatedImage:
    """Read the lines of a label file: a class, and x, y, x, y, … as shares of the image's sides.

    `name` and `size`, (height, width), are those of the image, and `labels` the names of the classes. With
    `through_centers`, as in an export of segmint, polygons go through the centers of a mask's outermost pixels.
    Otherwise, they enclose the pixels, as in COCO; see `fill_polygons`. Lines that can't be read, including boxes, are
    listed and skipped.
    """
    image = AnnotatedImage(name, None, size)
    for number, line in enumerate(data.decode("utf-8-sig", "replace").splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        try:
            label = class_name(fields[0], labels)
            rle = _mask(fields[1:], size, through_centers)
        except UnreadableMaskError as error:
            image.unreadable.append(f"line {number}: {error}")
            continue
        image.masks.append(AnnotatedMask(rle, label=label, polygon=True))
    return image


def class_name(text: str, labels: Mapping[int, Any]) -> str | None:
    """Return the name of the class in a line. Raises `UnreadableMaskError` if it has none."""
    if not text.isdecimal() or len(text) > _MOST_DIGITS or int(text) not in labels:
        raise UnreadableMaskError(f"found the class {text!r:.40}, which has no name")
    return label_text(str(labels[int(text)]))


def _mask(fields: Sequence[str], size: Size | None, through_centers: bool) -> CocoRle:
    if len(fields) in (4, 5):
        raise UnreadableMaskError("it has a box but no mask")
    if size is None:
        raise UnreadableMaskError("neither the dataset nor a picture gives the size of its image")
    try:
        shares = [float(field) for field in fields]
    except ValueError as error:
        raise UnreadableMaskError(f"a coordinate isn't a number: {error}") from error
    sides = itertools.cycle(reversed(size))
    return fill_polygons([[share * side for share, side in zip(shares, sides, strict=False)]], size, through_centers)


def _settings_among(names: Sequence[str]) -> list[str]:
    return [name for name in names if "/" not in name and name.lower().endswith((".yaml", ".yml"))]


def _is_label_file(name: str) -> bool:
    return name.endswith(".txt") and _LABELS in PurePosixPath(name).parts[:-1]


def _picture_stem(name: str) -> str:
    """Return the path of a label file's picture, without its ending: YOLO replaces the last folder `labels`."""
    parts = list(PurePosixPath(name).with_suffix("").parts)
    parts[max(place for place, part in enumerate(parts[:-1]) if part == _LABELS)] = _IMAGES
    return str(PurePosixPath(*parts))


def _picture_size(file: Location) -> Size | None:
    """Return the (height, width) of an upright picture, or None if it can't be read."""
    try:
        with file.open() as stream, Image.open(stream) as picture:
            width, height = picture.size
            is_sideways = picture.getexif().get(_ORIENTATION) in _SIDEWAYS
    except _UNREADABLE:
        return None
    return (width, height) if is_sideways else (height, width)


def _is_same_shape(one: Size, other: Size) -> bool:
    ratio = one[0] * other[1] / (one[1] * other[0])
    return max(ratio, 1 / ratio) <= 1 + TOLERANCE
