"""Imported masks of images, the common result type of all readers."""

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
    - `category`, `stated_area`: the category's id, and the area in pixels that the file states, if any.
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

    @property
    def area(self) -> int:
        """Area of the mask in pixels, or 0 for an empty mask."""
        return int(coco.area(self.rle))

    def pixels(self) -> NDArray[np.bool_]:
        """Decode the mask to (height, width) bool."""
        return np.asarray(coco.decode(self.rle)).astype(bool)


@dataclass(frozen=True)
class AnnotatedImage:
    """Masks of one image.

    - `name`, `id`: the image's file name as it appears in the file, and its number there.
    - `size`: the image's size, or None if neither the file nor a mask specifies it.
    - `other`: the size according to the file, if `size` comes from elsewhere.
    - `unreadable`, `unreadable_ids`: a line for each skipped mask, and the ids of skipped masks that have one.
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


def mask_name(id: object) -> str:
    """Return the name of a mask for messages: `mask 7`, or `mask without an id`."""
    return "mask without an id" if id is None else f"mask {id}"


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
