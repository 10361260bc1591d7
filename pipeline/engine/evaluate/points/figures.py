"""Means of an evaluation's scores with 95 % intervals, and differences between sets of weights and between groups."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from segmint.operators.intervals import Interval
from segmint.operators.resampling import RESAMPLES, holm, mean_replicates, percentile_interval, relabel_p, sign_flip_p
from segmint.pipeline.engine.evaluate.intervals import LEAST_IMAGES
from segmint.pipeline.engine.evaluate.points.scores import Floats, ImageScores

Over = Literal["masks", "images", "datasets"]
"""Items to average: masks, images' means over their masks, or datasets' means over their masks."""

# The third number of a seed: the purpose of the random numbers.
_MEANS, _SIGNS, _GROUPS, _PAIRS = range(4)


@dataclass(frozen=True)
class MeanScore:
    """Mean of a measure, over all truths if `truth` is None. With fewer than two images, there is no interval."""

    weights: int
    measure: str
    truth: int | None
    over: Over
    mean: float
    interval: Interval | None


@dataclass(frozen=True)
class MeanDifference:
    """Mean of the second weights minus that of the first, over the same masks or images.

    `p` tests for no difference by flipping the signs of all differences of an image. It is only computed over masks.
    """

    measure: str
    truth: int | None
    over: Over
    mean: float
    interval: Interval | None
    p: float | None


@dataclass(frozen=True)
class GroupMean:
    """Mean over a group's masks."""

    weights: int
    measure: str
    group: str
    images: int
    masks: int
    mean: float
    interval: Interval | None


@dataclass(frozen=True)
class GroupPair:
    """First group's mean minus the second's. `p` comes from permuting labels over images; `holm` is its correction.

    Holm's correction covers the pairs of one measure and weights. Both are None if nothing can be permuted.
    """

    weights: int
    measure: str
    first: str
    second: str
    difference: float
    p: float | None
    holm: float | None


@dataclass(frozen=True)
class Means:
    """Means and differences of one evaluation."""

    scores: tuple[MeanScore, ...]
    differences: tuple[MeanDifference, ...]

    def mean(self, measure: str, weights: int = 0, truth: int | None = None, over: Over = "masks") -> MeanScore:
        """Return one of the means. Raises KeyError if it doesn't exist."""
        wanted = (weights, measure, truth, over)
        for each in self.scores:
            if (each.weights, each.measure, each.truth, each.over) == wanted:
                return each
        raise KeyError(wanted)

    def difference(self, measure: str, truth: int | None = None, over: Over = "masks") -> MeanDifference:
        """Return one of the differences. Raises KeyError if it doesn't exist."""
        for each in self.differences:
            if (each.measure, each.truth, each.over) == (measure, truth, over):
                return each
        raise KeyError((measure, truth, over))


def means_of(scores: ImageScores, truths: int, seed: int, resamples: int = RESAMPLES) -> Means:
    """Return the means of all measures over masks and images, for each truth and for all together.

    With several truths, this includes the mean of their means over masks, for which images are resampled within each
    truth. All weights and their differences are resampled jointly.
    """
    images = scores.by_image()
    numbers = [number for number in range(truths) if (images.truth == number).any()]
    scopes: list[int | None] = [None] if len(numbers) < 2 else [None, *numbers]
    found: list[MeanScore] = []
    differences: list[MeanDifference] = []
    of_truths: list[tuple[Floats, Floats | None]] = []
    for scope in scopes:
        part = images if scope is None else images.of(images.truth == scope)
        key = [seed, 0 if scope is None else scope + 1]
        for over, sums, counts in _ways(part):
            mean = sums.sum(axis=0) / counts.sum()
            replicates = None
            if len(counts) >= LEAST_IMAGES:
                flat = sums.reshape(len(counts), -1)
                replicates = mean_replicates(flat, counts, [*key, _MEANS], resamples).reshape(-1, *mean.shape)
            if scope is not None and over == "masks":
                of_truths.append((mean, replicates))
            p = None
            if over == "masks" and sums.shape[1] == 2:
                p = sign_flip_p(part.differences(), [*key, _SIGNS], resamples)
            _add(found, differences, images.measures, scope, over, mean, replicates, p)
    if of_truths:
        mean = np.mean([each for each, _ in of_truths], axis=0)
        drawn = [each for _, each in of_truths if each is not None]
        replicates = np.mean(drawn, axis=0) if len(drawn) == len(of_truths) else None
        _add(found, differences, images.measures, None, "datasets", mean, replicates, None)
    return Means(tuple(found), tuple(differences))


