"""Means of an evaluation's scores with 95% intervals, and differences between sets of weights and between groups."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from segmint.operators.intervals import RESAMPLES, Interval, mean_intervals, studentized
from segmint.operators.resampling import holm, relabel_p, sign_flip_p
from segmint.pipeline.engine.evaluate.points.scores import Floats, ImageScores

Over = Literal["masks", "images", "datasets"]
"""Units of a mean: masks, images (means over their masks), or datasets (means over their masks)."""

# Last number of a seed, which separates the random numbers by purpose.
_MEANS, _SIGNS, _GROUPS, _PAIRS, _DATASETS = range(5)


@dataclass(frozen=True)
class MeanScore:
    """Mean of a measure, with the number of images and masks. It covers all truths if `truth` is None."""

    weights: int
    measure: str
    truth: int | None
    over: Over
    mean: float
    interval: Interval | None
    images: int
    masks: int


@dataclass(frozen=True)
class MeanDifference:
    """Difference of two means over the same masks or images: second weights minus first weights.

    `p` comes from a test that randomly flips the sign of all differences within an image. It exists only for means over
    masks.
    """

    measure: str
    truth: int | None
    over: Over
    mean: float
    interval: Interval | None
    p: float | None
    images: int
    masks: int


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
    """Difference of two groups' means: first minus second.

    `p` comes from a test that permutes the groups' labels over images. `holm` is p after Holm's correction over all
    pairs of one measure and one set of weights. Both are None if nothing can be permuted.
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
        """Look up a mean. Raises KeyError if it doesn't exist."""
        wanted = (weights, measure, truth, over)
        for each in self.scores:
            if (each.weights, each.measure, each.truth, each.over) == wanted:
                return each
        raise KeyError(wanted)

    def difference(self, measure: str, truth: int | None = None, over: Over = "masks") -> MeanDifference:
        """Look up a difference. Raises KeyError if it doesn't exist."""
        for each in self.differences:
            if (each.measure, each.truth, each.over) == (measure, truth, over):
                return each
        raise KeyError((measure, truth, over))


def means_of(scores: ImageScores, truths: int, seed: int, resamples: int = RESAMPLES) -> Means:
    """Compute the means of all measures over masks and over images, for each truth and for all truths together.

    With several truths, the result also contains the mean of the truths' means over masks. For its intervals, images
    are resampled within each truth. Each resample draws the same images for all weights and their differences.
    """
    images = scores.by_image()
    numbers = [number for number in range(truths) if (images.truth == number).any()]
    scopes: list[int | None] = [None] if len(numbers) < 2 else [None, *numbers]
    found: list[MeanScore] = []
    differences: list[MeanDifference] = []
    for scope in scopes:
        part = images if scope is None else images.of(images.truth == scope)
        key = [seed, 0 if scope is None else scope + 1]
        for over, sums, counts in _ways(part):
            p = None
            if over == "masks" and sums.shape[1] == 2:
                p = sign_flip_p(sums[:, 1] - sums[:, 0], [*key, _SIGNS], resamples)
            _add(found, differences, part, scope, over, [(sums, counts)], [*key, _MEANS], resamples, p)
    if len(scopes) > 1:
        parts = [images.of(images.truth == number) for number in numbers]
        strata = [(part.sums, part.counts) for part in parts]
        _add(found, differences, images, None, "datasets", strata, [seed, 0, _DATASETS], resamples, None)
    return Means(tuple(found), tuple(differences))


def groups_of(
    scores: ImageScores, measures: tuple[str, ...], seed: int, resamples: int = RESAMPLES
) -> tuple[tuple[GroupMean, ...], tuple[GroupPair, ...]]:
    """Compute the means of some measures over each group's masks, and test each pair of groups.

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
        flat = sums.reshape(len(part.counts), -1)
        intervals = mean_intervals(flat, part.counts, [seed, place, _GROUPS], (0.0, 1.0), resamples)
        for weights, column in np.ndindex(*mean.shape):
            found = intervals[weights * len(columns) + column]
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
            found = [None if each is None else each[at] for each in ps]
            adjusted = holm(found)
            for place, (first, second) in enumerate(pairs):
                one, two = by_group[first].sum(axis=0), by_group[second].sum(axis=0)
                gap = float(one[at] / one[-1] - two[at] / two[-1])
                yield GroupPair(weights, measure, first, second, gap, found[place], adjusted[place])


def _ways(scores: ImageScores) -> Iterator[tuple[Over, Floats, Floats]]:
    """Yield sums and counts. Their ratios are the means over masks, and then the means over images."""
    yield "masks", scores.sums, scores.counts
    yield "images", scores.sums / scores.counts[:, None, None], np.ones(len(scores.counts))


def _add(
    found: list[MeanScore],
    differences: list[MeanDifference],
    scores: ImageScores,
    truth: int | None,
    over: Over,
    strata: Sequence[tuple[Floats, Floats]],
    seed: Sequence[int],
    resamples: int,
    p: list[float] | None,
) -> None:
    """Append the mean over the strata's means for W weights and M measures. If W is 2, append the differences, too."""
    weights, measures = scores.sums.shape[1:]
    tables = []
    for sums, counts in strata:
        difference = [sums[:, 1] - sums[:, 0]] if weights == 2 else []
        tables.append((np.concatenate([*(sums[:, each] for each in range(weights)), *difference], axis=1), counts))
    means = np.mean([sums.sum(axis=0) / counts.sum() for sums, counts in tables], axis=0).tolist()
    lows = np.where(np.arange(len(means)) < weights * measures, 0.0, -1.0)
    size = (len(scores.counts), scores.masks)
    for place, (mean, interval) in enumerate(
        zip(means, studentized(tables, seed, (lows, 1.0), resamples), strict=True)
    ):
        number, column = divmod(place, measures)
        name = scores.measures[column]
        if number < weights:
            found.append(MeanScore(number, name, truth, over, mean, interval, *size))
        else:
            differences.append(
                MeanDifference(name, truth, over, mean, interval, None if p is None else p[column], *size)
            )
