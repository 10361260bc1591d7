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
    """A mask cannot be read. The message gives the reason, but not the mask's id or its image's name."""


class CocoRle(TypedDict):
    """A mask in the form of pycocotools: `size` [height, width], and compressed `counts` that fill it."""

    size: list[int]
    counts: bytes


@dataclass(frozen=True)
class AnnotatedMask:
    """One mask of an image: its checked run lengths, and its id and label, if any.

    `crowd` means that the mask covers a group of objects (COCO's `iscrowd`), and `polygon` means that it was drawn as
    polygons, which can't contain holes. `category` and `stated_area` are the category's id and the area in pixels that
    the file states, if any. `label_source` comes from the dataset's column of the same name, which exports contain.
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
    """Masks of one image. `name` is its file name as written in the file, and `id` is its number in the file.

    `size` is None if neither the file nor a mask specifies it. If `size` comes from elsewhere, `other` is the size in
    the file. `unreadable` contains a line for each skipped mask, and `unreadable_ids` the ids of these masks, if any.
    `saved` is when the result was saved, in seconds since 1970, if known; of several, the latest counts.

    An LVIS file states which categories were checked. `negative` contains the ids of the categories that the image
    doesn't contain, and `not_exhaustive` the ids of those of which only some objects have masks. `negative` is None for
    all other files.
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
    """Images of a file, in its order. `unreadable` contains a line for each entry that belongs to no image.

    `frequencies` maps the category ids of an LVIS file to their frequencies: r, c, or f. `homeless` is the number of
    masks for which the file doesn't specify a valid image; they may belong to any of its images.
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
    """Return the name by which messages refer to a mask: `mask 7`, or `mask without an id`."""
    return "mask without an id" if id is None else f"mask {id}"


def encode_mask(mask: NDArray[Any]) -> CocoRle:
    """Encode a mask: (height, width) bool or uint8."""
    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"]}


def checked_rle(segmentation: Mapping[str, Any]) -> CocoRle:
    """Return COCO's run lengths, compressed or not, as compressed ones that are safe to decode.

    Without this check, pycocotools would read out of bounds if the runs don't fill the size. Raises
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
