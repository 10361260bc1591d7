"""Comparison of our masks with the reference generator's: records matched one by one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segmint.model.automatic.rle import MaskRecord


@dataclass(frozen=True)
class RecordComparison:
    """Our records against the reference's.

    `pairs` holds (ours, theirs, IoU) by position; `missing` and `extra` the positions of theirs and ours that
    matched nothing; the others the largest differences among the pairs.
    """

    pairs: tuple[tuple[int, int, float], ...]
    missing: tuple[int, ...]
    extra: tuple[int, ...]
    iou_difference: float
    stability_difference: float
    box_difference: float

    @property
    def same_order(self) -> bool:
        """Whether the pairs have the same order on both sides."""
        theirs = [pair[1] for pair in sorted(self.pairs)]
        return theirs == sorted(theirs)

    @property
    def least_iou(self) -> float:
        """Mask IoU of the worst pair."""
        return min((pair[2] for pair in self.pairs), default=1.0)


def compare(ours: Sequence[MaskRecord], theirs: Sequence[dict[str, Any]]) -> RecordComparison:
    """Pair each of the reference's masks with one of ours, of the same point and crop, at IoU 0.99."""
    from pycocotools import mask as coco  # GPU machines may lack it

    mine = [_coco(record) for record in ours]
    reference = [{**one["segmentation"], "counts": _bytes(one["segmentation"]["counts"])} for one in theirs]
    overlap = np.zeros((len(theirs), len(ours)))
    if mine and reference:
        overlap = np.asarray(coco.iou(mine, reference, [0] * len(reference))).T
    free = set(range(len(ours)))
    pairs = []
    missing = []
    for position, one in enumerate(theirs):
        same = [index for index in free if overlap[position, index] >= 0.99 and _same_prompt(ours[index], one)]
        if not same:
            missing.append(position)
            continue
        best = max(same, key=lambda index: (overlap[position, index], -abs(index - position)))
        free.remove(best)
        pairs.append((best, position, float(overlap[position, best])))
    found = [(ours[index], theirs[position]) for index, position, _ in pairs]
    return RecordComparison(
        tuple(pairs),
        tuple(missing),
        tuple(sorted(free)),
        max((abs(a.predicted_iou - b["predicted_iou"]) for a, b in found), default=0.0),
        max((abs(a.stability_score - b["stability_score"]) for a, b in found), default=0.0),
        max((float(np.abs(np.subtract(a.bbox, b["bbox"])).max()) for a, b in found), default=0.0),
    )


def _same_prompt(record: MaskRecord, other: dict[str, Any]) -> bool:
    return list(record.point_coords) == list(other["point_coords"][0]) and list(record.crop_box) == list(
        other["crop_box"]
    )


def _coco(record: MaskRecord) -> dict[str, Any]:
    return {"size": list(record.segmentation.size), "counts": record.segmentation.counts.encode()}


def _bytes(counts: str | bytes) -> bytes:
    return counts.encode() if isinstance(counts, str) else counts
