"""Reads the boxes that people drew in a privacy study, from COCO JSON or Label Studio's exports."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from segmint.catalogs.layout import image_name
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.operators.annotations.image import Size
from segmint.operators.annotations.label_studio import answers_of
from segmint.operators.annotations.names import image_number
from segmint.pipeline.quality.study.privacy.sample import KINDS

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels of an image."""

_DIGITS = 3  # tools write pixels as percentages: what is left of that is no part of another pixel


class UnreadableMarkError(ValueError):
    """A box cannot be read; the message says why."""


@dataclass(frozen=True)
class Mark:
    """A box around something that should have been redacted, in whole pixels of the released image, inside it."""

    kind: str
    x: int
    y: int
    w: int
    h: int


@dataclass
class Marks:
    """What people marked. An image that somebody answered has a key in `found`, also if nothing was marked in it.

    The marks of several answers for an image all count: what one person saw is there. `unreadable` has the reason for
    each mark that cannot be read, `doubtful` the images of these. `foreign` counts images that were not drawn,
    `further` the answers for an image after its first.
    """

    sizes: Mapping[int, Size]  # of the images drawn, by id
    found: dict[int, list[Mark]] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    doubtful: set[int] = field(default_factory=set)
    foreign: int = 0
    further: int = 0

    def begin(self, image: int | None) -> int | None:
        """Record an answer for an image; returns the image's id if the answer counts."""
        if image is None or image not in self.sizes:
            self.foreign += 1
            return None
        self.further += image in self.found
        self.found.setdefault(image, [])
        return image

    def take(self, image: int, kind: Any, box: Box, size: tuple[Any, Any] | None) -> None:
        """Add a box; `size` is the image's, as the tool knows it.

        Raises `UnreadableMarkError` for a kind that is not one of `KINDS`, another size, or a box without a pixel.
        """
        height, width = self.sizes[image]
        if size is not None and size != (width, height):
            raise UnreadableMarkError(
                f"it was drawn in an image of {size[0]} x {size[1]} pixels, released are {width} x {height}"
            )
        name = str(kind).strip().lower()
        if name not in KINDS:
            raise UnreadableMarkError(f"its label is {kind!r}, expected {', '.join(KINDS)}")
        left, top = (max(0, math.floor(round(value, _DIGITS))) for value in box[:2])
        right, bottom = (math.ceil(round(value, _DIGITS)) for value in box[2:])
        right, bottom = min(width, right), min(height, bottom)
        if right <= left or bottom <= top:
            raise UnreadableMarkError(f"its box {list(box)} has no pixel of the image")
        self.found[image].append(Mark(name, left, top, right - left, bottom - top))

    def leave_out(self, image: int, id: object, why: object) -> None:
        """Record a mark that cannot be read."""
        self.unreadable.append(f"{image_name(image)}, mark {'without an id' if id is None else id}: {why}")
        self.doubtful.add(image)


def read_marks(file: Location, sizes: Mapping[int, Size]) -> Marks:
    """Read what people marked; raises `UsageError` if the file is missing, or neither COCO nor Label Studio's."""
    try:
        document = json.loads(file.read())
        if isinstance(document, list):
            return read_label_studio(document, sizes)
        return read_coco(document, sizes)
    except NotFoundError as error:
        raise UsageError(f"{file} does not exist: name the file that people made with --corrected") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{file} cannot be read as marks ({type(error).__name__}: {error}): expected COCO JSON, or Label Studio's "
            "JSON or JSON_MIN"
        ) from error


def read_coco(document: Mapping[str, Any], sizes: Mapping[int, Size]) -> Marks:
    """Read the boxes of a COCO document, whose images are those that somebody looked at.

    Images are identified by file name, since tools renumber them. Raises `KeyError` or `TypeError` if the document is
    not COCO.
    """
    marks = Marks(sizes)
    kinds = {category["id"]: category["name"] for category in document["categories"]}
    images: dict[Any, tuple[int, tuple[Any, Any] | None]] = {}
    known = {image["id"] for image in document["images"]}
    for image in document["images"]:
        number = marks.begin(image_number(image["file_name"]))
        if number is not None:
            size = (image["width"], image["height"]) if "width" in image and "height" in image else None
            images[image["id"]] = number, size
    for annotation in document["annotations"]:
        home = images.get(annotation["image_id"])
        if annotation["image_id"] not in known:
            raise ValueError(f"a mark is in an image {annotation['image_id']!r}, which the file does not have")
        if home is None:
            continue  # its image was counted as foreign
        try:
            marks.take(home[0], kinds[annotation["category_id"]], _coco_box(annotation), home[1])
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            marks.leave_out(home[0], annotation.get("id"), _why(error))
    return marks


def read_label_studio(tasks: Iterable[Mapping[str, Any]], sizes: Mapping[int, Size]) -> Marks:
    """Read the rectangles of Label Studio's JSON or JSON_MIN.

    All annotations of a task count that were not canceled; a task without one has no answer. Raises `KeyError` or
    `TypeError` if these are not tasks.
    """
    marks = Marks(sizes)
    for task in tasks:
        for regions in answers_of(task):
            number = marks.begin(image_number(str(task.get("data", task)["image"])))
            if number is None:
                continue
            for region in regions:
                _take_region(marks, number, region)
    return marks


def _take_region(marks: Marks, number: int, region: Mapping[str, Any]) -> None:
    value = region.get("value", region)
    try:
        if "rectanglelabels" not in value:
            raise UnreadableMarkError(f"it is of type {region.get('type')}, not a rectangle with a label")
        sized = {**region, **value}  # JSON_MIN has the size in the value
        size = (sized["original_width"], sized["original_height"])
        labels = value["rectanglelabels"]
        marks.take(number, labels[0] if len(labels) == 1 else labels, _box(value, *size), size)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        marks.leave_out(number, region.get("id"), _why(error))


def _box(value: Mapping[str, Any], width: float, height: float) -> Box:
    """Return the box around a rectangle of Label Studio: in percent, turned clockwise about its upper left corner."""
    x, w = (value[key] * width / 100 for key in ("x", "width"))
    y, h = (value[key] * height / 100 for key in ("y", "height"))
    return _turned((x, y, x + w, y + h), value.get("rotation"), (x, y))


def _coco_box(annotation: Mapping[str, Any]) -> Box:
    """Return the box around a COCO box, which CVAT turns clockwise about its center."""
    x, y, w, h = annotation["bbox"]
    rotation = (annotation.get("attributes") or {}).get("rotation")
    return _turned((x, y, x + w, y + h), rotation, (x + w / 2, y + h / 2))


def _turned(box: Box, degrees: float | None, pivot: tuple[float, float]) -> Box:
    if not degrees:
        return box
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = [(x - pivot[0], y - pivot[1]) for x in box[::2] for y in box[1::2]]
    xs = [pivot[0] + x * cosine - y * sine for x, y in corners]
    ys = [pivot[1] + x * sine + y * cosine for x, y in corners]
    return min(xs), min(ys), max(xs), max(ys)


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, UnreadableMarkError) else f"{type(error).__name__}: {error}"
