"""COCO's average precision and recall, and LVIS's, of one or two models over any selection of the images.

Intervals and tests repeat the accumulation many times, and `COCOeval` and LVIS's implementation are too slow for that.
The results equal those of `COCOeval` and of LVIS's federated evaluation (Gupta et al. 2019, arXiv 1908.03195).

In LVIS, annotators checked only some categories in each image. So a prediction counts only if its category occurs in
the image's annotations or in its `neg_category_ids`. For categories in `not_exhaustive_category_ids`, unmatched
predictions count as neither right nor wrong.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.cocoeval import Params

from segmint.operators.evaluate.coco_matching import AREAS, IOU_THRESHOLDS, ImageMatches
from segmint.operators.intervals import Floats

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

    def scores(self, models: int, plain: NDArray[np.bool_], exchanged: NDArray[np.bool_]) -> Floats:
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


def _interpolated(right: NDArray[np.bool_], wrong: NDArray[np.int32], truth: NDArray[np.int64]) -> Floats:
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
