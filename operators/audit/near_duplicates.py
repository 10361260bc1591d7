"""Search for nearly identical masks of one image by the IoU of their pixels."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from segmint.model.automatic import rle

_AT_ONCE = 256
"""Number of masks that are compared with all others at once. Memory grows with this times the number of masks."""


class NearDuplicate(NamedTuple):
    """Positions of two masks in the sequence, and the masks' IoU, 0 to 1."""

    first: int
    second: int
    iou: float


def near_duplicates(size: tuple[int, int], counts: Sequence[str], threshold: float) -> list[NearDuplicate]:
    """Return the pairs of masks with an IoU of at least `threshold`, in order of position. `threshold` must be over 0.

    `counts` contains COCO's compressed run lengths of masks of `size` (height, width). Damaged run lengths are skipped.
    """
    places = [place for place, code in enumerate(counts) if _sound(size, code)]
    codes = [{"size": list(size), "counts": counts[place].encode("ascii")} for place in places]
    if len(codes) < 2:
        return []
    found = []
    areas = np.array([coco.area(code) for code in codes])  # pycocotools 2.0.11 returns no areas for over 255 at once
    for first, others in _candidates(areas, coco.toBbox(codes), threshold):
        ious = coco.iou([codes[first]], [codes[other] for other in others], [0] * len(others))[0]
        for other, iou in zip(others, ious, strict=True):
            if iou >= threshold:
                found.append(NearDuplicate(places[first], places[other], float(iou)))
    return found


def _candidates(areas: NDArray[Any], boxes: NDArray[Any], threshold: float) -> Iterator[tuple[int, list[int]]]:
    """Yield each mask with the later masks that may reach the threshold.

    To rule out pairs, this function uses an upper bound of the IoU. The intersection of two masks is at most as large
    as the intersection of their boxes, and at most as large as the smaller mask. Their union is at least as large as
    the larger mask.
    """
    area = areas.astype(np.float64)
    start, end = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    for low in range(0, len(area), _AT_ONCE):
        part = slice(low, low + _AT_ONCE)
        sides = np.minimum(end[part, None], end[None]) - np.maximum(start[part, None], start[None])
        shared = np.minimum(np.prod(np.maximum(sides, 0), axis=-1), np.minimum(area[part, None], area[None]))
        possible = shared >= threshold * np.maximum(np.maximum(area[part, None], area[None]), 1)
        for index, row in enumerate(possible, start=low):
            others = np.flatnonzero(row[index + 1 :]) + index + 1
            if others.size:
                yield index, others.tolist()


def _sound(size: tuple[int, int], code: str) -> bool:
    # pycocotools trusts its input.
    try:
        return code.isascii() and rle.area(rle.Rle(size, code)) > 0
    except ValueError:
        return False
