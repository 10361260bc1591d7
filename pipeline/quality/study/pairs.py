"""Pairs each mask of a correction study with its correction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pycocotools import mask as coco

from segmint.operators.annotations.pairs import best_matches, iou


@dataclass(frozen=True)
class StudyMask:
    """A mask with its annotation's id, None if that was lost; `rle` is compressed, for pycocotools."""

    id: int | None
    rle: dict[str, Any]


@dataclass(frozen=True)
class MaskPair:
    """A mask that was drawn, by annotation id, and its IoU with its correction."""

    id: int
    iou: float
    by_id: bool


@dataclass(frozen=True)
class ImagePairs:
    """The pairs of one image, its deleted masks (by annotation id) and the number of added masks."""

    pairs: tuple[MaskPair, ...]
    deleted: tuple[int, ...]
    added: int


def ids_hold(drawn: Mapping[int, Sequence[StudyMask]], corrected: Mapping[int, Sequence[StudyMask]]) -> bool:
    """Whether the returned ids are those that were drawn, image by image.

    A tool that renumbers annotations gives some of them the id of a mask of another image; then ids are not used.
    """
    image_of = {mask.id: image for image, masks in drawn.items() for mask in masks}
    known = ((image_of.get(mask.id), image) for image, masks in corrected.items() for mask in masks)
    return all(home in (None, image) for home, image in known)


def pair_masks(drawn: Sequence[StudyMask], corrected: Sequence[StudyMask], by_id: bool) -> ImagePairs:
    """Pair the masks of one image: by annotation id if `by_id`, and the rest by IoU, best pair first.

    A correction without pixels is a deletion. Of several corrections with one id the first counts.
    """
    solid = [mask for mask in corrected if coco.area(mask.rle) > 0]
    pairs: list[MaskPair] = []
    if by_id:
        by_number: dict[int | None, StudyMask] = {}
        for mask in solid:
            by_number.setdefault(mask.id, mask)
        matched = [(mask, by_number[mask.id]) for mask in drawn if mask.id in by_number]
        pairs = [MaskPair(_id(mask), float(iou([mask.rle], [other.rle])[0][0]), True) for mask, other in matched]
        drawn = _without(drawn, [mask for mask, _ in matched])
        solid = _without(solid, [other for _, other in matched])
    matches = best_matches([mask.rle for mask in drawn], [mask.rle for mask in solid])
    pairs += [MaskPair(_id(drawn[row]), value, False) for row, _, value in matches]
    left = _without(drawn, [drawn[row] for row, _, _ in matches])
    return ImagePairs(tuple(pairs), tuple(_id(mask) for mask in left), len(solid) - len(matches))


def _id(mask: StudyMask) -> int:
    if mask.id is None:
        raise ValueError("a mask that was drawn has no id")
    return mask.id


def _without(masks: Sequence[StudyMask], gone: Sequence[StudyMask]) -> list[StudyMask]:
    identities = {id(mask) for mask in gone}
    return [mask for mask in masks if id(mask) not in identities]
