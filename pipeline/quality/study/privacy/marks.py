"""Reader of the boxes that people drew in a privacy study, from COCO JSON or Label Studio's exports."""

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
"""Left, top, right, and bottom edges, in pixels of an image."""

_DIGITS = 3  # absorbs rounding errors of tools that write pixels as percentages


class UnreadableMarkError(ValueError):
    """Error for an unreadable box, with the reason as its message."""


@dataclass(frozen=True)
class Mark:
    """Box around something that should have been redacted, in whole pixels inside the released image."""

    kind: str
    x: int
    y: int
    w: int
    h: int


@dataclass
class Marks:
    """Marked boxes. An image that someone reviewed has a key in `found`, even without any marks.

    If an image was reviewed several times, all marks count, because one sighting is enough. `unreadable` lists the
    reason for each unreadable mark, and `doubtful` their images. `foreign` counts images that were not drawn, and
    `further` the repeated reviews of an image.
    """

    sizes: Mapping[int, Size]  # of the drawn images, by id
    found: dict[int, list[Mark]] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    doubtful: set[int] = field(default_factory=set)
    foreign: int = 0
    further: int = 0

    def begin(self, image: int | None) -> int | None:
        """Record a review of an image, and return the image's id if the review counts."""
        if image is None or image not in self.sizes:
            self.foreign += 1
            return None
        self.further += image in self.found
        self.found.setdefault(image, [])
        return image

    def take(self, image: int, kind: Any, box: Box, size: tuple[Any, Any] | None) -> None:
        """Add a box; `size` is the image's size according to the tool.

        Raises `UnreadableMarkError` for a kind that is not in `KINDS`, a different size, or a box without any pixel.
        """
        height, width = self.sizes[image]
        if size is not None and size != (width, height):
            raise UnreadableMarkError(
                f"it was drawn in an image of {size[0]} x {size[1]} pixels, but the released one is {width} x {height}"
            )
        name = str(kind).strip().lower()
        if name not in KINDS:
            raise UnreadableMarkError(f"its label is {kind!r}, expected {', '.join(KINDS)}")
        left, top = (max(0, math.floor(round(value, _DIGITS))) for value in box[:2])
        right, bottom = (math.ceil(round(value, _DIGITS)) for value in box[2:])
        right, bottom = min(width, right), min(height, bottom)
        if right <= left or bottom <= top:
            raise UnreadableMarkError(f"its box {list(box)} is outside the image")
        self.found[image].append(Mark(name, left, top, right - left, bottom - top))

    def leave_out(self, image: int, id: object, why: object) -> None:
        """Record an unreadable mark."""
        self.unreadable.append(f"{image_name(image)}, mark {'without an id' if id is None else id}: {why}")
        self.doubtful.add(image)


def read_marks(file: Location, sizes: Mapping[int, Size]) -> Marks:
    """Read the marks in a file. Raises `UsageError` if the file is missing, or neither COCO nor Label Studio's."""
    try:
        document = json.loads(file.read())
        if isinstance(document, list):
            return read_label_studio(document, sizes)
        return read_coco(document, sizes)
    except NotFoundError as error:
        raise UsageError(f"{file} doesn't exist. Pass the annotators' file with --corrected") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{file} can't be read as marks ({type(error).__name__}: {error}): expected COCO JSON, or Label Studio's "
            "JSON or JSON_MIN"
        ) from error


def read_coco(document: Mapping[str, Any], sizes: Mapping[int, Size]) -> Marks:
    """Read the boxes of a COCO document, whose images are those that people reviewed.

    Images are identified by file name, because tools renumber them. Raises `KeyError` or `TypeError` if the document is
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
            raise ValueError(f"a mark is in image {annotation['image_id']!r}, which isn't in the file")
        if home is None:
            continue  # already counted as foreign
        try:
            marks.take(home[0], kinds[annotation["category_id"]], _coco_box(annotation), home[1])
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            marks.leave_out(home[0], annotation.get("id"), _why(error))
    return marks


def read_label_studio(tasks: Iterable[Mapping[str, Any]], sizes: Mapping[int, Size]) -> Marks:
    """Read the rectangles of Label Studio's JSON or JSON_MIN.

    All annotations of a task that were not canceled count; a task without one is not reviewed. Raises `KeyError` or
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
            raise UnreadableMarkError(f"its type is {region.get('type')}, not a rectangle with a label")
        sized = {**region, **value}  # JSON_MIN stores the size in the value
        size = (sized["original_width"], sized["original_height"])
        labels = value["rectanglelabels"]
        marks.take(number, labels[0] if len(labels) == 1 else labels, _box(value, *size), size)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        marks.leave_out(number, region.get("id"), _why(error))


def _box(value: Mapping[str, Any], width: float, height: float) -> Box:
    """Return the box around a Label Studio rectangle, in percent and rotated clockwise about its top left."""
    x, w = (value[key] * width / 100 for key in ("x", "width"))
    y, h = (value[key] * height / 100 for key in ("y", "height"))
    return _turned((x, y, x + w, y + h), value.get("rotation"), (x, y))


def _coco_box(annotation: Mapping[str, Any]) -> Box:
    """Return the box around a COCO box, which CVAT rotates clockwise about its center."""
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
