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
"""Maximum side of an image or mask in pixels, which is also JPEG's."""


LARGEST_ID = 2**53
"""Maximum integer that every JSON reader represents exactly."""


class UnreadableMaskError(ValueError):
    """A mask cannot be read; the message gives the reason, without its image's name and its id."""


class CocoRle(TypedDict):
    """A mask in the form of pycocotools: `size` [height, width], and compressed `counts` that fill it."""

    size: list[int]
    counts: bytes


@dataclass(frozen=True)
class AnnotatedMask:
    """One mask of an image: its checked run lengths, and its id and label, if any.

    `crowd` means that it covers a group of objects (COCO's `iscrowd`), and `polygon` that it was drawn as polygons,
    which have no holes. `category` and `stated_area` (pixels) are the category's id and the area in the file, if any,
    and `label_source` is the dataset column of this name, which exports contain.
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
        """Area of the mask in pixels; 0 for an empty one."""
        return int(coco.area(self.rle))

    def pixels(self) -> NDArray[np.bool_]:
        """Decode the mask: (height, width) bool."""
        return np.asarray(coco.decode(self.rle)).astype(bool)


@dataclass(frozen=True)
class AnnotatedImage:
    """Masks of one image. `name` is its file name as written, and `id` is its number in the file.

    `size` is None if neither the file nor a mask specifies it. `unreadable` has a line for each skipped mask, and
    `unreadable_ids` lists their ids, if any. `other` is the size in the file if `size` comes from elsewhere. `saved` is
    the time of saving, in seconds since 1970, if given; the latest result for an image counts. `negative` are the ids
    of categories that an LVIS file states the image doesn't contain, and `not_exhaustive` those of which only some
    objects have masks; `negative` is None for other files.
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
        """Raise `UnreadableMaskError` if a mask's (height, width) differs from the image's, if that is known."""
        if self.size is not None and tuple(found) != self.size:
            height, width = found
            raise UnreadableMaskError(f"{width} x {height} pixels, but its image is {self.size[1]} x {self.size[0]}")

    def leave_out(self, id: int | None, why: object) -> None:
        """List a mask that cannot be read."""
        self.unreadable.append(f"{mask_name(id)}: {why}")
        if id is not None:
            self.unreadable_ids.append(id)


@dataclass(frozen=True)
class AnnotatedFile:
    """Images of a file, in its order. `unreadable` has a line for each entry that belongs to no image.

    `frequencies` maps category ids of LVIS files to their frequency: r, c, or f. `homeless` is the number of masks
    without an image in the file; they may belong to any of its images.
    """

    images: list[AnnotatedImage]
    unreadable: list[str] = field(default_factory=list)
    frequencies: dict[int, str] = field(default_factory=dict)
    homeless: int = 0


def id_number(value: Any) -> int | None:
    """Return an id of a file, also from an integral float; None unless it is a number from 0 to 2^53."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= LARGEST_ID else None


def label_text(value: Any) -> str | None:
    """Return a label that can be written in UTF-8; None if it is not text."""
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
        raise UnreadableMaskError("its counts are neither a list of numbers nor ASCII text")
    try:
        runs.area(runs.Rle((size[0], size[1]), counts))
    except ValueError as error:
        raise UnreadableMaskError(str(error)) from error
    return {"size": size, "counts": counts.encode("ascii")}


def check_pixels(size: Size) -> None:
    """Raise `UnreadableMaskError` if a (height, width) has more pixels than are ever decoded."""
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
