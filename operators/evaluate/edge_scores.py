"""Scores of edges over images: ODS, OIS, AP and R50, from counts at each threshold, as the BSDS benchmark has them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmint.operators.evaluate.edges import EdgeCounts

_STEPS = 100  # between two thresholds
_RECALLS = np.linspace(0, 1, 101)
_HALF = 0.5

Curve = NDArray[Any]


@dataclass(frozen=True)
class EdgeScores:
    """The benchmark's four figures, and the curve that they come from.

    Attributes:
        ods: the best F-measure with one threshold for all images ("optimal dataset scale").
        ods_threshold: that threshold.
        ois: the F-measure with the best threshold of each image ("optimal image scale").
        ap: average precision, over recalls from 0 to 1 where there is a precision; None if all recalls are the same.
        r50: recall at half precision; None where precision is nowhere so high.
        precision, recall: (K,), at each threshold.
    """

    ods: float
    ods_threshold: float
    ois: float
    ap: float | None
    r50: float | None
    precision: Curve
    recall: Curve


def edge_scores(images: Sequence[EdgeCounts], cuts: NDArray[np.float64]) -> EdgeScores:
    """Compute the scores of one image or more; `cuts` are the thresholds of their counts, (K,), ascending."""
    stacked = stack(images)
    return scores_of_sums(stacked.sum(axis=0), at_best_thresholds(stacked).sum(axis=0), cuts)


def stack(images: Sequence[EdgeCounts]) -> NDArray[np.int64]:
    """The counts of I images, (I, 4, K), in the order of `EdgeCounts`."""
    return np.array([[each.found_matched, each.found, each.true_matched, each.true] for each in images])


def at_best_thresholds(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each image's counts at its own best threshold: (I, 4, K) to (I, 4)."""
    best = np.array([np.argmax(_f_measure(*_precision_recall(each))) for each in counts], dtype=np.int64)
    return counts[np.arange(len(counts)), :, best]


def scores_of_sums(sums: Curve, at_best: Curve, cuts: Curve) -> EdgeScores:
    """Compute the scores from sums over images: of their counts, (4, K), and of those at their best thresholds, (4,).

    The counts in the order of `EdgeCounts`.
    """
    precision, recall = _precision_recall(sums)
    ods, ods_threshold = _best(cuts, precision, recall)
    ois = float(_f_measure(*_precision_recall(at_best)))
    ap, r50 = _average_precision(precision, recall), _recall_at_half(precision, recall)
    return EdgeScores(ods, ods_threshold, ois, ap, r50, precision, recall)


def _precision_recall(counts: NDArray[Any]) -> tuple[Curve, Curve]:
    """From counts (4, …); 0 where there is nothing to divide by."""
    found_matched, found, true_matched, true = counts
    return found_matched / np.maximum(found, 1), true_matched / np.maximum(true, 1)


def _f_measure(precision: Curve, recall: Curve) -> Curve:
    total = precision + recall
    score: Curve = 2 * precision * recall / np.where(total > 0, total, 1)
    return score


def _best(cuts: Curve, precision: Curve, recall: Curve) -> tuple[float, float]:
    """The best F-measure and its threshold, on straight lines between the points of the curve."""
    share = np.linspace(0, 1, _STEPS)
    if len(cuts) == 1:
        return float(_f_measure(precision, recall)[0]), float(cuts[0])
    between = [share * values[1:, None] + (1 - share) * values[:-1, None] for values in (precision, recall, cuts)]
    scores = _f_measure(between[0], between[1])
    place = np.unravel_index(np.argmax(scores), scores.shape)
    return float(scores[place]), float(between[2][place])


def _average_precision(precision: Curve, recall: Curve) -> float | None:
    recalls, first = np.unique(recall, return_index=True)
    if len(recalls) < 2:
        return None
    # The benchmark sums 101 values and divides by 100.
    return float(np.interp(_RECALLS, recalls, precision[first], left=0, right=0).sum() / (len(_RECALLS) - 1))


def _recall_at_half(precision: Curve, recall: Curve) -> float | None:
    precisions, first = np.unique(precision, return_index=True)
    if precisions[-1] < _HALF:
        return None
    return float(np.interp(max(precisions[0], _HALF), precisions, recall[first]))
