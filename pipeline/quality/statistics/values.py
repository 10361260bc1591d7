"""Dataclasses for the statistics of a dataset, which docs/report.md defines. None means unknown.

Histograms that DuckDB computes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import date
from functools import cached_property
from typing import Any, overload


@dataclass(frozen=True)
class Histogram:
    """Histogram of a value, with its mean. There is one more edge than there are counts.

    `counts` is None if there are masks, but none of them has the value.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...] | None
    mean: float | None


@dataclass(frozen=True)
class SizeConcavity:
    """Concavity of the masks of one size (`small`, `medium`, or `large`), in the same bins as for all masks."""

    size: str
    counts: tuple[int, ...]
    mean: float | None


@dataclass(frozen=True)
class Concavity(Histogram):
    """Concavity of all masks, and separately for each size."""

    by_size: tuple[SizeConcavity, ...]


@dataclass(frozen=True)
class Centers:
    """Map of the masks' centers of mass: `bins` x `bins` counts, with rows from the top."""

    bins: int
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TinyMasks:
    """Masks with fewer than `below_px` pixels."""

    below_px: int
    masks: int


@dataclass(frozen=True)
class HugeMasks:
    """Masks that cover at least the share `above_share` (0 to 1) of their image."""

    above_share: float
    masks: int


@dataclass(frozen=True)
class MaskLevels:
    """Numbers of masks from each of the decoder's three outputs, and of masks that lie inside another mask."""

    outputs: tuple[int, int, int]
    contained: int


@dataclass(frozen=True)
class MaskTableStatistics:
    """Statistics of the columns of the mask tables."""

    masks: int
    relative_size: Histogram
    concavity: Concavity
    aspect_ratio: Histogram
    predicted_iou: Histogram
    stability_score: Histogram
    centers: Centers
    tiny: TinyMasks
    huge: HugeMasks
    levels: MaskLevels


@dataclass(frozen=True)
class LabelMasks:
    """Number of masks with a label. None stands for no label."""

    label: str | None
    masks: int


@dataclass(frozen=True)
class BinImages:
    """Number of images with a number of masks in a bin."""

    label: str
    images: int


@dataclass(frozen=True)
class MasksPerImage:
    """Masks per image."""

    mean: float | None
    median: float | None
    bins: tuple[BinImages, ...]


@dataclass(frozen=True)
class FunnelStep:
    """Number of masks that remain after a step of mask generation."""

    step: str
    masks: int


@dataclass(frozen=True)
class Cleanup:
    """Masks that cleanup changed or removed, and their shares (0 to 1) of the masks before cleanup.

    Of the masks in `cleaned`, `holes` and `islands` count the masks that had a small hole or island. `artifacts` counts
    the masks that were dropped because they trace the outline of a redacted region.
    """

    cleaned: int
    removed: int
    holes: int
    islands: int
    cleaned_share: float | None
    removed_share: float | None
    holes_share: float | None
    islands_share: float | None
    artifacts: int
    artifacts_share: float | None


@dataclass(frozen=True)
class SimilarMasks:
    """Pair of nearly identical masks of the image `id`, with their annotation ids and their IoU."""

    id: int
    annotation_ids: tuple[int, int]
    iou: float


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of masks with an IoU of at least `threshold`, in a sample of the images. `examples` are the first pairs."""

    images_sampled: int
    threshold: float
    masks: int
    pairs: int
    examples: tuple[SimilarMasks, ...]


@dataclass(frozen=True)
class CountryImages:
    """Images of a country, which is given by its code."""

    country: str
    images: int
    masks_per_image: float


@dataclass(frozen=True)
class GroupImages:
    """Images of a region or income level, the countries with images, and the paper's share. Shares are from 0 to 1."""

    name: str
    images: int
    share: float | None
    masks_per_image: float | None
    paper_share: float
    masks: int
    countries: int


@dataclass(frozen=True)
class Geography:
    """Images by country, region, and income level. `known` and `unknown` count images by whether a country is set."""

    known: int
    unknown: int
    countries: tuple[CountryImages, ...]
    regions: tuple[GroupImages, ...]
    income: tuple[GroupImages, ...]


