"""Comparison of two datasets by masks per image, sizes, centers, and concavity at equal sizes (SAM paper, section 5).

Larger masks are more concave, so datasets that differ in mask size also differ in concavity. The paper controls for
size by drawing samples from bins of mask size. This comparison uses all masks instead, and gives each size bin the same
weight in both datasets.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import duckdb

from segmint.catalogs.dataset.tables import read_query
from segmint.pipeline.quality.statistics.histograms import Bins, rounded
from segmint.pipeline.quality.statistics.masks import SHARES
from segmint.pipeline.quality.statistics.values import (
    Centers,
    Concavity,
    Histogram,
    MasksPerImage,
    Statistics,
    json_value,
)

SIZES = Bins(-8, 0, 16, log2=True)
"""Strata of relative size: half octaves from 1/256 to 1."""

LEAST_MASKS = 10
"""Minimum number of masks that a stratum needs in each dataset to be compared."""


@dataclass(frozen=True)
class SizeStratum:
    """Masks of one size: their count, count per bin of concavity, and mean concavity."""

    masks: int
    counts: Mapping[int, int]
    mean: float


@dataclass(frozen=True)
class ConcavityAtSizes:
    """Concavity of one dataset's masks at the sizes that both datasets contain.

    `shares` are per bin of concavity. `share_of_masks` is the fraction of the dataset's masks that have such a size.
    All shares are 0 to 1. If no size is in both, `mean` is None and `shares` is empty.
    """

    mean: float | None
    shares: tuple[float, ...]
    share_of_masks: float


@dataclass(frozen=True)
class ComparedDataset:
    """One of the two datasets of a comparison."""

    name: str
    dataset: str  # its URI
    images: int
    masks: int
    masks_per_image: MasksPerImage
    relative_size: Histogram
    concavity: Concavity
    centers: Centers
    concavity_at_same_sizes: ConcavityAtSizes


@dataclass(frozen=True)
class DatasetComparison:
    """Two compared datasets, and the bin edges of relative size and concavity for `concavity_at_same_sizes`."""

    least_masks: int
    size_edges: tuple[float, ...]
    concavity_edges: tuple[float, ...]
    ours: ComparedDataset
    theirs: ComparedDataset

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        value: dict[str, Any] = json_value(self)
        return value


@dataclass(frozen=True)
class DatasetMeasures:
    """Measurements of one dataset that a comparison needs."""

    name: str
    dataset: str
    statistics: Statistics
    strata: Mapping[int, SizeStratum]  # by the bin of relative size


def concavity_by_size(connection: duckdb.DuckDBPyConnection) -> dict[int, SizeStratum]:
    """Return the masks of each stratum in the view `masks`, by the stratum's index in `SIZES`.

    Masks without a positive relative size or without a concavity are skipped.
    """
    query = f"""
        SELECT {SIZES.index("relative_size")} AS size, {SHARES.index("concavity")} AS bin, count(*) AS masks,
            sum(concavity) AS total
        FROM masks WHERE isfinite(relative_size) AND relative_size > 0 AND isfinite(concavity) GROUP BY ALL
    """
    with connection.cursor() as cursor:
        rows = read_query(cursor, query).to_pylist()
    found = {}
    for size in sorted({row["size"] for row in rows}):
        mine = sorted((row for row in rows if row["size"] == size), key=lambda row: int(row["bin"]))
        masks = sum(row["masks"] for row in mine)
        mean = sum(row["total"] for row in mine) / masks
        found[int(size)] = SizeStratum(masks, {int(row["bin"]): row["masks"] for row in mine}, mean)
    return found


def compare(ours: DatasetMeasures, theirs: DatasetMeasures) -> DatasetComparison:
    """Compare two datasets.

    A stratum's weight is the mean of its share of one dataset's masks and its share of the other's. Only strata with at
    least `LEAST_MASKS` masks in each dataset count.
    """
    ours_at, theirs_at = at_same_sizes(ours.strata, theirs.strata)
    return DatasetComparison(LEAST_MASKS, SIZES.edges, SHARES.edges, _side(ours, ours_at), _side(theirs, theirs_at))


def at_same_sizes(
    ours: Mapping[int, SizeStratum], theirs: Mapping[int, SizeStratum]
) -> tuple[ConcavityAtSizes, ConcavityAtSizes]:
    """Return the concavity of each dataset with the same weights for the strata that both contain."""
    both = [size for size in sorted(ours) if size in theirs]
    both = [size for size in both if min(ours[size].masks, theirs[size].masks) >= LEAST_MASKS]
    totals = [sum(side[size].masks for size in both) for side in (ours, theirs)]
    weights = {size: (ours[size].masks / totals[0] + theirs[size].masks / totals[1]) / 2 for size in both}
    return _weighted(ours, weights), _weighted(theirs, weights)


def _weighted(strata: Mapping[int, SizeStratum], weights: Mapping[int, float]) -> ConcavityAtSizes:
    if not weights:
        return ConcavityAtSizes(None, (), 0.0)
    shares = [
        sum(weight * strata[size].counts.get(bin, 0) / strata[size].masks for size, weight in weights.items())
        for bin in range(SHARES.count)
    ]
    mean = sum(weight * strata[size].mean for size, weight in weights.items())
    covered = sum(strata[size].masks for size in weights) / sum(stratum.masks for stratum in strata.values())
    return ConcavityAtSizes(rounded(mean), tuple(rounded(share) for share in shares), rounded(covered))


def _side(measured: DatasetMeasures, at_sizes: ConcavityAtSizes) -> ComparedDataset:
    statistics = measured.statistics
    return ComparedDataset(
        name=measured.name,
        dataset=measured.dataset,
        images=statistics.images,
        masks=statistics.masks,
        masks_per_image=statistics.masks_per_image,
        relative_size=statistics.relative_size,
        concavity=statistics.concavity,
        centers=statistics.centers,
        concavity_at_same_sizes=at_sizes,
    )
