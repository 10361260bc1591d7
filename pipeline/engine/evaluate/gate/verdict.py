"""Whether weights B may replace weights A: scores summed up by image and by what a mask may say, compared, and judged.

docs/decisions/0027-the-gate.md says why it decides so.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np
import pyarrow as pa

from segmint.infra.wording import counted
from segmint.operators.intervals import Interval
from segmint.operators.resampling import RESAMPLES, mean_replicates
from segmint.operators.schemas import AUTOMATIC
from segmint.pipeline.engine.evaluate.gate.lineage import Lineage
from segmint.pipeline.engine.evaluate.intervals import percent
from segmint.pipeline.engine.evaluate.points.scores import Floats, ImageScores

DECIDES = "iou_1"
"""The measure of the truth that decides: the mean IoU at one click."""

GUARDED = ("oracle_1", "iou_3")
"""The measures of a guard set that decide."""

MEASURES = ("iou_1", "oracle_1", "iou_3")
"""All that a gate compares."""

NAMES = {"iou_1": "one click", "oracle_1": "best of three", "iou_3": "three clicks"}

GUARD_LIMIT = -0.01
"""A guard set is worse where an interval lies below this."""

LEAST_IMAGES = 10
"""Images from which on there is an interval that may decide."""

ASSISTED = "assisted"
"""The `source` of masks that a person made by prompting a model."""

CORRECTED = "corrected"
"""The `source` of a model's masks that a person changed."""


class Role(StrEnum):
    """What a mask may say about two weights."""

    INDEPENDENT = "independent"  # of people, without help, or of a file that the user takes as truth
    FAVORS_FIRST = "favors_first"  # corrected from an answer of the first weights, or of what they descend from
    ASSISTED = "assisted"  # favors the model that assisted
    AUTOMATIC = "automatic"  # a model's own


def role_of(source: str | None) -> Role:
    """The role of a mask by its `source`, which is None outside datasets."""
    if source == AUTOMATIC:
        return Role.AUTOMATIC
    return Role.ASSISTED if source == ASSISTED else Role.INDEPENDENT


def role_of_corrected(model: str, first: Lineage, second: Lineage) -> Role:
    """The role of a mask that a person corrected, by the SHA-256 of the model that made it.

    An ancestor of both favors the first if the second descends from the first. Else it is not known which of them it is
    nearer to, and the mask is apart, as one that favors the second.
    """
    if model in first.hashes and (first.weights.sha256 in second.hashes or model not in second.hashes):
        return Role.FAVORS_FIRST
    return Role.ASSISTED if model in second.hashes else Role.INDEPENDENT


class TruthRoles(Protocol):
    """What is known of the masks and images of the truths of a run, which are named by their place in it."""

    def role(self, truth: int, mask: int, source: str | None) -> Role:
        """The role of a mask, by its annotation's id."""

    def group(self, truth: int, image: str) -> int | None:
        """The group of images that show the same, by the image's file name; None: it is not known."""


@dataclass
class ScoreSums:
    """Sums the scores of two weights over each image's masks, as results come."""

    measures: tuple[str, ...]
    judged: TruthRoles
    _sums: dict[tuple[int, str, Role], Floats] = field(default_factory=dict)
    _counts: dict[tuple[int, str, Role], int] = field(default_factory=dict)
    _units: dict[tuple[int, str], tuple[int, str]] = field(default_factory=dict)
    _firsts: dict[int, tuple[int, str]] = field(default_factory=dict)
    corrected_separately: int = 0  # corrected masks that are reported with the assisted ones

    def add(self, table: pa.Table) -> None:
        """Add rows of an interactive evaluation: a row for each mask and weights."""
        columns = ["truth", "image_id", "image", "mask", "source", "weights", *self.measures]
        rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
        for truth, image, name, mask, source, weights, *scores in rows:
            if (truth, image) not in self._units:
                group = self.judged.group(truth, name)
                alone = (truth, image)
                self._units[alone] = alone if group is None else self._firsts.setdefault(group, alone)
            role = self.judged.role(truth, mask, source)
            self.corrected_separately += role is Role.ASSISTED and source == CORRECTED and weights == 0
            key = (truth, image, role)
            sums = self._sums.setdefault(key, np.zeros((2, len(self.measures))))
            sums[weights] += scores
            self._counts[key] = self._counts.get(key, 0) + (weights == 0)

    def scores(self, roles: Sequence[Role], truth: int | None = None) -> ImageScores:
        """The scores of masks with these roles, of one truth or of all; images that show the same are one unit."""
        keys = [key for key in self._sums if key[2] in roles and truth in (None, key[0])]
        sums = np.array([self._sums[key] for key in keys]).reshape(len(keys), 2, len(self.measures))
        counts = np.array([self._counts[key] for key in keys], np.float64)
        units = [self._units[key[:2]] for key in keys]
        truths = np.array([unit[0] for unit in units], np.int64)
        images = tuple(unit[1] for unit in units)
        return ImageScores(self.measures, truths, images, (None,) * len(keys), counts, sums).by_image()


class GateVerdict(StrEnum):
    """The answers of a gate."""

    BETTER = "better"
    WORSE = "worse"
    NO_DIFFERENCE = "no difference shown"
    NO_TRUTH = "no independent truth"


