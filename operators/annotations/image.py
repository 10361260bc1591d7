"""Imported masks of images, the common result type of all readers, and boxes as prompts."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pycocotools import mask as coco
from pydantic import ValidationError

from segmint.catalogs.findings import RejectedError
from segmint.catalogs.layout import MOST_PIXELS
from segmint.catalogs.source.conform import Prompt, problem_of
from segmint.infra.arrays import Bools, Size
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.model.automatic import rle as runs
from segmint.operators.images import released_prompts

LONGEST_SIDE = 65_535
"""Maximum side of an image or mask in pixels, which is JPEG's maximum."""


LARGEST_ID = 2**53
"""Largest integer up to which every JSON reader represents all integers exactly."""


Box = list[float]

BOX_TOLERANCE = 3
"""Maximum distance in pixels between a mask's edges and those of its box in a file.

That is two pixels, and one more for boxes between the outermost pixels, as in SA-1B.
"""


class UnreadableMaskError(ValueError):
    """Raised when a mask can't be read. The message gives the reason but doesn't name the mask or its image."""


@dataclass(frozen=True)
class AnnotatedMask:
    """One mask of an image: its checked run lengths, and its id and label if it has them.

    - `crowd`: whether the mask covers a group of objects (COCO's `iscrowd`).
    - `polygon`: whether the mask was drawn as polygons, which can't contain holes.
    - `category`: the category's id, if any.
    - `stated_area`, `stated_box`: the area in pixels and the box that the file states, if any. The box is [x, y, width,
      height] or [left, top, right, bottom].
    - `label_source`: the value of the dataset's column of the same name, if the file is an export of a dataset.
    """

    rle: runs.CocoRle
    id: int | None = None
    label: str | None = None
    crowd: bool = False
    polygon: bool = False
    category: int | None = None
    stated_area: float | None = None
    label_source: str | None = None
    stated_box: Box | None = None

    @property
    def area(self) -> int:
        """Area of the mask in pixels, or 0 for an empty mask."""
        return int(coco.area(self.rle))

    def pixels(self) -> Bools:
        """Decode the mask to (height, width) bool."""
        return np.asarray(coco.decode(self.rle)).astype(bool)

    def contradiction(self) -> str | None:
        """Return how the mask contradicts the box or the area that the file states, or None if it doesn't.

        Areas may be those of polygons or of boxes, which differ from the number of pixels. Those of polygons that the
        image cuts off can't be compared.
        """
        height, width = self.rle["size"]
        x, y, wide, high = found = coco.toBbox(self.rle).tolist()
        edges = [x, y, x + wide, y + high]
        if self.stated_box is not None:
            left, top, third, fourth = self.stated_box
            both = [left, top, left + third, top + fourth], self.stated_box
            if not any(edges_fit(each, edges, (height, width)) for each in both):
                hint = "" if self.polygon else ". Run lengths go down the columns"
                return f"its pixels are in the box {found}, but its bbox in the file is {self.stated_box}{hint}"
        is_cut_off = self.polygon and (min(x, y) <= 0 or x + wide >= width or y + high >= height)
        outline = 2 * (wide + high)
        if not self.stated_area or is_cut_off or abs(self.stated_area - wide * high) <= outline:
            return None
        if abs(self.stated_area - self.area) > self.area / 2 + outline:
            return f"it has {self.area:,} pixels, but its area in the file is {self.stated_area:,.0f}"
        return None


