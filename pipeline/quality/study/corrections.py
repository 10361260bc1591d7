"""Corrected masks of a study, from COCO JSON, Label Studio, or Label Studio's converter, paired with the drawn masks.

"Drawn" masks are the masks that were drawn into the study's sample.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pycocotools.mask import area

from segmint.catalogs.layout import image_name
from segmint.operators.annotations import coco, label_studio
from segmint.operators.annotations.image import AnnotatedImage, Size
from segmint.operators.annotations.names import image_number
from segmint.operators.annotations.pairs import best_matches, iou


@dataclass(frozen=True)
class StudyMask:
    """Mask with its annotation id, or None if a tool lost the id. `rle` is compressed, as pycocotools expects."""

    id: int | None
    rle: dict[str, Any]


@dataclass(frozen=True)
class MaskPair:
    """Drawn mask, identified by its annotation id, with the IoU between it and its correction."""

    id: int
    iou: float
    by_id: bool


@dataclass(frozen=True)
class ImagePairs:
    """Pairs in an image, the annotation ids of its deleted masks, and the number of added masks."""

    pairs: tuple[MaskPair, ...]
    deleted: tuple[int, ...]
    added: int


def ids_hold(drawn: Mapping[int, Sequence[StudyMask]], corrected: Mapping[int, Sequence[StudyMask]]) -> bool:
    """Return whether each returned id belongs to a drawn mask of the same image, so that ids can be used for pairing.

    Some tools renumber annotations, so that a mask gets the id of a mask in another image. New ids are allowed.
    """
    image_of = {}
    for image, masks in drawn.items():
        for mask in masks:
            image_of[mask.id] = image
    for image, masks in corrected.items():
        for mask in masks:
            if image_of.get(mask.id) not in (None, image):
                return False
    return True


def pair_masks(drawn: Sequence[StudyMask], corrected: Sequence[StudyMask], by_id: bool) -> ImagePairs:
    """Pair the drawn masks of an image with their corrections.

    If `by_id` is set, masks with the same annotation id are paired first. The remaining masks are paired by IoU, best
    pair first. A correction without pixels is a deletion. If several corrections have the same id, the first one
    counts.
    """
    solid = [mask for mask in corrected if area(mask.rle) > 0]
    pairs: list[MaskPair] = []
    if by_id:
        by_number: dict[int | None, StudyMask] = {}
        for mask in solid:
            by_number.setdefault(mask.id, mask)
        rest, taken = [], []
        for mask in drawn:
            if mask.id in by_number:
                other = by_number[mask.id]
                pairs.append(MaskPair(_id(mask), float(iou([mask.rle], [other.rle])[0][0]), True))
                taken.append(other)
            else:
                rest.append(mask)
        drawn, solid = rest, _without(solid, taken)
    matches = best_matches([mask.rle for mask in drawn], [mask.rle for mask in solid])
    matched = []
    for row, _, value in matches:
        matched.append(drawn[row])
        pairs.append(MaskPair(_id(drawn[row]), value, False))
    deleted = map(_id, _without(drawn, matched))
    return ImagePairs(tuple(pairs), tuple(deleted), len(solid) - len(matches))


def _id(mask: StudyMask) -> int:
    if mask.id is None:
        raise ValueError("a drawn mask has no id")
    return mask.id


def _without(masks: Sequence[StudyMask], gone: Sequence[StudyMask]) -> list[StudyMask]:
    identities = set(map(id, gone))
    return [mask for mask in masks if id(mask) not in identities]


@dataclass
class Corrections:
    """Corrected masks of a study. Each returned image has a key in `masks`, even if all of its masks were deleted.

    `foreign` counts returned images that aren't in the sample. `superseded` counts additional results for an image.
    """

    sizes: Mapping[int, Size]  # sizes of the drawn images, by id
    answers: dict[int, AnnotatedImage] = field(default_factory=dict)
    homeless: list[str] = field(default_factory=list)  # unreadable entries that don't name an image
    foreign: int = 0
    superseded: int = 0

    def add(self, answer: AnnotatedImage) -> None:
        """Add a result for an image. The result that was saved last wins, or the first one if the times are unknown."""
        image = image_number(answer.name)
        if image is None or image not in self.sizes:
            self.foreign += 1
            return
        former = self.answers.get(image)
        self.superseded += former is not None
        if former is None or (former.saved or -math.inf) < (answer.saved or -math.inf):
            self.answers[image] = answer

    @property
    def masks(self) -> dict[int, list[StudyMask]]:
        """Masks of each returned image, by its id."""
        found = {}
        for image, answer in self.answers.items():
            found[image] = [StudyMask(mask.id, dict(mask.rle)) for mask in answer.masks]
        return found

    @property
    def unreadable(self) -> list[str]:
        """Reason for each mask that was skipped."""
        lines = []
        for image, answer in self.answers.items():
            lines += [f"{image_name(image)}, {problem}" for problem in answer.unreadable]
        return [*lines, *self.homeless]

    @property
    def unreadable_ids(self) -> set[int]:
        """Ids of the skipped masks, where known."""
        return {id for answer in self.answers.values() for id in answer.unreadable_ids}

    @property
    def polygons(self) -> int:
        """Number of masks returned as polygons, which lose holes."""
        return sum(mask.polygon for answer in self.answers.values() for mask in answer.masks)

    def size_of(self, name: str) -> Size | None:
        """Return the size of a drawn image, by name."""
        number = image_number(name)
        return None if number is None else self.sizes.get(number)


def read_coco(document: Mapping[str, Any], sizes: Mapping[int, Size]) -> Corrections:
    """Read the masks of a document from `segmint.operators.annotations.coco.parse_coco`.

    Images are identified by file name, because tools renumber them.
    """
    found = Corrections(sizes)
    file = coco.read_coco(document, found.size_of)
    for image in file.images:
        found.add(image)
    found.homeless += file.unreadable
    return found


def read_label_studio(tasks: Iterable[Mapping[str, Any]], sizes: Mapping[int, Size]) -> Corrections:
    """Read the brush strokes from Label Studio's JSON or JSON_MIN.

    For each task, the latest annotation that wasn't canceled counts. A task without such an annotation counts as not
    returned. Raises `KeyError` or `TypeError` if the values aren't tasks.
    """
    found = Corrections(sizes)
    for task in label_studio.read_tasks(tasks, found.size_of):
        found.superseded += task.superseded
        found.add(task.image)
    return found
