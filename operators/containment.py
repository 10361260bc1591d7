"""Containment of an image's masks: which larger mask contains each mask, such as a car and its wheel."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

CONTAINED_SHARE = 0.95
"""Share of a mask's pixels that its container must contain."""

AT_ONCE = 128
"""Number of masks that are compared with all larger masks at once, which bounds memory.

pycocotools 2.0.11 returns no areas for more than 255 masks, so this number must not exceed 255.
"""


def find_containers(size: tuple[int, int], counts: Sequence[str]) -> list[int | None]:
    """Return the position of each mask's container among an image's N masks, or None for a mask without a container.

    Larger masks that contain at least `CONTAINED_SHARE` of a mask's pixels are candidates, and the smallest candidate
    is the container. If two masks have the same area, the one at the lower position counts as larger, so containers
    never form a cycle. An empty mask has no container.

    Args:
        size: (height, width) of the image.
        counts: COCO's compressed run lengths of each mask. They must be valid because pycocotools trusts its input.
    """
    found: list[int | None] = [None] * len(counts)
    codes = np.array([{"size": list(size), "counts": each.encode("ascii")} for each in counts], object)
    parts = [slice(start, start + AT_ONCE) for start in range(0, len(counts), AT_ONCE)]
    areas = np.concatenate([np.zeros(0, np.int64), *(coco.area(codes[part].tolist()) for part in parts)])
    order = np.lexsort((-np.arange(len(areas)), areas))  # smallest first
    codes, areas = codes[order], areas[order].astype(np.int64)
    boxes = np.concatenate([np.zeros((0, 4)), *(coco.toBbox(codes[part].tolist()) for part in parts)])
    low, high = boxes[:, :2].T, (boxes[:, :2] + boxes[:, 2:]).T
    for part in parts:
        shared = np.minimum(high[:, part, None], high[:, None]) - np.maximum(low[:, part, None], low[:, None])
        room = np.multiply(*shared.clip(0))  # pixels of the boxes' intersection
        may = np.triu((room >= CONTAINED_SHARE * areas[part, None]) & (areas[part, None] > 0), part.start + 1)
        inner, outer = np.flatnonzero(may.any(axis=1)), np.flatnonzero(may.any(axis=0))
        if not inner.size:
            continue
        # For a "crowd", pycocotools divides the intersection by the first mask's area. Quotients of integers are
        # rounded correctly, so comparing them with 0.95 is exact.
        shares = coco.iou(codes[part][inner].tolist(), codes[outer].tolist(), [1] * outer.size)
        contains = (shares >= CONTAINED_SHARE) & may[np.ix_(inner, outer)]
        for row in np.flatnonzero(contains.any(axis=1)):
            found[order[part.start + inner[row]]] = int(order[outer[contains[row].argmax()]])
    return found


def container_ids(masks: Sequence[Mapping[str, Any]], ids: Sequence[int]) -> list[int | None]:
    """Compute the column `container` of an image's masks, whose annotation ids are `ids`; see `find_containers`."""
    if not masks:
        return []
    height, width = masks[0]["segmentation"]["size"]
    places = find_containers((height, width), [mask["segmentation"]["counts"] for mask in masks])
    return [None if place is None else ids[place] for place in places]