@dataclass(frozen=True)
class AnnotatedImage:
    """Masks of one image.

    - `name`, `id`: the image's file name as it appears in the file, and its number there.
    - `size`: the image's size, or None if neither the file nor a mask specifies it.
    - `other`: the size according to the file, if `size` comes from elsewhere.
    - `unreadable`, `unreadable_ids`: a line for each skipped mask, and the ids of skipped masks that have one.
    - `prompts`: a line for each result beside the masks that isn't a mask, but a prompt, such as a keypoint.
    - `saved`: the time at which the annotator saved the result, in seconds since 1970, if known. If there are several
      results for an image, the latest counts.

    An LVIS file states which categories annotators checked. `negative` contains the ids of categories that the image
    doesn't contain. It is None for all other files. `not_exhaustive` contains the ids of categories for which only some
    objects have masks.
    """

    name: str
    id: int | None
    size: Size | None
    masks: list[AnnotatedMask] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    unreadable_ids: list[int] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    other: Size | None = None
    saved: float | None = None
    negative: frozenset[int] | None = None
    not_exhaustive: frozenset[int] = frozenset()

    def check_size(self, found: Sequence[int]) -> None:
        """Raise `UnreadableMaskError` if the image's size is known and differs from a mask's (height, width)."""
        if self.size is not None and tuple(found) != self.size:
            height, width = found
            raise UnreadableMaskError(f"{width} x {height} pixels, but its image is {self.size[1]} x {self.size[0]}")

    def leave_out(self, id: int | None, why: object) -> None:
        """Record a mask that can't be read, with the reason."""
        self.unreadable.append(f"{mask_name(id)}: {why}")
        if id is not None:
            self.unreadable_ids.append(id)

    def leave_out_prompt(self, id: int | None, kind: str, why: str) -> None:
        """Record a prompt. If the image has no masks, it may stand for an object, so it counts as a mask."""
        if self.masks:
            self.prompts.append(f"{mask_name(id)}: {kind}")
        else:
            self.leave_out(id, why)

    def add_runs(self, entry: Any, segmentation: Any, **more: Any) -> None:
        """Add the mask with these run lengths. Its id, area, and box are in `entry`, and `more` are other fields."""
        entry = mapping(entry)
        id = id_number(entry.get("id"))
        try:
            if not isinstance(segmentation, dict):
                raise UnreadableMaskError("it has no run lengths")
            rle = checked_rle(segmentation)
            self.check_size(rle["size"])
        except UnreadableMaskError as error:
            self.leave_out(id, error)
            return
        more |= stated(entry.get("area"), entry.get("bbox"))
        self.masks.append(AnnotatedMask(rle, id, **more))

    def leave_out_contradictions(self) -> None:
        """Leave out masks that contradict what the file states about them, unless most masks agree with it.

        A tool that changes a mask may keep the old box. But if half of the boxes or areas are wrong, the masks were
        probably written in another form than they were read.
        """
        kept = []
        wrong = []
        stated = 0
        for mask in self.masks:
            problem = mask.contradiction()
            if problem is None:
                kept.append(mask)
            else:
                wrong.append((mask.id, problem))
            if mask.stated_box is not None or mask.stated_area:
                stated += 1
        if 2 * len(wrong) >= stated:
            self.masks[:] = kept
            for id, problem in wrong:
                self.leave_out(id, f"{problem} ({len(wrong)} of {stated} masks of the image are wrong like this)")


@dataclass(frozen=True)
class AnnotatedFile:
    """Images of a file, in the file's order.

    - `unreadable`: a line for each entry that doesn't belong to an image.
    - `frequencies`: maps the category ids of an LVIS file to their frequencies: r, c, or f.
    - `homeless`: the number of masks for which the file doesn't specify a valid image. They may belong to any image.
    """

    images: list[AnnotatedImage]
    unreadable: list[str] = field(default_factory=list)
    frequencies: dict[int, str] = field(default_factory=dict)
    homeless: int = 0


def edges_fit(stated: Sequence[float], found: Sequence[float], size: Size) -> bool:
    """Return whether the edges of a box, cut at its image, are at most `BOX_TOLERANCE` pixels from those of another.

    The edges are left, top, right, and bottom.
    """
    inside = np.clip(stated, 0, [*size[::-1], *size[::-1]])
    return bool(np.abs(inside - found).max() <= BOX_TOLERANCE)


def id_number(value: Any) -> int | None:
    """Return an id from a file as an integer from 0 to 2^53, or None if it isn't one. Integral floats are accepted."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= LARGEST_ID else None


def label_text(value: Any) -> str | None:
    """Return a label in a form that UTF-8 can encode, or None if it isn't text."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else None


def stated(area: Any, box: Any) -> dict[str, Any]:
    """Return the fields of a mask that state its area and box, which are None if a file's values aren't such.

    Boxes of zeros are placeholders, and boxes within the first pixel are shares of the image, so they are None, too.
    """
    is_area = _is_number(area) and area >= 0
    is_box = isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)) and max(box) > 1
    return {
        "stated_area": float(area) if is_area else None,
        "stated_box": [float(value) for value in box] if is_box else None,
    }


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST_ID


def mapping(value: Any) -> Mapping[str, Any]:
    """Return a value from a file if it's an object, otherwise an empty one."""
    return value if isinstance(value, Mapping) else {}


