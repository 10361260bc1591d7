"""Pairs each mask of a correction study with its correction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pycocotools import mask as coco

LEAST_IOU = 0.1
"""The least IoU of masks that are paired without an id."""


@dataclass(frozen=True)
class StudyMask:
    """A mask with its annotation's id, None if that was lost; `rle` is compressed, for pycocotools."""

    id: int | None
    rle: dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """A mask that was drawn, by annotation id, and its IoU with its correction."""

    id: int
    iou: float
    by_id: bool


@dataclass(frozen=True)
class ImagePairs:
    """The pairs of one image, its deleted masks (by annotation id) and the number of added masks."""

    pairs: tuple[Pair, ...]
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
    pairs: list[Pair] = []
    if by_id:
        by_number: dict[int | None, StudyMask] = {}
        for mask in solid:
            by_number.setdefault(mask.id, mask)
        matched = [(mask, by_number[mask.id]) for mask in drawn if mask.id in by_number]
        pairs = [Pair(_id(mask), float(iou([mask], [other])[0][0]), True) for mask, other in matched]
        drawn = _without(drawn, [mask for mask, _ in matched])
        solid = _without(solid, [other for _, other in matched])
    matches = best_matches(drawn, solid)
    pairs += [Pair(_id(drawn[row]), value, False) for row, _, value in matches]
    left = _without(drawn, [drawn[row] for row, _, _ in matches])
    return ImagePairs(tuple(pairs), tuple(_id(mask) for mask in left), len(solid) - len(matches))


def best_matches(rows: Sequence[StudyMask], columns: Sequence[StudyMask]) -> list[tuple[int, int, float]]:
    """Return pairs of positions with their IoU, best first, none used twice, none under `LEAST_IOU`."""
    matrix = iou(rows, columns)
    candidates = sorted(
        (-float(matrix[row][column]), row, column)
        for row in range(len(rows))
        for column in range(len(columns))
        if matrix[row][column] >= LEAST_IOU
    )
    matches: list[tuple[int, int, float]] = []
    used_rows: set[int] = set()
    used_columns: set[int] = set()
    for value, row, column in candidates:
        if row not in used_rows and column not in used_columns:
            matches.append((row, column, -value))
            used_rows.add(row)
            used_columns.add(column)
    return matches


def iou(rows: Sequence[StudyMask], columns: Sequence[StudyMask]) -> Any:
    """Return the intersection over union of all pairs, (rows, columns) float64; empty if either is."""
    return coco.iou([mask.rle for mask in rows], [mask.rle for mask in columns], [0] * len(columns))


def _id(mask: StudyMask) -> int:
    if mask.id is None:
        raise ValueError("a mask that was drawn has no id")
    return mask.id


def _without(masks: Sequence[StudyMask], gone: Sequence[StudyMask]) -> list[StudyMask]:
    identities = {id(mask) for mask in gone}
    return [mask for mask in masks if id(mask) not in identities]
