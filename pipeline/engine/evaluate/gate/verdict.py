"""Verdict of a gate, which sums the scores of two sets of weights by image and mask role, and compares them.

docs/decisions/0027-the-gate.md explains the rules.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np
import pyarrow as pa

from segmint.infra.wording import counted
from segmint.operators.intervals import LEAST_IMAGES, RESAMPLES, Interval, mean_intervals
from segmint.operators.schemas import AUTOMATIC
from segmint.pipeline.engine.evaluate.gate.lineage import Lineage
from segmint.pipeline.engine.evaluate.points.scores import Floats, ImageScores
from segmint.pipeline.engine.evaluate.result import BETTER, NO_DIFFERENCE, WORSE, percent

DECIDES = "iou_1"
"""Measure that decides on the truth, which is the mean IoU after one click."""

GUARDED = ("oracle_1", "iou_3")
"""Measures that decide on a guard set."""

MEASURES = ("iou_1", "oracle_1", "iou_3")
"""All measures that a gate compares."""

NAMES = {"iou_1": "one click", "oracle_1": "best of three", "iou_3": "three clicks"}

GUARD_LIMIT = -0.01
"""Limit for guard sets. The second weights are worse on a guard set if the whole interval is below this difference."""

ASSISTED = "assisted"
"""The `source` of masks that a person made by prompting a model."""

CORRECTED = "corrected"
"""The `source` of a model's masks that a person changed."""


class Role(StrEnum):
    """Role that a mask plays when two sets of weights are compared."""

    INDEPENDENT = "independent"  # annotated without a model, or from a file that the user trusts
    FAVORS_FIRST = "favors_first"  # corrected from a prediction of the first weights or their ancestors
    ASSISTED = "assisted"  # favors the model that assisted
    AUTOMATIC = "automatic"  # predicted by a model


def role_of(source: str | None) -> Role:
    """Return the role of a mask, given its `source`, which is None outside datasets."""
    if source == AUTOMATIC:
        return Role.AUTOMATIC
    return Role.ASSISTED if source == ASSISTED else Role.INDEPENDENT


def role_of_corrected(model: str, first: Lineage, second: Lineage) -> Role:
    """Return the role of a corrected mask, given the SHA-256 of the model that made the corrected prediction.

    If the model is an ancestor of both weights and the second weights descend from the first, the mask favors the first
    weights. In any other case with a common ancestor, it isn't known which of the two weights is closer to the
    ancestor. Such a mask is reported separately, like a mask that favors the second weights.
    """
    if model in first.hashes and (first.weights.sha256 in second.hashes or model not in second.hashes):
        return Role.FAVORS_FIRST
    return Role.ASSISTED if model in second.hashes else Role.INDEPENDENT


class TruthRoles(Protocol):
    """Source of facts about the masks and images of a run's truths. A truth is identified by its index in the run."""

    def role(self, truth: int, mask: int, source: str | None) -> Role:
        """Return the role of a mask, given its annotation id."""

    def group(self, truth: int, image: str) -> int | None:
        """Return the group of similar images that an image belongs to, by its file name, or None if it isn't known."""


@dataclass
class ScoreSums:
    """Accumulator that sums the scores of two sets of weights over each image's masks as results arrive."""

    measures: tuple[str, ...]
    judged: TruthRoles
    _sums: dict[tuple[int, str, Role], Floats] = field(default_factory=dict)
    _counts: dict[tuple[int, str, Role], int] = field(default_factory=dict)
    _units: dict[tuple[int, str], tuple[int, str]] = field(default_factory=dict)
    _firsts: dict[int, tuple[int, str]] = field(default_factory=dict)
    corrected_separately: int = 0  # corrected masks that are reported with the assisted ones

    def add(self, table: pa.Table) -> None:
        """Add rows of an evaluation by clicks, which contain one row per mask and set of weights."""
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
        """Return the scores of masks with these roles, in one truth or in all. Similar images form one unit."""
        keys = [key for key in self._sums if key[2] in roles and truth in (None, key[0])]
        sums = np.array([self._sums[key] for key in keys]).reshape(len(keys), 2, len(self.measures))
        counts = np.array([self._counts[key] for key in keys], np.float64)
        units = [self._units[key[:2]] for key in keys]
        truths = np.array([unit[0] for unit in units], np.int64)
        images = tuple(unit[1] for unit in units)
        return ImageScores(self.measures, truths, images, (None,) * len(keys), counts, sums).by_image()


class GateVerdict(StrEnum):
    """Possible verdicts of a gate."""

    BETTER = BETTER
    WORSE = WORSE
    NO_DIFFERENCE = NO_DIFFERENCE
    NO_TRUTH = "no independent truth"