def objects(value: Any) -> list[Mapping[str, Any]]:
    """Return the objects in a list from a file, or none if the value isn't a list."""
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def sides(height: Any, width: Any) -> Size | None:
    """Return a size from a file, or None if its sides aren't those of an image."""
    if all(type(side) is int and 0 < side <= LONGEST_SIDE for side in (height, width)):
        return height, width
    return None


def parse_image(
    data: bytes, name: str, size: Size | None, items: str, form: str, parse: Callable[[bytes], Any] = json.loads
) -> tuple[AnnotatedImage, Mapping[str, Any], list[Any]]:
    """Parse the JSON of one image. Return the image without masks, what its file says about it, and the file's `items`.

    Its name is `image.file_name` or, if that is missing, `name`. `size` is the image's (height, width), if known. If
    the file isn't in this form, that is listed in the image.
    """
    try:
        document = parse(data)
        about, found = document["image"], document[items]
        if not isinstance(found, list):
            raise ValueError(f"its `{items}` is not a list")
        written, stated = about.get("file_name"), sides(about.get("height"), about.get("width"))
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        return AnnotatedImage(name, None, size, unreadable=[f"the file is not {form} ({error!r:.200})"]), {}, []
    name = written if isinstance(written, str) and written else name
    return AnnotatedImage(name, None, size or stated, other=stated if size else None), about, found


def mask_name(id: object) -> str:
    """Return the name of a mask for messages: `mask 7`, or `mask without an id`."""
    return "mask without an id" if id is None else f"mask {id}"


def encode_mask(mask: NDArray[Any]) -> runs.CocoRle:
    """Encode a mask, (height, width) bool or uint8."""
    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"]}


def checked_rle(segmentation: Mapping[str, Any]) -> runs.CocoRle:
    """Check COCO's run lengths, compressed or not. Return them compressed and safe to decode.

    If the runs didn't fill the size, pycocotools would read out of bounds. Raises `UnreadableMaskError`.
    """
    size, counts = read_runs(segmentation)
    check_pixels(size)
    code = runs.Rle(size, counts)
    try:
        runs.area(code)
    except ValueError as error:
        raise UnreadableMaskError(str(error)) from error
    rle = code.coco()
    if runs.decompress(counts)[1:].all():
        return rle
    return encode_mask(coco.decode(rle))  # pycocotools measures wrong boxes if runs are empty


def read_runs(segmentation: Mapping[str, Any]) -> tuple[Size, str]:
    """Return the (height, width) and the compressed run lengths of COCO's run lengths, which may not fill the size.

    Raises `UnreadableMaskError`.
    """
    found, counts = segmentation.get("size"), segmentation.get("counts")
    size = sides(*found) if isinstance(found, list) and len(found) == 2 else None
    if size is None:
        raise UnreadableMaskError(f"its size is {str(found)[:40]}: expected [height, width] in pixels")
    if isinstance(counts, list):
        if not all(type(run) is int and 0 <= run <= LONGEST_SIDE**2 for run in counts):
            raise UnreadableMaskError("its counts are not integers, negative, or larger than any image")
        counts = runs.compress(np.array(counts, dtype=np.int64))
    if not isinstance(counts, str) or not counts.isascii():
        raise UnreadableMaskError("its counts are neither a list of numbers nor ASCII text")
    return size, counts


def check_pixels(size: Size) -> None:
    """Raise `UnreadableMaskError` if a size (height, width) exceeds the maximum number of pixels for decoding."""
    if size[0] * size[1] > MOST_PIXELS:
        raise UnreadableMaskError(
            f"its size is {size[1]} x {size[0]}, {size[0] * size[1]:,} pixels: the limit is {MOST_PIXELS:,}"
        )


@dataclass
class BoxFile:
    """Boxes of a file or folder, image by image.

    - `names`: names of the images' files. Those of YOLO have no endings.
    - `read`: returns an image's boxes as a value of `PROMPTS`, given its place in `names`.
    - `crowds`: number of boxes around groups of objects, which are left out.
    - `unreadable`: a line for each box and image that can't be read, and is left out.
    """

    names: list[str]
    read: Callable[[int], dict[str, Any]]
    crowds: int = 0
    unreadable: list[str] = field(default_factory=list)


class UnreadableBoxError(ValueError):
    """Raised when a box can't be read. The message gives the reason."""


