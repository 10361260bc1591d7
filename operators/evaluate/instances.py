"""Scores of instances: masks for boxes, matching as in COCO, average precision, and average recall.

COCO's own evaluation of predicted masks against ground truth, one image at a time.

`COCOeval` reads whole datasets and keeps all matches as float64 arrays. This module calls its functions for one image
at a time. The metrics are the same, but only counts, or one bit per match, stay in memory.

COCO's average precision and recall, and LVIS's, of one or two models over any selection of the images.

Intervals and tests repeat the accumulation many times, and `COCOeval` and LVIS's implementation are too slow for that.
The results equal those of `COCOeval` and of LVIS's federated evaluation (Gupta et al. 2019, arXiv 1908.03195).

In LVIS, annotators checked only some categories in each image. So a prediction counts only if its category occurs in
the image's annotations or in its `neg_category_ids`. For categories in `not_exhaustive_category_ids`, unmatched
predictions count as neither right nor wrong.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from pycocotools.cocoeval import COCOeval, Params
from scipy.optimize import linear_sum_assignment

from segmint.infra.arrays import Bools, Bytes, Floats, Ints, Pixels, Size
from segmint.model.automatic.candidates import CandidateMasks
from segmint.model.automatic.generator import MaskGenerator, RawMasks
from segmint.model.automatic.rle import CocoRle
from segmint.model.automatic.settings import MaskSettings
from segmint.model.sam.predictor import Embedding, Predictor
from segmint.operators.annotations.image import encode_mask

_BOXES_AT_ONCE = 8  # number of boxes; the full-size logits of each take 4 bytes per pixel


@dataclass(frozen=True)
class BoxMask:
    """Mask for a box, and the model's own estimate of the mask's IoU."""

    rle: CocoRle
    predicted_iou: float


@torch.inference_mode()
def segment_boxes(predictor: Predictor, embedding: Embedding, boxes: Floats, refine: bool = True) -> list[BoxMask]:
    """Draw a mask for each box, (N, 4) as x0, y0, x1, y1 in pixels of the embedding's frame.

    The model draws three masks for each box, and the mask with the highest predicted IoU wins. With `refine`, the model
    then receives the logits of that mask along with the box, as in the paper, and draws a single mask. Drawing a single
    mask for several prompts matches training.
    """
    found: list[BoxMask] = []
    for start in range(0, len(boxes), _BOXES_AT_ONCE):
        chunk = boxes[start : start + _BOXES_AT_ONCE]
        masks = predictor.predict(embedding, boxes=chunk)
        best = masks.predicted_iou.argmax(dim=1)
        rows = torch.arange(len(best), device=best.device)
        logits, predicted_iou = masks.low_res_logits[rows, best][:, None], masks.predicted_iou[rows, best]
        if refine:
            masks = predictor.predict(embedding, boxes=chunk, masks=logits, multimask=False)
            logits, predicted_iou = masks.low_res_logits, masks.predicted_iou[:, 0]
        drawn = predictor.upscale(logits, embedding)[:, 0].gt(0).cpu().numpy()
        found.extend(
            BoxMask(encode_mask(mask), iou) for mask, iou in zip(drawn, predicted_iou.cpu().tolist(), strict=True)
        )
    return found


def boxes_of(masks: Sequence[CocoRle]) -> Floats:
    """Return the boxes of masks, (N, 4): x0, y0, x1, y1 of the outermost pixels. Raise ValueError for an empty mask."""
    x, y, width, height = np.array([coco.toBbox(rle) for rle in masks], dtype=np.float64).reshape(-1, 4).T
    if not width.all():
        raise ValueError(f"mask {int(np.argmin(width))} is empty: expected masks of one pixel or more")
    return np.stack([x, y, x + width - 1, y + height - 1], axis=1)


def iou_in_order(truth: Sequence[CocoRle], found: Sequence[CocoRle]) -> Floats:
    """Return the IoU of each true mask with the predicted mask at the same position, (N,)."""
    pairs = zip(truth, found, strict=True)
    return np.array([coco.iou([second], [first], [0])[0, 0] for first, second in pairs], dtype=np.float64)


def iou_assigned(truth: Sequence[CocoRle], found: Sequence[CocoRle]) -> Floats:
    """Assign predicted masks to true masks one to one, and return the IoU of each true mask, (N,), or 0 if unassigned.

    The assignment maximizes the sum of IoUs.
    """
    result = np.zeros(len(truth))
    if truth and found:
        overlaps = np.asarray(coco.iou(list(found), list(truth), [0] * len(truth)), dtype=np.float64)
        chosen, paired = linear_sum_assignment(overlaps, maximize=True)
        result[paired] = overlaps[chosen, paired]
    return result


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

    found: Ints
    truth: Ints

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

    scores: Floats
    bits: Bytes
    truth: Ints

    def unpacked(self) -> tuple[Bools, Bools]:
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
    def matched(self) -> Bools:
        return np.stack([result["dtMatches"] > 0 for result in self.results])

    @cached_property
    def ignored(self) -> Bools:
        return np.stack([result["dtIgnore"].astype(bool) for result in self.results])

    @cached_property
    def truth(self) -> Ints:
        return np.array([np.count_nonzero(result["gtIgnore"] == 0) for result in self.results], dtype=np.int64)


def _overlaps(truth: Sequence[TrueMask], found: Sequence[PredictedMask]) -> Floats:
    """Return the IoU of each pair, (found, truth). For a crowd, return the share of the prediction that it covers."""
    if not truth or not found:
        return np.zeros((len(found), len(truth)))
    crowds = [int(mask.crowd) for mask in truth]
    return np.asarray(coco.iou([mask.rle for mask in found], [mask.rle for mask in truth], crowds), dtype=np.float64)


def _evaluate(
    truth: Sequence[TrueMask], found: Sequence[PredictedMask], overlaps: Floats, most: int
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


MOST, MOST_LVIS = 100, 300
"""Maximum number of predictions: per category and image in COCO's evaluation, and per image in LVIS's."""

MOST_UNITS = 500
"""Maximum number of units for intervals and tests.

