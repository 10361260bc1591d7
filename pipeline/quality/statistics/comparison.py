"""Comparison of two datasets, and with the figures of the paper (SAM paper, section 5).

Datasets are compared by masks per image, sizes, centers, and concavity at equal sizes. Larger masks are more concave,
so datasets with different mask sizes also differ in concavity. To control for size, the paper draws samples from bins
of mask size. This comparison uses all masks instead, and gives each size bin the same weight in both datasets.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import duckdb

from segmint.catalogs.dataset.tables import read_query
from segmint.pipeline.quality.statistics.masks import SHARES
from segmint.pipeline.quality.statistics.values import (
    Bins,
    Centers,
    Concavity,
    Histogram,
    MasksPerImage,
    Statistics,
    json_value,
    rounded,
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


@dataclass(frozen=True)
class PaperGroup:
    """Region or income level, as a row of table 1.

    The row contains the group's numbers of countries, of images in SA-1B, and of masks in SA-1B, rounded as in the
    paper. It also contains the group's shares of the images in SA-1B, COCO, and Open Images.
    """

    name: str
    countries: int
    images: int
    masks: int
    share: float
    coco_share: float
    open_images_share: float


@dataclass(frozen=True)
class PaperDataset:
    """Number of images and number of masks in a dataset (legend of figure 6)."""

    name: str
    images: int
    masks: int


@dataclass(frozen=True)
class Paper:
    """Figures of the paper. Shares are from 0 to 1."""

    name: str
    masks_per_image: tuple[int, int]  # minimum and maximum over regions and income levels
    islands_share: float  # approximate share of masks in which cleanup removed islands (appendix B)
    holes_share: float  # approximate share of masks in which cleanup filled holes (appendix B)
    regions: tuple[PaperGroup, ...]  # images by region (table 1)
    income: tuple[PaperGroup, ...]  # images by income level (table 1)
    over_90_iou: float  # share of masks whose IoU with their professionally corrected version is over 0.9 (section 5)
    over_75_iou: float  # the same for an IoU over 0.75
    between_annotators: tuple[float, float]  # IoU of annotators' masks of the same object (section 5)
    ratings: tuple[int, int]  # lowest and highest of seven datasets' mean ratings of SAM's masks from one point
    deviation: float  # mean standard deviation of five raters' ratings of a mask, from 1 to 10 (appendix E)
    datasets: tuple[PaperDataset, ...]


PAPER = Paper(
    name="SA-1B",
    masks_per_image=(94, 108),
    islands_share=0.04,
    holes_share=0.04,
    regions=(
        PaperGroup("Africa", 54, 300_000, 28_000_000, 0.028, 0.030, 0.017),
        PaperGroup("Asia & Oceania", 70, 3_900_000, 423_000_000, 0.362, 0.114, 0.143),
        PaperGroup("Europe", 47, 5_400_000, 540_000_000, 0.498, 0.342, 0.362),
        PaperGroup("Latin America & Caribbean", 42, 380_000, 36_000_000, 0.035, 0.031, 0.050),
        PaperGroup("North America", 4, 830_000, 80_000_000, 0.077, 0.483, 0.428),
    ),
    income=(
        PaperGroup("high", 81, 5_800_000, 598_000_000, 0.540, 0.891, 0.875),
        PaperGroup("middle", 108, 4_900_000, 499_000_000, 0.450, 0.105, 0.120),
        PaperGroup("low", 28, 100_000, 9_400_000, 0.009, 0.004, 0.005),
    ),
    over_90_iou=0.94,
    over_75_iou=0.97,
    between_annotators=(0.85, 0.91),
    ratings=(7, 9),
    deviation=0.83,
    datasets=(
        PaperDataset("SA-1B", 11_000_000, 1_100_000_000),
        PaperDataset("Open Images", 1_000_000, 2_700_000),
        PaperDataset("LVIS v1", 120_000, 1_500_000),
        PaperDataset("COCO", 123_000, 900_000),
        PaperDataset("ADE20K", 28_000, 700_000),
    ),
)
"""Figures of the Segment Anything paper."""


@dataclass(frozen=True)
class MasksBin:
    """Bin of masks per image, with inclusive bounds. If `high` is None, the bin has no upper bound."""

    label: str
    low: int
    high: int | None

    def holds(self, masks: int) -> bool:
        """Return whether an image with `masks` masks belongs in this bin."""
        return masks >= self.low and (self.high is None or masks <= self.high)


MASKS_PER_IMAGE = (
    MasksBin("<=10", 0, 10),
    MasksBin("11-50", 11, 50),
    MasksBin("51-100", 51, 100),
    MasksBin("101-200", 101, 200),
    MasksBin(">200", 201, None),
)
"""Bins of masks per image in the paper (figure 6), in ascending order."""
