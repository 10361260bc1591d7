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
    """Sums of scores over the masks of each unit. A unit is an image, or an image's masks in one group.

    `measures` names the M scores, such as `iou_1`. For U units, `counts` (U,) are the numbers of masks, and `sums` (U,
    W, M) are the sums of the scores for W sets of weights.
    """

    measures: tuple[str, ...]
    truth: NDArray[np.int64]
    image_id: tuple[str, ...]
    group: tuple[str | None, ...]
    counts: Floats
    sums: Floats

    @property
    def masks(self) -> int:
        """Number of masks in all units."""
        return int(self.counts.sum())

    def column(self, measure: str) -> int:
        """Return the index of a measure."""
        return self.measures.index(measure)

    def of(self, chosen: NDArray[np.bool_]) -> "ImageScores":
        """Select the units that `chosen`, (U,) bool, marks."""
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
        """Merge the units of each image. The groups of the result are None."""
        keys: dict[tuple[int, str], int] = {}
        for truth, image in zip(self.truth.tolist(), self.image_id, strict=True):
            keys.setdefault((truth, image), len(keys))
        unit = [keys[key] for key in zip(self.truth.tolist(), self.image_id, strict=True)]
        counts, sums = np.zeros(len(keys)), np.zeros((len(keys), *self.sums.shape[1:]))
        np.add.at(counts, unit, self.counts)
        np.add.at(sums, unit, self.sums)
        truths = np.array([truth for truth, _ in keys], np.int64)
        return ImageScores(self.measures, truths, tuple(image for _, image in keys), (None,) * len(keys), counts, sums)


@dataclass(frozen=True, order=True)
class WorstMask:
    """Mask with a low score. `part` is the index of its part in the run, and `row` its row of results."""

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
    """Sum the rows of a run by image and group, part by part, and find the worst masks of each set of weights.

    `keep` receives the rows of each part, without the columns that only the page needs. `group_of` returns the group of
    a row's mask. The rows of a mask must be consecutive, with one row per set of weights. The worst masks have the
    lowest values of the first measure.
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
            order -= 1  # of masks with equal scores, keep the first one
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