A unit is one image, unless there are more images than this; then it is a group of images.
"""

_RECALLS = np.array(Params().recThrs)
AT_ONCE = 1 << 22  # maximum product of predictions, selections, size ranges, and thresholds

Matches = Mapping[int, Sequence[tuple[str, ImageMatches]]]
"""A model's matches, keyed by category. Each entry consists of an image's id and the matches in that image."""

Part = tuple[int, int, ImageMatches]
"""An image's position among all images, the model's number, and the image's matches."""


def score_names(federated: bool) -> list[str]:
    """Return the names of COCO's scores or, with `federated`, of LVIS's."""
    kinds, limits = _parts_of_names(federated)
    areas = AREAS[1:]
    of_precision = [f"ap_{each}" for each in (*areas, *kinds)]
    of_recall = [f"ar_{each}" for each in (*limits, *areas)]
    return ["ap", "ap50", "ap75", *of_precision, *of_recall]


def _parts_of_names(federated: bool) -> tuple[str, tuple[int, ...]]:
    """Return the kinds of categories, and the maximum numbers of predictions."""
    return ("rcf", (MOST_LVIS,)) if federated else ("", (1, 10, MOST))


class AveragePrecision:
    """Scores of one or two models, computed from their matches.

    `frequencies` maps LVIS's categories to r, c, or f. If it is given, the scores are LVIS's, and otherwise COCO's.

    Attributes:
        names: names of the K scores.
        units: number U of units. Callers select images by unit.
    """

    def __init__(self, models: Sequence[Matches], frequencies: Mapping[int, str] | None = None) -> None:
        """Sort each category's predictions once, by score and then by image id, as in COCO's files."""
        images = sorted({id for home in models for found in home.values() for id, _ in found}, key=_order)
        place = {id: number for number, id in enumerate(images)}
        kinds, limits = _parts_of_names(frequencies is not None)
        self.units = min(len(images), MOST_UNITS)
        self.names = score_names(frequencies is not None)
        self._models, self._categories = len(models), dict[int, _Category]()
        for category in sorted({id for home in models for id in home}):
            parts = []
            for model, home in enumerate(models):
                for id, matches in home.get(category, ()):
                    parts.append((place[id], model, matches))
            chosen = [(frequencies or {}).get(category) == kind for kind in kinds]
            parts.sort(key=lambda part: part[:2])
            self._categories[category] = _Category(parts, self.units, chosen, limits)

    @property
    def masks(self) -> dict[str, int]:
        """Number of true masks that each score is computed from, keyed by score."""
        masks = [each.masks for each in self._categories.values()]
        return dict(zip(self.names, np.sum(masks, axis=0).tolist(), strict=True))

    def by_category(self) -> Iterator[tuple[int, int, list[float | None]]]:
        """Yield each category, its number of true masks, and each model's AP, which is None without true masks."""
        selected = np.ones((2, 1, self.units), np.bool_)
        for id, category in self._categories.items():
            found = category.scores(self._models, selected[0], ~selected[1])[0, :, 0].tolist()
            yield id, category.masks[0], [None if np.isnan(ap) else ap for ap in found]

    def figures(self, selected: Floats) -> Floats:
        """Return the scores of each model, then the second's minus the first's, for R selections: (R, 2U) to (R, N).

        Each row of `selected` describes a selection. The first U columns are 1 for units that count as they are. The
        other U columns are 1 for units that count with the two models exchanged. Everything else is 0. Scores without
        true masks are NaN.
        """
        plain, exchanged = np.split(selected > 0.5, 2, axis=1)
        sums, known = np.zeros((2, len(selected), self._models, len(self.names)))
        for category in self._categories.values():
            step = max(1, AT_ONCE // category.size)
            for start in range(0, len(selected), step):
                rows = slice(start, start + step)
                scores = category.scores(self._models, plain[rows], exchanged[rows])
                sums[rows] += np.nan_to_num(scores)
                known[rows] += ~np.isnan(scores)
        with np.errstate(invalid="ignore"):
            means = sums / known
        differences = means[:, 1:] - means[:, :1]  # empty for one model
        flat: Floats = np.concatenate([means, differences], axis=1).reshape(len(selected), -1)
        return flat


class _Category:
    """The D predictions that all models made for a category, sorted from best to worst.

    S of the D predictions match a true mask in at least one size range, at one or more IoU thresholds.

    Attributes:
        unit, model: (D,) int64, each prediction's unit and model.
        never: (areas, D) bool, True for predictions that match nothing and count as wrong.
        matched: (S,) int64, positions of the predictions that match.
        rank: (S,) int64, positions of the same predictions among all predictions for their image.
        right, wrong: (areas, thresholds, S) bool; both are False for an ignored prediction.
        truth: (U, areas) int64, numbers of true masks.
        chosen: (frequencies,) bool, True for the category's own frequency.
        limits: maximum numbers of predictions per image, for recall.
    """

    def __init__(self, parts: Sequence[Part], units: int, chosen: Sequence[bool], limits: Sequence[int]) -> None:
        """Collect the matches in the order of `parts`, which decides the order of predictions with equal scores."""
        places, models, images = zip(*parts, strict=True)
        self.chosen, self.limits = np.array(chosen, np.bool_), limits
        self.truth = np.zeros((units, len(AREAS)), np.int64)
        for place, model, each in parts:
            self.truth[place % units] += each.truth * (model == 0)
        order = np.argsort(-np.concatenate([each.scores for each in images]), kind="stable")
        sizes = [len(each.scores) for each in images]
        self.unit, self.model = np.repeat(places, sizes)[order] % units, np.repeat(models, sizes)[order]
        unpacked = zip(*(each.unpacked() for each in images), strict=True)
        matched, ignored = (np.concatenate(each, axis=-1)[..., order] for each in unpacked)
        right, wrong = matched & ~ignored, ~matched & ~ignored
        some = matched.any(axis=(0, 1))
        self.never, (self.matched,) = wrong[:, 0] & ~some, np.nonzero(some)
        self.right, self.wrong = right[..., some], wrong[..., some]
        self.rank = np.concatenate([np.arange(size) for size in sizes])[order][some]

    @property
    def masks(self) -> list[int]:
        """Number of true masks that each score is computed from."""
        every, *by_area = self.truth.sum(axis=0).tolist()
        by_kind = (every * self.chosen).tolist()
        return [every, every, every, *by_area, *by_kind, *[every] * len(self.limits), *by_area]

    @property
    def size(self) -> int:
        """Number of values that one selection takes in memory."""
        return len(AREAS) * (1 + len(self.unit) + len(IOU_THRESHOLDS) * len(self.matched))

    def scores(self, models: int, plain: Bools, exchanged: Bools) -> Floats:
        """Return the K scores of M models for R selections, (R, M, K), or NaN where there are no true masks.

        `plain` (R, U) selects the units that count as they are. `exchanged` (R, U) selects the units that count with
        the two models exchanged.
        """
        truth = ((plain | exchanged) @ self.truth).T
        found = []
        for model in range(models):
            active = np.where(self.model == model, plain[:, self.unit], exchanged[:, self.unit])
            before = np.cumsum(active & self.never[:, None], axis=-1, dtype=np.int32)[..., self.matched]
            right, wrong = (each[:, :, None] & active[:, self.matched] for each in (self.right, self.wrong))
            wrong_so_far = before[:, None] + np.cumsum(wrong, axis=-1, dtype=np.int32)
            with np.errstate(invalid="ignore"):
                precision = _interpolated(right, wrong_so_far, truth)
                recall = right.sum(axis=-1) / truth[:, None]
                first = [(right[0] & (self.rank < limit)).sum(axis=-1) / truth[0] for limit in self.limits]
            ap = precision.mean(axis=1)
            of_kinds = np.where(self.chosen[:, None], ap[0], np.nan)
            recalls = [*(each.mean(axis=0) for each in first), *recall[1:].mean(axis=1)]
            found.append(np.stack([ap[0], precision[0, 0], precision[0, 5], *ap[1:], *of_kinds, *recalls], axis=-1))
        return np.stack(found, axis=1)


def _interpolated(right: Bools, wrong: NDArray[np.int32], truth: Ints) -> Floats:
    """Return the mean interpolated precision, (A, T, R), or NaN where there are no true masks.

    At each recall, the interpolated precision is the best precision at that recall or a higher one. Precision has its
    local maxima at right predictions, so only those are considered. `right` (A, T, R, S) marks right predictions,
    `wrong` (A, T, R, S) is the number of wrong predictions so far, and `truth` (A, R) is the number of true masks.
    """
    number = np.cumsum(right, axis=-1, dtype=np.int32)
    at = np.nonzero(right)
    so_far = number[at]
    most = int(number.max(initial=0))
    best = np.zeros((*right.shape[:-1], most + 1))  # indexed by the number of right predictions; 0 at the end
    places: tuple[NDArray[Any], ...] = (*at[:-1], so_far - 1)
    best[places] = so_far / (so_far + wrong[at] + np.spacing(1))
    best = np.maximum.accumulate(best[..., ::-1], axis=-1)[..., ::-1]
    needed = np.floor(_RECALLS * truth[..., None])
    needed += needed / truth[..., None] < _RECALLS  # rounded like COCO's search for recalls
    place = np.clip(needed - 1, 0, best.shape[-1] - 1).astype(np.int64)
    precision = np.take_along_axis(best, place[:, None], axis=-1).mean(axis=-1)
    return np.where(truth[:, None] > 0, precision, np.nan)


def _order(image_id: str) -> tuple[int, int, str]:
    """Return a sort key for image ids: numbers by value, then names."""
    return (0, int(image_id), "") if image_id.isdecimal() else (1, 0, image_id)


LIMITS = (10, 100, 1000)
"""Numbers of proposals per image for which average recall is reported."""


def proposal_settings(points_per_side: int = 64) -> MaskSettings:
    """Return the paper's settings: no crops, no filter by predicted IoU or stability, and NMS at 0.9.

    The grid contains `points_per_side` points per side, 64 in the paper.
    """
    return MaskSettings.official(
        points_per_side=points_per_side, pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=0.9
    )


def propose_objects(generator: MaskGenerator, image: Pixels) -> list[PredictedMask]:
    """Return the 1,000 best proposals for an image, (H, W, 3) uint8 RGB. `generator` must use `proposal_settings`."""
    return rank(generator.find(image))


def rank(found: RawMasks) -> list[PredictedMask]:
    """Return the 1,000 best masks, ranked by the mean of predicted IoU and stability score, best first.

    Empty masks are excluded, because they have no stability score and can't match the ground truth.
    """
    masks = found.candidates
    scores = (masks.predicted_iou.astype(np.float64) + masks.stability) / 2
    order = [index for index in np.argsort(-scores, kind="stable") if masks.patches[index].area]
    return [_found_mask(masks, index, float(scores[index]), found.frame_size) for index in order[: LIMITS[-1]]]


def _found_mask(masks: CandidateMasks, index: int, score: float, frame_size: Size) -> PredictedMask:
    return PredictedMask(masks.patches[index].encode(frame_size).coco(), score)
