"""Comparison of two datasets by masks per image, sizes, centers, and concavity at equal sizes (SAM paper, section 5).

Larger masks are more concave, so datasets with different mask sizes also differ in concavity. To control for size, the
paper draws samples from bins of mask size. This comparison uses all masks instead, and gives each size bin the same
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
"""Strata of relative size, each half an octave wide, from 1/256 to 1."""

LEAST_MASKS = 10
"""Minimum number of masks in each dataset for a stratum to be compared."""


@dataclass(frozen=True)
class SizeStratum:
    """Masks in one stratum of size: their count, their count per bin of concavity, and their mean concavity."""

    masks: int
    counts: Mapping[int, int]
    mean: float


@dataclass(frozen=True)
class ConcavityAtSizes:
    """Concavity of a dataset's masks, limited to the sizes that both datasets contain.

    `shares` are the shares per bin of concavity. `share_of_masks` is the share of the dataset's masks with these sizes.
    All shares are from 0 to 1. If the datasets have no size in common, `mean` is None and `shares` is empty.
    """

    mean: float | None
    shares: tuple[float, ...]
    share_of_masks: float


@dataclass(frozen=True)
class ComparedDataset:
    """Dataset in a comparison."""

    name: str
    dataset: str  # URI of the dataset
    images: int
    masks: int
    masks_per_image: MasksPerImage
    relative_size: Histogram
    concavity: Concavity
    centers: Centers
    concavity_at_same_sizes: ConcavityAtSizes


@dataclass(frozen=True)
class DatasetComparison:
    """Comparison of two datasets. The edges bound the bins of relative size and concavity at equal sizes."""

    least_masks: int
    size_edges: tuple[float, ...]
    concavity_edges: tuple[float, ...]
    ours: ComparedDataset
    theirs: ComparedDataset

    def to_dict(self) -> dict[str, Any]:
        value: dict[str, Any] = json_value(self)
        return value


@dataclass(frozen=True)
class DatasetMeasures:
    """Measurements of a dataset that a comparison needs."""

    name: str
    dataset: str
    statistics: Statistics
    strata: Mapping[int, SizeStratum]  # by the bin of relative size


def concavity_by_size(connection: duckdb.DuckDBPyConnection) -> dict[int, SizeStratum]:
    """Group the masks in the view `masks` into strata, by the stratum's index in `SIZES`.

    Masks without a positive relative size or without a concavity are skipped.
    """
    query = f"""
        SELECT {SIZES.index("relative_size")} AS size, {SHARES.index("concavity")} AS bin, count(*) AS masks,
            sum(concavity) AS total
        FROM masks WHERE isfinite(relative_size) AND relative_size > 0 AND isfinite(concavity) GROUP BY ALL
    """
    with connection.cursor() as cursor:
        rows = read_query(cursor, query).to_pylist()
    by_size: dict[int, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (int(row["size"]), int(row["bin"]))):
        by_size.setdefault(int(row["size"]), []).append(row)
    found = {}
    for size, mine in by_size.items():
        counts = {int(row["bin"]): row["masks"] for row in mine}
        masks = sum(counts.values())
        found[size] = SizeStratum(masks, counts, sum(row["total"] for row in mine) / masks)
    return found


def compare(ours: DatasetMeasures, theirs: DatasetMeasures) -> DatasetComparison:
    """Compare two datasets.

    For the concavity at equal sizes, a stratum's weight is the mean of its shares of the two datasets' masks. Only
    strata with at least `LEAST_MASKS` masks in each dataset count.
    """
    ours_at, theirs_at = at_same_sizes(ours.strata, theirs.strata)
    return DatasetComparison(LEAST_MASKS, SIZES.edges, SHARES.edges, _side(ours, ours_at), _side(theirs, theirs_at))


def at_same_sizes(
    ours: Mapping[int, SizeStratum], theirs: Mapping[int, SizeStratum]
) -> tuple[ConcavityAtSizes, ConcavityAtSizes]:
    """Compute each dataset's concavity over the strata that both contain, with the same weights for both."""
    both, our_masks, their_masks = [], 0, 0
    for size in sorted(ours.keys() & theirs.keys()):
        if min(ours[size].masks, theirs[size].masks) >= LEAST_MASKS:
            both.append(size)
            our_masks += ours[size].masks
            their_masks += theirs[size].masks
    weights = {size: (ours[size].masks / our_masks + theirs[size].masks / their_masks) / 2 for size in both}
    return _weighted(ours, weights), _weighted(theirs, weights)


def _weighted(strata: Mapping[int, SizeStratum], weights: Mapping[int, float]) -> ConcavityAtSizes:
    if not weights:
        return ConcavityAtSizes(None, (), 0.0)
    shares = []
    for bin in range(SHARES.count):
        parts = (weight * strata[size].counts.get(bin, 0) / strata[size].masks for size, weight in weights.items())
        shares.append(rounded(sum(parts)))
    mean = sum(weight * strata[size].mean for size, weight in weights.items())
    covered = sum(strata[size].masks for size in weights) / sum(stratum.masks for stratum in strata.values())
    return ConcavityAtSizes(rounded(mean), tuple(shares), rounded(covered))


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