@dataclass(frozen=True)
class MeanComparison:
    """Means of a measure over the same masks, and the second's minus the first's; all are shares, not percent.

    `images` that show the same count as one. The 95 % interval is of the difference, None with fewer than
    `LEAST_IMAGES` images.
    """

    measure: str
    images: int
    masks: int
    first: float
    second: float
    difference: float
    interval: Interval | None

    def below(self, limit: float) -> bool:
        """Whether the whole interval is below a difference."""
        return self.interval is not None and self.interval[1] < limit


@dataclass(frozen=True)
class GuardComparison:
    """How two weights do on a guard set. Empty: nothing of it could be measured."""

    name: str
    compared: tuple[MeanComparison, ...]

    @property
    def worse(self) -> tuple[MeanComparison, ...]:
        """The comparisons by which the second weights are worse here."""
        return tuple(each for each in self.compared if each.measure in GUARDED and each.below(GUARD_LIMIT))

    @property
    def judged(self) -> bool:
        """Whether there are images enough."""
        return any(each.interval is not None for each in self.compared)


def compare(scores: ImageScores, seed: int, resamples: int = RESAMPLES) -> tuple[MeanComparison, ...]:
    """Compare two weights by each of `MEASURES`; empty without any image."""
    images = len(scores.counts)
    if not images:
        return ()
    columns = [scores.column(measure) for measure in MEASURES]
    means = scores.sums.sum(axis=0) / scores.counts.sum()
    differences = scores.differences()[:, columns]
    found = differences.sum(axis=0) / scores.counts.sum()
    intervals: Sequence[Interval | None] = [None] * len(MEASURES)
    if images >= LEAST_IMAGES:
        intervals = expanded_interval(mean_replicates(differences, scores.counts, seed, resamples), images)
    return tuple(
        MeanComparison(
            measure,
            images,
            scores.masks,
            float(means[0, column]),
            float(means[1, column]),
            float(found[place]),
            intervals[place],
        )
        for place, (measure, column) in enumerate(zip(MEASURES, columns, strict=True))
    )


def expanded_interval(replicates: Floats, images: int) -> list[Interval]:
    """The 95 % interval of each column of replicates (R, M) of a mean over few images.

    The expanded percentile interval of Hesterberg, "What Teachers Should Know About the Bootstrap" (2015): wider than
    the percentile interval by what the bootstrap of few images misses, by a factor of 1.21 for 10 images.
    """
    from scipy.stats import norm, t

    tail = 100 * float(norm.cdf(math.sqrt(images / (images - 1)) * t.ppf(0.025, images - 1)))
    low, high = np.percentile(replicates, (tail, 100 - tail), axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def decide(
    truth: Sequence[MeanComparison],
    guards: Sequence[GuardComparison],
    unfavored: Sequence[MeanComparison] | None = None,
) -> tuple[GateVerdict, tuple[str, ...]]:
    """Return the verdict and its reasons; `truth` has the comparisons over independent masks, or none.

    `unfavored` has those without the masks that favor the first weights; None: there is no such mask.
    """
    worse = [
        f"on the guard set {guard.name} the mean IoU ({NAMES[each.measure]}) changes by {percent_points(each)}: all "
        f"of the interval is below {100 * GUARD_LIMIT:.1f}"
        for guard in guards
        for each in guard.worse
    ]
    by_truth, reason = _by_truth(truth, unfavored)
    verdict = GateVerdict.WORSE if worse else by_truth
    unjudged = [
        f"the guard set {guard.name} could not decide: it has {counted(_images(guard.compared), 'image')}, and "
        f"{LEAST_IMAGES} are needed"
        for guard in guards
        if not guard.judged
    ]
    return verdict, (*worse, reason, *unjudged)


def _by_truth(truth: Sequence[MeanComparison], unfavored: Sequence[MeanComparison] | None) -> tuple[GateVerdict, str]:
    found = next((each for each in truth if each.measure == DECIDES), None)
    if found is None:
        return GateVerdict.NO_TRUTH, "no independent mask of a held-out image could be measured"
    if found.interval is None:
        return GateVerdict.NO_DIFFERENCE, (
            f"only {counted(found.images, 'image')} with independent masks: an interval needs {LEAST_IMAGES}"
        )
    where = f"the mean IoU at one click changes by {percent_points(found)}"
    if found.interval[0] > 0:
        return GateVerdict.BETTER, f"{where}: all of the interval is above 0"
    if found.below(0):
        if unfavored is None or any(each.measure == DECIDES and each.below(0) for each in unfavored):
            return GateVerdict.WORSE, f"{where}: all of the interval is below 0"
        return GateVerdict.NO_DIFFERENCE, (
            f"{where}: all of the interval is below 0, but not over the masks alone that do not favor the first weights"
        )
    return GateVerdict.NO_DIFFERENCE, f"{where}: the interval has 0 in it"


def percent_points(compared: MeanComparison) -> str:
    """A difference with its interval, in percent points: `+4.5 (+2.1 to +6.9)`."""
    return percent(compared.difference, compared.interval, "+")


def _images(compared: Sequence[MeanComparison]) -> int:
    return compared[0].images if compared else 0