@dataclass(frozen=True)
class MeanComparison:
    """Comparison of a measure's means over the same masks, as fractions. The difference is second minus first.

    `images` counts similar images once. `interval` is the difference's 95% interval. It is None if there are fewer
    than `LEAST_IMAGES` images, if only a few images differ, or if one image contains most of the masks.
    """

    measure: str
    images: int
    masks: int
    first: float
    second: float
    difference: float
    interval: Interval | None

    def below(self, limit: float) -> bool:
        """Return whether the whole interval is below a limit."""
        return self.interval is not None and self.interval[1] < limit


@dataclass(frozen=True)
class GuardComparison:
    """Comparison of two sets of weights on a guard set. `compared` is empty if nothing could be measured."""

    name: str
    compared: tuple[MeanComparison, ...]

    @property
    def worse(self) -> tuple[MeanComparison, ...]:
        """Comparisons that show that the second weights are worse."""
        return tuple(each for each in self.compared if each.measure in GUARDED and each.below(GUARD_LIMIT))

    @property
    def judged(self) -> bool:
        """True if each measure that decides has an interval."""
        decisive = [each for each in self.compared if each.measure in GUARDED]
        return bool(decisive) and all(each.interval is not None for each in decisive)


def compare(scores: ImageScores, seed: int, resamples: int = RESAMPLES) -> tuple[MeanComparison, ...]:
    """Compare two sets of weights by each of `MEASURES`. Without images, return an empty tuple."""
    images = len(scores.counts)
    if not images:
        return ()
    columns = [scores.column(measure) for measure in MEASURES]
    means = scores.sums.sum(axis=0) / scores.counts.sum()
    differences = scores.differences()[:, columns]
    found = differences.sum(axis=0) / scores.counts.sum()
    intervals = mean_intervals(differences, scores.counts, seed, (-1.0, 1.0), resamples)
    if images >= LEAST_IMAGES:  # if the difference is equal in all images, its interval has zero width
        equal = np.ptp(differences / scores.counts[:, None], axis=0) < 1e-9
        intervals = [
            (each, each) if same else one for each, same, one in zip(found.tolist(), equal, intervals, strict=True)
        ]
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


def decide(
    truth: Sequence[MeanComparison],
    guards: Sequence[GuardComparison],
    unfavored: Sequence[MeanComparison] | None = None,
) -> tuple[GateVerdict, tuple[str, ...]]:
    """Decide between two sets of weights, and return the verdict with its reasons.

    `truth` contains the comparisons over independent masks, if there are any. `unfavored` contains the same comparisons
    without the masks that favor the first weights; it is None if no masks favor them.
    """
    worse = [
        f"on the guard set {guard.name}, the mean IoU ({NAMES[each.measure]}) changes by {percent_points(each)}: the "
        f"whole interval is below {100 * GUARD_LIMIT:.1f}"
        for guard in guards
        for each in guard.worse
    ]
    by_truth, reason = _by_truth(truth, unfavored)
    verdict = GateVerdict.WORSE if worse else by_truth
    unjudged = [
        f"the guard set {guard.name} can't decide: "
        + (
            f"it has {counted(images, 'image')}, but needs {LEAST_IMAGES}"
            if (images := guard.compared[0].images if guard.compared else 0) < LEAST_IMAGES
            else f"too few of its {images:,} images change, or one has most masks"
        )
        for guard in guards
        if not guard.judged
    ]
    return verdict, (*worse, reason, *unjudged)


def _by_truth(truth: Sequence[MeanComparison], unfavored: Sequence[MeanComparison] | None) -> tuple[GateVerdict, str]:
    found = next((each for each in truth if each.measure == DECIDES), None)
    if found is None:
        return GateVerdict.NO_TRUTH, "no independent masks of held-out images could be measured"
    if found.interval is None and found.images >= LEAST_IMAGES:
        return GateVerdict.NO_DIFFERENCE, (
            f"too few of the {found.images:,} images with independent masks change, or one has most of these masks"
        )
    if found.interval is None:
        return GateVerdict.NO_DIFFERENCE, (
            f"only {counted(found.images, 'image')} with independent masks, but an interval needs {LEAST_IMAGES}"
        )
    where = f"the mean IoU at one click changes by {percent_points(found)}"
    if found.interval[0] > 0:
        return GateVerdict.BETTER, f"{where}: the whole interval is above 0"
    if found.below(0):
        if unfavored is None or any(each.measure == DECIDES and each.below(0) for each in unfavored):
            return GateVerdict.WORSE, f"{where}: the whole interval is below 0"
        return GateVerdict.NO_DIFFERENCE, (
            f"{where}: the whole interval is below 0, but not without the masks that favor the first weights"
        )
    return GateVerdict.NO_DIFFERENCE, f"{where}: the interval contains 0"


def percent_points(compared: MeanComparison) -> str:
    """Format a difference and its interval in percentage points, such as `+4.5 (+2.1 to +6.9)`."""
    return percent(compared.difference, compared.interval, "+")
