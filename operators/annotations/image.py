"""Imported masks of images, the common result type of all readers."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from segmint.catalogs.layout import MOST_PIXELS
from segmint.model.automatic import rle as runs

Size = tuple[int, int]
"""(height, width) in pixels."""

LONGEST_SIDE = 65_535
"""Maximum side of an image or mask in pixels, which is JPEG's maximum."""


LARGEST_ID = 2**53
"""Largest integer up to which every JSON reader represents all integers exactly."""


Box = tuple[float, float, float, float]

_BOX_TOLERANCE = 3
"""Maximum distance in pixels between a mask's edges and those of its box in a file.

That is two pixels, and one more for boxes between the outermost pixels, as in SA-1B.
"""


class UnreadableMaskError(ValueError):
    """Raised when a mask can't be read. The message gives the reason but doesn't name the mask or its image."""


class CocoRle(TypedDict):
    """A mask in pycocotools' format: `size` [height, width], and compressed run lengths `counts` that fill it."""

    size: list[int]
    counts: bytes


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

    rle: CocoRle
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

    def pixels(self) -> NDArray[np.bool_]:
        """Decode the mask to (height, width) bool."""
        return np.asarray(coco.decode(self.rle)).astype(bool)

    def contradiction(self) -> str | None:
        """Return how the mask contradicts the box or the area that the file states, or None if it doesn't.

        Areas may be those of polygons or of boxes, which differ from the number of pixels. Those of polygons that the
        image cuts off can't be compared.
        """
        height, width = self.rle["size"]
        x, y, wide, high = coco.toBbox(self.rle).tolist()
        if self.stated_box is not None:
            left, top, third, fourth = self.stated_box
            boxes = ((left, top, left + third, top + fourth), self.stated_box)
            if not any(_is_near((x, y, x + wide, y + high), box, (height, width)) for box in boxes):
                found, stated = ([round(value, 2) for value in box] for box in ((x, y, wide, high), self.stated_box))
                hint = "" if self.polygon else ". Run lengths go down the columns"
                return f"its pixels are in the box {found}, but its bbox in the file is {stated}{hint}"
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

    def leave_out_contradictions(self) -> None:
        """Leave out masks that contradict what the file states about them, unless most masks agree with it.

        A tool that changes a mask may keep the old box. But if half of the boxes or areas are wrong, the masks were
        probably written in another form than they were read.
        """
        stated = sum(mask.stated_box is not None or bool(mask.stated_area) for mask in self.masks)
        problems = [mask.contradiction() for mask in self.masks]
        wrong = len(problems) - problems.count(None)
        if not wrong or 2 * wrong < stated:
            return
        kept = []
        for mask, problem in zip(self.masks, problems, strict=True):
            if problem is None:
                kept.append(mask)
            else:
                self.leave_out(mask.id, f"{problem} ({wrong} of {stated} masks of the image are wrong like this)")
        self.masks[:] = kept


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


def id_number(value: Any) -> int | None:
    """Return an id from a file as an integer from 0 to 2^53, or None if it isn't one. Integral floats are accepted."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= LARGEST_ID else None


def label_text(value: Any) -> str | None:
    """Return a label in a form that UTF-8 can encode, or None if it isn't text."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else None


def stated_area(value: Any) -> float | None:
    """Return an area from a file, or None if it isn't a number from 0."""
    return float(value) if type(value) in (int, float) and 0 <= value <= sys.float_info.max else None


def stated_box(value: Any) -> Box | None:
    """Return a box from a file, or None if it isn't four numbers.

    Boxes of zeros are placeholders, and boxes within the first pixel are shares of the image, so they are None, too.
    """
    if not isinstance(value, list) or len(value) != 4:
        return None
    if not all(type(each) in (int, float) and abs(each) <= sys.float_info.max for each in value) or max(value) <= 1:
        return None
    x, y, third, fourth = (float(each) for each in value)
    return x, y, third, fourth


def mask_name(id: object) -> str:
    """Return the name of a mask for messages: `mask 7`, or `mask without an id`."""
    return "mask without an id" if id is None else f"mask {id}"


def _is_near(found: Box, stated: Box, size: Size) -> bool:
    """Return whether two boxes (left, top, right, bottom) are nearly equal within an image of `size`."""
    for place, (ours, theirs) in enumerate(zip(found, stated, strict=True)):
        inside = min(max(theirs, 0), size[1 - place % 2])
        if abs(ours - inside) > _BOX_TOLERANCE:
            return False
    return True


def encode_mask(mask: NDArray[Any]) -> CocoRle:
    """Encode a mask, (height, width) bool or uint8."""
    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"]}


def checked_rle(segmentation: Mapping[str, Any]) -> CocoRle:
    """Check COCO's run lengths, compressed or not. Return them compressed and safe to decode.

    If the runs didn't fill the size, pycocotools would read out of bounds. Raises `UnreadableMaskError`.
    """
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(_is_side(side) for side in size):
        raise UnreadableMaskError(f"its size is {str(size)[:40]}: expected [height, width] in pixels")
    check_pixels((size[0], size[1]))
    if isinstance(counts, list):
        counts = _compressed(counts)
    if not isinstance(counts, str) or not counts.isascii():
        raise UnreadableMaskError("its counts are neither a list of numbers nor ASCII text")
    try:
        runs.area(runs.Rle((size[0], size[1]), counts))
    except ValueError as error:
        raise UnreadableMaskError(str(error)) from error
    lengths = runs.decompress(counts)
    if not lengths[1:].all():  # pycocotools measures wrong boxes if runs are empty
        ends = np.cumsum(lengths)
        filled = lengths[1::2] > 0
        counts = runs.encode_runs((ends - lengths)[1::2][filled], ends[1::2][filled], (size[0], size[1])).counts
    return {"size": size, "counts": counts.encode("ascii")}


def check_pixels(size: Size) -> None:
    """Raise `UnreadableMaskError` if a size (height, width) exceeds the maximum number of pixels for decoding."""
    if size[0] * size[1] > MOST_PIXELS:
        raise UnreadableMaskError(
            f"its size is {size[1]} x {size[0]}, {size[0] * size[1]:,} pixels: the limit is {MOST_PIXELS:,}"
        )


def _is_side(value: object) -> bool:
    return type(value) is int and 0 < value <= LONGEST_SIDE


def _compressed(counts: list[Any]) -> str:
    if not all(type(run) is int for run in counts):
        raise UnreadableMaskError("its counts are not integers")
    if any(not 0 <= run <= LONGEST_SIDE**2 for run in counts):
        raise UnreadableMaskError("its counts contain a number that is negative or larger than any image")
    return runs.compress(np.array(counts, dtype=np.int64))
