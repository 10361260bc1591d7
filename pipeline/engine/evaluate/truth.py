"""What an evaluation takes as truth: the images with their masks, whatever they came from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from segmint.infra.storage.location import Location
from segmint.operators.annotations.image import CocoRle, Size, mask_name
from segmint.operators.decoding import JpegDecoder

Pixels = NDArray[np.uint8]


class UnreadableTruthError(ValueError):
    """An image cannot be evaluated; the message says why, without its name."""


class SkippedTruth(NamedTuple):
    """An image or a mask that was not evaluated: where it is, and why."""

    truth: str
    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.truth}: {self.where}: {self.why}" if self.where else f"{self.truth}: {self.why}"


@dataclass(frozen=True)
class TruthMask:
    """A mask that is taken as truth, in the frame of its image.

    `id` is the annotation's, or its place in the file if it has none. `source` is one of `segmint.operators.schemas`'
    SOURCES, None outside datasets. A `crowd` covers a group of objects. `category` and `stated_area` are a COCO file's,
    where it has them.
    """

    id: int
    rle: CocoRle
    area: int
    label: str | None = None
    source: str | None = None
    crowd: bool = False
    category: int | None = None
    stated_area: float | None = None


@dataclass(frozen=True)
class TruthImage:
    """An image with the masks that are taken as truth, none of them empty, all of the image's size.

    `truth` is the number of its dataset or file in the command; `image_id` is unique in that. `pixels` (H, W, 3) uint8
    RGB are those of the frame of the masks. `label_map` (H, W) int64 if the truth is label maps, 0 for the background;
    its numbers in `ignore` are neither. `skipped`
    has a line for each mask that is not evaluated. `columns` are values of the image by name, for groups.
    """

    truth: int
    image_id: str
    name: str
    pixels: Pixels
    masks: Sequence[TruthMask]
    skipped: Sequence[str] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    label_map: NDArray[np.int64] | None = None
    ignore: frozenset[int] = frozenset()

    @property
    def size(self) -> Size:
        """(height, width) in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


class Decoders(NamedTuple):
    """What decodes pictures: those that segmint wrote, and those of anybody."""

    own: JpegDecoder
    foreign: JpegDecoder


@dataclass(frozen=True)
class PendingImage:
    """An image that is not yet read or decoded; `load` may run in a thread, and raises `UnreadableTruthError`."""

    image_id: str
    name: str
    load: Callable[[Decoders], TruthImage]


class TruthPart(Protocol):
    """Images that one worker reads: a shard of a dataset, or some images of a file. Picklable."""

    @property
    def name(self) -> str:
        """What it is, for messages."""

    @property
    def images(self) -> int:
        """How many images it has."""

    def pending(self) -> Iterator[PendingImage]:
        """The images in their order; raises `SegmintError` where the rest of the part cannot be read."""


@dataclass(frozen=True)
class Truth:
    """One dataset or file of an evaluation.

    `name` is what the user gave, without credentials; `kind` says what it is, `facts` which: digests and choices.
    `dataset` is the place of a segmint dataset.
    `frequencies`: of LVIS files, how frequent a category of this id is: r, c or f. `categories`: of COCO files, the
    ids of the masks' categories.
    """

    name: str
    kind: str
    parts: Sequence[TruthPart]
    facts: Mapping[str, Any] = field(default_factory=dict)
    skipped: Sequence[SkippedTruth] = ()
    dataset: Location | None = None
    frequencies: Mapping[int, str] = field(default_factory=dict)
    categories: frozenset[int] = frozenset()

    @property
    def images(self) -> int:
        """Images with a mask or more."""
        return sum(part.images for part in self.parts)


def empty_lines(masks: Sequence[TruthMask]) -> list[str]:
    """A line for each mask without pixels."""
    return [f"{mask_name(mask.id)}: it has no pixels" for mask in masks if not mask.area]