def groups_of(
    scores: ImageScores, measures: tuple[str, ...], seed: int, resamples: int = RESAMPLES
) -> tuple[tuple[GroupMean, ...], tuple[GroupPair, ...]]:
    """Return the means of some measures over each group's masks, and the tests of each pair of groups.

    Masks without a group are skipped.
    """
    names = sorted({group for group in scores.group if group is not None})
    columns = [scores.column(measure) for measure in measures]
    labels = np.array([group if group is not None else "" for group in scores.group], dtype=object)
    known = np.array([group is not None for group in scores.group], dtype=bool)
    means: list[GroupMean] = []
    for place, name in enumerate(names):
        part = scores.of(known & (labels == name))
        sums = part.sums[:, :, columns]
        mean = sums.sum(axis=0) / part.counts.sum()
        interval: list[Interval] | None = None
        if len(part.counts) >= LEAST_IMAGES:
            flat = sums.reshape(len(part.counts), -1)
            interval = percentile_interval(mean_replicates(flat, part.counts, [seed, place, _GROUPS], resamples))
        for weights, column in np.ndindex(*mean.shape):
            found = None if interval is None else interval[weights * len(columns) + column]
            means.append(
                GroupMean(
                    weights, measures[column], name, len(part.counts), part.masks, float(mean[weights, column]), found
                )
            )
    return tuple(means), tuple(_pairs(scores, names, measures, columns, seed, resamples))


def _pairs(
    scores: ImageScores, names: list[str], measures: tuple[str, ...], columns: list[int], seed: int, resamples: int
) -> Iterator[GroupPair]:
    keys: dict[tuple[int, str], int] = {}
    for truth, image in zip(scores.truth.tolist(), scores.image_id, strict=True):
        keys.setdefault((truth, image), len(keys))
    width = scores.sums.shape[1] * len(columns) + 1
    by_group = {name: np.zeros((len(keys), width)) for name in names}
    for place, (truth, image, group) in enumerate(
        zip(scores.truth.tolist(), scores.image_id, scores.group, strict=True)
    ):
        if group is not None:
            row = [*scores.sums[place][:, columns].reshape(-1), scores.counts[place]]
            by_group[group][keys[truth, image]] += row
    pairs = list(combinations(names, 2))
    ps = [
        relabel_p(by_group[first], by_group[second], [seed, place, _PAIRS], resamples)
        for place, (first, second) in enumerate(pairs)
    ]
    for weights in range(scores.sums.shape[1]):
        for column, measure in enumerate(measures):
            at = weights * len(columns) + column
            tested = [place for place, each in enumerate(ps) if each is not None]
            found = {place: each[at] for place, each in enumerate(ps) if each is not None}
            adjusted = dict(zip(tested, holm([found[place] for place in tested]), strict=True))
            for place, (first, second) in enumerate(pairs):
                one, two = by_group[first].sum(axis=0), by_group[second].sum(axis=0)
                gap = float(one[at] / one[-1] - two[at] / two[-1])
                yield GroupPair(weights, measure, first, second, gap, found.get(place), adjusted.get(place))


def _ways(scores: ImageScores) -> Iterator[tuple[Over, Floats, Floats]]:
    """Yield sums and counts whose ratios are the means over masks and over images."""
    yield "masks", scores.sums, scores.counts
    yield "images", scores.sums / scores.counts[:, None, None], np.ones(len(scores.counts))


def _add(
    found: list[MeanScore],
    differences: list[MeanDifference],
    measures: tuple[str, ...],
    truth: int | None,
    over: Over,
    mean: Floats,
    replicates: Floats | None,
    p: list[float] | None,
) -> None:
    """Append the means (W, M) with intervals from their replicates (R, W, M), and the differences if W is 2."""
    for weights in range(mean.shape[0]):
        intervals = None if replicates is None else percentile_interval(replicates[:, weights])
        for place, measure in enumerate(measures):
            interval = None if intervals is None else intervals[place]
            found.append(MeanScore(weights, measure, truth, over, float(mean[weights, place]), interval))
    if mean.shape[0] == 2:
        intervals = None if replicates is None else percentile_interval(replicates[:, 1] - replicates[:, 0])
        for place, measure in enumerate(measures):
            interval = None if intervals is None else intervals[place]
            gap = float(mean[1, place] - mean[0, place])
            differences.append(MeanDifference(measure, truth, over, gap, interval, None if p is None else p[place]))
