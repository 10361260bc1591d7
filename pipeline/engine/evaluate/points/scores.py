"""Scores of an evaluation by image, the input of means, intervals, and tests."""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segmint.operators.rows import Row
from segmint.pipeline.engine.evaluate.measure import PartResult
from segmint.pipeline.engine.evaluate.points.measure import DRAWN

Floats = NDArray[np.float64]

WORST = 12
"""Number of masks that a page draws."""


@dataclass(frozen=True)
class ImageScores:
    """Sums of scores over the masks of each image, or of each image and group: U units.

    `measures` names the M scores, such as `iou_1`. `counts` (U,) are numbers of masks, and `sums` (U, W, M) are the
    sums of scores for W sets of weights.
    """

    measures: tuple[str, ...]
    truth: NDArray[np.int64]
    image_id: tuple[str, ...]
    group: tuple[str | None, ...]
    counts: Floats
    sums: Floats

    @property
    def masks(self) -> int:
        """Number of all masks."""
        return int(self.counts.sum())

    def column(self, measure: str) -> int:
        """Return the index of a measure."""
        return self.measures.index(measure)

    def of(self, chosen: NDArray[np.bool_]) -> "ImageScores":
        """Return the chosen units, (U,) bool."""
        places = np.flatnonzero(chosen).tolist()
        return ImageScores(
            self.measures,
            self.truth[places],
            tuple(self.image_id[place] for place in places),
            tuple(self.group[place] for place in places),
            self.counts[places],
            self.sums[places],
        )

    def by_image(self) -> "ImageScores":
        """Return the scores with the units of each image merged; the groups are None."""
        keys: dict[tuple[int, str], int] = {}
        for truth, image in zip(self.truth.tolist(), self.image_id, strict=True):
            keys.setdefault((truth, image), len(keys))
        unit = [keys[key] for key in zip(self.truth.tolist(), self.image_id, strict=True)]
        counts, sums = np.zeros(len(keys)), np.zeros((len(keys), *self.sums.shape[1:]))
        np.add.at(counts, unit, self.counts)
        np.add.at(sums, unit, self.sums)
        truths = np.array([truth for truth, _ in keys], np.int64)
        return ImageScores(self.measures, truths, tuple(image for _, image in keys), (None,) * len(keys), counts, sums)

    def differences(self, first: int = 0, second: int = 1) -> Floats:
        """Return the second weights' sums minus the first's, (U, M), for means and tests with `counts`."""
        difference: Floats = self.sums[:, second] - self.sums[:, first]
        return difference


@dataclass(frozen=True, order=True)
class WorstMask:
    """Mask with a low score; `part` is the index of its part in the run, `row` its row of results."""

    badness: float
    order: int
    part: int = field(compare=False)
    row: Row = field(compare=False)


def collect(
    results: Iterable[PartResult],
    measures: tuple[str, ...],
    weights: int,
    group_of: Callable[[Row], str | None],
    keep: Callable[[pa.Table], None] = lambda table: None,
) -> tuple[ImageScores, list[list[WorstMask]]]:
    """Sum the rows of a run by image and group, part by part. Also returns the worst masks of each set of weights.

    `keep` receives the rows of each part without the columns that only the page needs. `group_of` returns the group of
    a row's mask. Rows of a mask are consecutive, one for each set of weights. The worst masks are lowest in the first
    measure.
    """
    units: dict[tuple[int, str, str | None], int] = {}
    counts: list[float] = []
    sums: list[Floats] = []
    heaps: list[list[WorstMask]] = [[] for _ in range(weights)]
    order = 0
    for part, result in enumerate(results):
        groups = []
        for row in result.table.to_pylist():
            group = group_of(row)
            groups.append(group)
            place = units.setdefault((row["truth"], row["image_id"], group), len(units))
            if place == len(counts):
                counts.append(0.0)
                sums.append(np.zeros((weights, len(measures))))
            counts[place] += row["weights"] == 0
            sums[place][row["weights"]] += [row[name] for name in measures]
            order -= 1  # if scores are equal, the first one is kept
            found = WorstMask(-row[measures[0]], order, part, row)
            (heapq.heappush if len(heaps[row["weights"]]) < WORST else heapq.heappushpop)(heaps[row["weights"]], found)
        table = result.table.drop_columns(DRAWN)
        keep(table.set_column(table.schema.get_field_index("group"), "group", pa.array(groups, pa.string())))
    scores = ImageScores(
        measures,
        np.array([truth for truth, _, _ in units], np.int64),
        tuple(image for _, image, _ in units),
        tuple(group for _, _, group in units),
        np.array(counts),
        np.array(sums).reshape(len(units), weights, len(measures)),
    )
    return scores, [sorted(heap, reverse=True) for heap in heaps]
