"""COCO's own evaluation of predicted masks against ground truth, one image at a time.

`COCOeval` reads whole datasets and keeps all matches as float64 arrays. This module calls its functions for one image
at a time. The metrics are the same, but only counts, or one bit per match, stay in memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco
from pycocotools.cocoeval import COCOeval, Params

from segmint.operators.annotations.image import CocoRle

AREAS = ("all", "small", "medium", "large")
"""COCO's size ranges. A small mask has at most 32² pixels, and a large mask at least 96²."""

IOU_THRESHOLDS: tuple[float, ...] = tuple(Params().iouThrs.tolist())
"""0.5, 0.55, … 0.95."""

_KEY = (0, 0)  # the only image and the only category of an evaluation


@dataclass(frozen=True)
class TrueMask:
    """A ground-truth mask. `area` determines its size range. A `crowd` never counts as found or missed."""

    rle: CocoRle
    area: float
    crowd: bool = False


@dataclass(frozen=True)
class PredictedMask:
    """A predicted mask. Masks with a higher score are matched first."""

    rle: CocoRle
    score: float


@dataclass(frozen=True)
class RecallCounts:
    """Number of ground-truth masks that predictions found in one or more images. Add counts to combine images.

    Attributes:
        found: (limits, areas, IoU thresholds) int64, found by the best predictions up to each limit.
        truth: (areas,) int64, ground-truth masks without crowds.
    """

    found: NDArray[np.int64]
    truth: NDArray[np.int64]

    def __add__(self, other: "RecallCounts") -> "RecallCounts":
        """Add the counts of other images."""
        return RecallCounts(self.found + other.found, self.truth + other.truth)

    def average_recall(self) -> list[list[float | None]]:
        """Return recall averaged over IoU thresholds, for each limit and each of `AREAS`, or None without masks."""
        return [
            [float(np.mean(hits / total)) if total else None for hits, total in zip(areas, self.truth, strict=True)]
            for areas in self.found
        ]


@dataclass(frozen=True)
class ImageMatches:
    """The best predictions for one image and category, best first, with their matches (see `match_masks`).

    Attributes:
        scores: (D,) float64.
        bits: whether each prediction is matched and whether it is ignored, (2, areas, IoU thresholds, D) bool, packed.
        truth: (areas,) int64, ground-truth masks that are not ignored.
    """

    scores: NDArray[np.float64]
    bits: NDArray[np.uint8]
    truth: NDArray[np.int64]

    def unpacked(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return whether each prediction is matched and whether it is ignored, (areas, IoU thresholds, D) bool each."""
        shape = (2, len(AREAS), len(IOU_THRESHOLDS), len(self.scores))
        matched, ignored = np.unpackbits(self.bits, count=int(np.prod(shape))).view(np.bool_).reshape(shape)
        return matched, ignored


def recall_counts(truth: Sequence[TrueMask], found: Sequence[PredictedMask], limits: Sequence[int]) -> RecallCounts:
    """Count the ground-truth masks that an image's best predictions find, up to each of the ascending `limits`.

    The result equals that of `COCOeval` with `useCats=0` and `maxDets=limits`. `COCOeval` matches in a Python loop over
    all pairs. To save time, this function skips predictions whose IoU with every true mask is below all thresholds,
    because they can't affect the result.
    """
    ranked = sorted(found, key=lambda mask: -mask.score)[: limits[-1]]
    overlap = _overlaps(truth, ranked)
    ranks = np.flatnonzero((overlap >= IOU_THRESHOLDS[0]).any(axis=1))
    results = _evaluate(truth, [ranked[rank] for rank in ranks], overlap[ranks], limits[-1])
    hits = results.matched & ~results.ignored
    counts = [hits[..., ranks < limit].sum(axis=-1) for limit in limits]
    return RecallCounts(np.array(counts, dtype=np.int64), results.truth)


def match_masks(
    truth: Sequence[TrueMask], found: Sequence[PredictedMask], most: int = 100, exhaustive: bool = True
) -> ImageMatches:
    """Match the `most` best predictions of one image and category with the ground truth, like `COCOeval`.

    If the ground truth isn't `exhaustive`, unmatched predictions count as neither right nor wrong, as in LVIS.
    """
    ranked = sorted(found, key=lambda mask: -mask.score)[:most]
    results = _evaluate(truth, ranked, _overlaps(truth, ranked), most)
    ignored = results.ignored if exhaustive else results.ignored | ~results.matched
    scores = np.array([mask.score for mask in ranked], dtype=np.float64)
    return ImageMatches(scores, np.packbits(np.stack([results.matched, ignored])), results.truth)


@dataclass(frozen=True)
class _ImageEvaluation:
    """Results of `COCOeval.evaluateImg`, one per size range. The arrays have the shapes of `ImageMatches`."""

    results: list[dict[str, Any]]

    @cached_property
    def matched(self) -> NDArray[np.bool_]:
        return np.stack([result["dtMatches"] > 0 for result in self.results])

    @cached_property
    def ignored(self) -> NDArray[np.bool_]:
        return np.stack([result["dtIgnore"].astype(bool) for result in self.results])

    @cached_property
    def truth(self) -> NDArray[np.int64]:
        return np.array([np.count_nonzero(result["gtIgnore"] == 0) for result in self.results], dtype=np.int64)


def _overlaps(truth: Sequence[TrueMask], found: Sequence[PredictedMask]) -> NDArray[np.float64]:
    """Return the IoU of each pair, (found, truth). For a crowd, return the share of the prediction that it covers."""
    if not truth or not found:
        return np.zeros((len(found), len(truth)))
    crowds = [int(mask.crowd) for mask in truth]
    return np.asarray(coco.iou([mask.rle for mask in found], [mask.rle for mask in truth], crowds), dtype=np.float64)


def _evaluate(
    truth: Sequence[TrueMask], found: Sequence[PredictedMask], overlaps: NDArray[np.float64], most: int
) -> _ImageEvaluation:
    evaluation = COCOeval(iouType="segm")
    # This is the data that `evaluate` prepares from files. Ids begin with 1, because 0 means no match.
    evaluation._gts[_KEY] = [
        {"id": id, "area": mask.area, "iscrowd": int(mask.crowd), "ignore": int(mask.crowd)}
        for id, mask in enumerate(truth, start=1)
    ]
    evaluation._dts[_KEY] = [
        {"id": id, "area": float(coco.area(mask.rle)), "score": mask.score} for id, mask in enumerate(found, start=1)
    ]
    evaluation.ious[_KEY] = overlaps if overlaps.size else []
    nothing = {
        "dtMatches": np.zeros((len(IOU_THRESHOLDS), 0)),
        "dtIgnore": np.zeros((len(IOU_THRESHOLDS), 0)),
        "gtIgnore": np.zeros(0),
    }
    ranges = evaluation.params.areaRng
    return _ImageEvaluation([evaluation.evaluateImg(*_KEY, area, most) or nothing for area in ranges])