@dataclass(frozen=True)
class LicenseImages:
    """Number of images with a license. None stands for no license."""

    license: str | None
    images: int


@dataclass(frozen=True)
class ProviderImages:
    """Number of images from a provider. None stands for no provider."""

    provider: str | None
    images: int


@dataclass(frozen=True)
class DriftedShard:
    """Shard with a drifting mean of a metric. The mean is `z` standard deviations from the typical mean, `dataset`."""

    metric: str
    shard: int
    value: float
    dataset: float
    z: float


@dataclass(frozen=True)
class Outlier:
    """Image with an unusual value of a metric, and the reason why the value is unusual."""

    id: int
    shard: int
    image_id: str | None
    metric: str
    value: float
    reason: str


@dataclass(frozen=True)
class Statistics:
    """All statistics of a dataset, in the order of their JSON fields.

    Masks without scores, such as manual masks, aren't part of the histograms of scores.
    """

    images: int
    masks: int
    sources: Mapping[str, int] | None  # number of masks by source, automatic first
    labels: tuple[LabelMasks, ...]  # most frequent first; empty if no mask has a label
    relative_size: Histogram
    concavity: Concavity
    aspect_ratio: Histogram
    predicted_iou: Histogram
    stability_score: Histogram
    centers: Centers
    tiny: TinyMasks
    huge: HugeMasks
    levels: MaskLevels
    rejected: int | None
    rejected_by_reason: Mapping[str, int] | None
    masks_per_image: MasksPerImage
    without_masks: int
    coverage: Histogram
    funnel: tuple[FunnelStep, ...] | None
    cleanup: Cleanup | None
    near_duplicates: NearDuplicates
    geography: Geography
    licenses: tuple[LicenseImages, ...]
    providers: tuple[ProviderImages, ...]
    drift: tuple[DriftedShard, ...]
    outliers: tuple[Outlier, ...]

    def to_dict(self) -> dict[str, Any]:
        value: dict[str, Any] = json_value(self)
        return value


def json_value(value: Any) -> Any:
    """Convert a value for JSON. A dataclass becomes a dictionary of its fields in order, and a tuple becomes a list."""
    if is_dataclass(value):
        return {field.name: json_value(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): json_value(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(each) for each in value]
    return value.isoformat() if isinstance(value, date) else value


def json_file(value: Any) -> bytes:
    """Return the contents of a JSON file."""
    return f"{json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)}\n".encode()


@dataclass(frozen=True)
class Bins:
    """Bins of equal width between `low` and `high`, for the values of an SQL expression or their base-2 logarithms.

    A bin includes its lower edge, and the last bin its upper edge, too. A value outside the range counts in the nearest
    bin.
    """

    low: float
    high: float
    count: int
    log2: bool = False

    @cached_property
    def edges(self) -> tuple[float, ...]:
        """The `count` + 1 edges of the bins, in the scale of the values."""
        steps = [self.low + (self.high - self.low) * index / self.count for index in range(self.count + 1)]
        return tuple(2.0**step if self.log2 else round(step, 12) for step in steps)

    def index(self, value: str) -> str:
        """Return an SQL expression for the index of a value's bin. It is null if the value is null."""
        scaled = f"log2({value})" if self.log2 else value
        scale = self.count / (self.high - self.low)
        place = f"floor(least(greatest(({scaled} - {self.low}) * {scale!r}, 0), {self.count - 1}))::INTEGER"
        return f"CASE WHEN {value} IS NOT NULL THEN {place} END"  # because least and greatest ignore nulls

    def counts(self, found: Mapping[int, int], first: int = 0) -> tuple[int, ...]:
        """Convert the result of `histogram` to counts per bin. `first` is the number of the first bin."""
        return tuple(found.get(first + index, 0) for index in range(self.count))


def as_counts(histogram: Any) -> dict[int, int]:
    """Convert DuckDB's histogram map from Arrow (pairs, or None for no values) to a dictionary."""
    return {int(key): int(count) for key, count in histogram or ()}


@overload
def rounded(value: float) -> float: ...
@overload
def rounded(value: float | None) -> float | None: ...
def rounded(value: float | None) -> float | None:
    """Round a mean for reports. Its last digits depend on the order in which threads add numbers."""
    return None if value is None else round(value, 9)