def checked_box(box: Any, label: Any, score: Any, frame: tuple[float, float]) -> dict[str, Any]:
    """Return a box in a frame, (width, height), as a prompt. Raises `UnreadableBoxError` if a build would refuse it."""
    prompt = {"box": box, "label": label, "score": score}
    try:
        prompt = Prompt.model_validate(prompt).model_dump()
        released_prompts({"width": frame[0], "height": frame[1], "prompts": [prompt]}, frame, frame)
    except ValidationError as error:
        found, place, expected = problem_of(error)
        raise UnreadableBoxError(f"found {found!r:.60} as {place}; expected {expected}") from error
    except RejectedError as error:
        raise UnreadableBoxError(error.detail.removeprefix("prompts.0 has ")) from error
    return prompt


def read_yolo_settings(data: Location) -> dict[str, Any]:
    """Read YOLO's YAML file about a dataset. The result's `names` maps the classes' numbers to their names.

    Raises `UsageError` if it has no names.
    """
    try:
        settings = mapping(yaml.safe_load(data.read()))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{data} is not YAML: {error}") from error
    names = settings.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not names or not isinstance(names, dict):
        raise UsageError(f"{data} has no `names`; expected a list of the classes' names, or a name for each number")
    return {**settings, "names": names}


def yolo_boxes(folder: Location, data: Location) -> BoxFile:
    """Read the label files below a folder, `<name>.txt`: a line with class, x, y, width, height, and maybe a score.

    x and y are the box's center, and all four are shares of the image's sides. `data` is the YAML file with the names
    of the classes. A label file is read when its boxes are.

    Raises `UsageError` if the YAML file has no names, or if the folder has no labels.
    """
    labels = read_yolo_settings(data)["names"]
    found = (entry.name.removesuffix(".txt") for entry in folder.walk() if entry.name.endswith(".txt"))
    names = sorted(name for name in found if name != "classes")
    unreadable: list[str] = []
    if not names:
        raise UsageError(f"{folder} has no labels; expected a file <name>.txt for each image")

    def read(place: int) -> dict[str, Any]:
        prompts = []
        name = f"{names[place]}.txt"
        for number, fields in label_lines((folder / name).read()):
            try:
                prompts.append(_yolo_box(fields, labels))
            except ValueError as error:
                unreadable.append(f"{name}, line {number}: {error}")
        return {"width": 1.0, "height": 1.0, "prompts": prompts}

    return BoxFile(names, read, unreadable=unreadable)


def label_lines(data: bytes) -> Iterator[tuple[int, list[str]]]:
    """Yield the lines of one of YOLO's label files, each with its number and its values. Blank ones are left out."""
    for number, line in enumerate(data.decode("utf-8-sig", "replace").splitlines(), 1):
        if line.strip():
            yield number, line.split()


def _yolo_box(fields: Sequence[str], labels: Mapping[int, Any]) -> dict[str, Any]:
    if len(fields) not in (5, 6):
        expected = "class, x, y, width, height, and maybe a score; polygons aren't read"
        raise UnreadableBoxError(f"found {len(fields)} values; expected {expected}")
    label = class_name(fields[0], labels)
    x, y, width, height, *scores = map(float, fields[1:])
    box = [x - width / 2, y - height / 2, width, height]
    return checked_box(box, label, scores[0] if scores else None, (1, 1))


def class_name(text: str, labels: Mapping[int, Any]) -> str | None:
    """Return the name of the class in a line, or None if it's null. Raises `UnreadableMaskError` if it isn't listed."""
    if not text.isdecimal() or len(text) > _CLASS_DIGITS or int(text) not in labels:
        raise UnreadableMaskError(f"found the class {text!r:.40}, which has no name")
    name = labels[int(text)]
    return None if name is None else label_text(str(name))


_IMAGE = re.compile(r"(?:^|[^A-Za-z0-9])sa_(\d+)\.\w+$")
_MOST_DIGITS = 18
_CLASS_DIGITS = 9


def image_number(path: str) -> int | None:
    """Extract the id from a path or URL that ends in `sa_<id>.jpg`, even if a tool added a prefix, or return None."""
    match = _IMAGE.search(path)
    return None if match is None or len(match[1]) > _MOST_DIGITS else int(match[1])


def name_and_stem(path: str) -> tuple[str, str]:
    """Return the last part of a path or URL, with and without its file name ending."""
    name = PurePosixPath(path.replace("\\", "/")).name
    return name, PurePosixPath(name).stem
