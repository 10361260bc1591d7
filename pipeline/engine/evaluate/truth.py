"""Ground truth of an evaluation: images with their masks, independent of where they come from."""

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
    """Raised when an image can't be evaluated. The message gives the reason without the image's name."""


class SkippedTruth(NamedTuple):
    """Image or mask that was skipped, with its location and the reason."""

    truth: str
    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.truth}: {self.where}: {self.why}" if self.where else f"{self.truth}: {self.why}"


@dataclass(frozen=True)
class TruthMask:
    """Ground-truth mask, in the frame of its image.

    `id` is the annotation's id, or its index in the file if it has no id. `source` is one of SOURCES in
    `segmint.operators.schemas`, where `label_source` is also defined. Both are None outside datasets. A mask with
    `crowd` covers a group of objects. `category` and `stated_area` come from a COCO file, if present.
    """

    id: int
    rle: CocoRle
    area: int
    label: str | None = None
    source: str | None = None
    crowd: bool = False
    category: int | None = None
    stated_area: float | None = None
    label_source: str | None = None


@dataclass(frozen=True)
class TruthImage:
    """Image with its ground-truth masks, which are nonempty and of the image's size.

    `truth` is the index of the image's dataset or file in the command, and `image_id` is unique within it. `pixels` (H,
    W, 3) uint8 RGB are in the frame of the masks. `columns` contains the image's values by column name, for groups.
    `skipped` contains a line for each skipped mask.

    `label_map` (H, W) int64 exists only if the truth consists of label maps. In it, 0 is the background, and values in
    `ignore` are neither a mask nor background. For an image of an LVIS file, `checked` contains the ids of the
    categories that were checked in the image. `not_exhaustive` contains the ids of the categories for which some
    objects in the image have no mask.
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
    checked: frozenset[int] = frozenset()
    not_exhaustive: frozenset[int] = frozenset()

    @property
    def size(self) -> Size:
        """(height, width) in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


class Decoders(NamedTuple):
    """Image decoders: `own` for images that segmint wrote, and `foreign` for untrusted images."""

    own: JpegDecoder
    foreign: JpegDecoder


@dataclass(frozen=True)
class PendingImage:
    """Image that hasn't been read or decoded yet. `load` may run in any thread, and raises `UnreadableTruthError`."""

    image_id: str
    name: str
    load: Callable[[Decoders], TruthImage]


class TruthPart(Protocol):
    """Unit of work for one worker: a shard of a dataset, or some images of a file. Picklable."""

    @property
    def name(self) -> str:
        """Name of the part for messages."""

    @property
    def images(self) -> int:
        """Number of images in the part."""

    def pending(self) -> Iterator[PendingImage]:
        """Yield the images in order. Raises `SegmintError` if the rest of the part can't be read."""


@dataclass(frozen=True)
class Truth:
    """Dataset or file that an evaluation uses as ground truth.

    `name` is the user's name for it, without credentials. `kind` is one of the kinds in `kinds.py`, and `facts`
    contains digests and choices. `dataset` is the location of a segmint dataset. `categories` are the category ids of a
    COCO file's masks. `frequencies` maps an LVIS file's category ids to their frequency: r, c, or f. With `federated`,
    the file lists the categories that were checked in each image.
    """

    name: str
    kind: str
    parts: Sequence[TruthPart]
    facts: Mapping[str, Any] = field(default_factory=dict)
    skipped: Sequence[SkippedTruth] = ()
    dataset: Location | None = None
    frequencies: Mapping[int, str] = field(default_factory=dict)
    categories: frozenset[int] = frozenset()
    federated: bool = False

    @property
    def images(self) -> int:
        """Number of images to evaluate."""
        return sum(part.images for part in self.parts)


def empty_lines(masks: Sequence[TruthMask]) -> list[str]:
    """Return a line for each mask without pixels."""
    return [f"{mask_name(mask.id)}: it has no pixels" for mask in masks if not mask.area]
