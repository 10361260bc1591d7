"""Masks of images that others made: what the readers of all formats return."""

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
"""Pixels of the longest side that an image or mask may have: no JPEG is longer."""


LARGEST_ID = 2**53
"""Up to it, every reader of JSON has whole numbers exactly."""


class UnreadableMaskError(ValueError):
    """A mask cannot be read; the message says why, without its image's name and its id."""


class CocoRle(TypedDict):
    """A mask as pycocotools takes it: `size` [height, width], and compressed `counts`, which fill it."""

    size: list[int]
    counts: bytes


@dataclass(frozen=True)
class AnnotatedMask:
    """One mask of an image: its run lengths, checked; its id and label, if it has any.

    `crowd`: it covers a group of objects (COCO's `iscrowd`). `polygon`: it was drawn as polygons, which have no holes.
    `category` and `stated_area` (pixels) are the category's id and the area that the file gives, if it does.
    """

    rle: CocoRle
    id: int | None = None
    label: str | None = None
    crowd: bool = False
    polygon: bool = False
    category: int | None = None
    stated_area: float | None = None

    @property
    def area(self) -> int:
        """The mask's pixels; 0 for an empty one."""
        return int(coco.area(self.rle))

    def pixels(self) -> NDArray[np.bool_]:
        """Decode the mask: (height, width) bool."""
        return np.asarray(coco.decode(self.rle)).astype(bool)


@dataclass(frozen=True)
class AnnotatedImage:
    """The masks of one image. `name` is its file name as it was written, `id` the number that its file gives it.

    `size` is None if neither the file nor a mask has it. `unreadable` has a line for each mask that was left out, and
    `unreadable_ids` the ids of those that have one. `other` is the size in the file where `size` is known without it.
    `saved` is when the tool saved it, in seconds since 1970, if the file says so: of several for one image the latest.
    """

    name: str
    id: int | None
    size: Size | None
    masks: list[AnnotatedMask] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    unreadable_ids: list[int] = field(default_factory=list)
    other: Size | None = None
    saved: float | None = None

    def check_size(self, found: Sequence[int]) -> None:
        """Raise `UnreadableMaskError` if a mask's (height, width) is not the image's, where that is known."""
        if self.size is not None and tuple(found) != self.size:
            height, width = found
            raise UnreadableMaskError(f"it is {width} x {height} pixels, its image {self.size[1]} x {self.size[0]}")

    def leave_out(self, id: int | None, why: object) -> None:
        """List a mask that cannot be read."""
        self.unreadable.append(f"{mask_name(id)}: {why}")
        if id is not None:
            self.unreadable_ids.append(id)


@dataclass(frozen=True)
class AnnotatedFile:
    """The images of a file, in its order. `unreadable` has a line for each entry that belongs to no image.

    `frequencies`: of LVIS files, how frequent a category of this id is: r, c or f. `homeless` masks have no image in
    the file: they may be of any of its images.
    """

    images: list[AnnotatedImage]
    unreadable: list[str] = field(default_factory=list)
    frequencies: dict[int, str] = field(default_factory=dict)
    homeless: int = 0


def id_number(value: Any) -> int | None:
    """Return an id of a file, also a whole fraction; None for what is no number from 0 to 2^53."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= LARGEST_ID else None


def label_text(value: Any) -> str | None:
    """Return a label that can be written in UTF-8; None if it is no text."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else None


def mask_name(id: object) -> str:
    """Return a mask's name in messages: `mask 7`, or `mask without an id`."""
    return "mask without an id" if id is None else f"mask {id}"


def encode_mask(mask: NDArray[Any]) -> CocoRle:
    """Encode a mask: (height, width) bool or uint8."""
    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"]}


def checked_rle(segmentation: Mapping[str, Any]) -> CocoRle:
    """Return COCO's run lengths, compressed or not, as compressed ones that are safe to decode.

    pycocotools does not check that the runs fill the size, and reads out of bounds if they do not. Raises
    `UnreadableMaskError`.
    """
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(_is_side(side) for side in size):
        raise UnreadableMaskError(f"its size is {str(size)[:40]}: expected [height, width] in pixels")
    check_pixels((size[0], size[1]))
    if isinstance(counts, list):
        counts = _compressed(counts)
    if not isinstance(counts, str) or not counts.isascii():
        raise UnreadableMaskError("its counts are neither a list of numbers nor text in ascii")
    try:
        runs.area(runs.Rle((size[0], size[1]), counts))
    except ValueError as error:
        raise UnreadableMaskError(str(error)) from error
    return {"size": size, "counts": counts.encode("ascii")}


def check_pixels(size: Size) -> None:
    """Raise `UnreadableMaskError` for a (height, width) with more pixels than are ever decoded."""
    if size[0] * size[1] > MOST_PIXELS:
        raise UnreadableMaskError(
            f"its size is {size[1]} x {size[0]}, {size[0] * size[1]:,} pixels: at most {MOST_PIXELS:,} are decoded"
        )


def _is_side(value: object) -> bool:
    return type(value) is int and 0 < value <= LONGEST_SIDE


def _compressed(counts: list[Any]) -> str:
    if not all(type(run) is int for run in counts):
        raise UnreadableMaskError("its counts are not whole numbers")
    if any(not 0 <= run <= LONGEST_SIDE**2 for run in counts):
        raise UnreadableMaskError("its counts have a number that is negative or larger than any image")
    return runs.compress(np.array(counts, dtype=np.int64))
