"""The statistics of a dataset as values. docs/statistics.md says what each is; None is what cannot be known."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import date
from typing import Any


@dataclass(frozen=True)
class Histogram:
    """Counts by bin and the mean of a value. Bins have one more edge than counts.

    `counts` is None where there are masks, and none of them has the value.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...] | None
    mean: float | None


@dataclass(frozen=True)
class SizeConcavity:
    """The concavity of the masks of one size (`small`, `medium` or `large`), in the bins of all masks."""

    size: str
    counts: tuple[int, ...]
    mean: float | None


@dataclass(frozen=True)
class Concavity(Histogram):
    """The concavity of all masks, and of each size."""

    by_size: tuple[SizeConcavity, ...]


@dataclass(frozen=True)
class Centers:
    """Masks by their center of mass: `bins` x `bins` counts, rows from the top."""

    bins: int
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TinyMasks:
    """Masks of fewer pixels than `below_px`."""

    below_px: int
    masks: int


@dataclass(frozen=True)
class HugeMasks:
    """Masks that cover the share `above_share` (0 to 1) of their image, or more."""

    above_share: float
    masks: int


@dataclass(frozen=True)
class MaskTableStatistics:
    """What the columns of all masks say."""

    masks: int
    relative_size: Histogram
    concavity: Concavity
    aspect_ratio: Histogram
    predicted_iou: Histogram
    stability_score: Histogram
    centers: Centers
    tiny: TinyMasks
    huge: HugeMasks


@dataclass(frozen=True)
class BinImages:
    """Images whose number of masks is in a bin."""

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
    """Masks left after a step of their generation."""

    step: str
    masks: int


@dataclass(frozen=True)
class Cleanup:
    """Masks that clean-up changed or removed, and their shares (0 to 1) of the masks before it.

    `holes` and `islands` are those of `cleaned` that had a small one of each; `artifacts` are masks that were dropped
    because they trace a redacted region.
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
    """Two masks of the image `id` that are nearly the same, by their annotation ids, and their IoU."""

    id: int
    annotation_ids: tuple[int, int]
    iou: float


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of masks with an IoU of at least `threshold` in a sample of the images; `examples` are the first."""

    images_sampled: int
    threshold: float
    masks: int
    pairs: int
    examples: tuple[SimilarMasks, ...]


@dataclass(frozen=True)
class CountryImages:
    """The images of a country, by its code."""

    country: str
    images: int
    masks_per_image: float


@dataclass(frozen=True)
class GroupImages:
    """The images of a region or an income level, with the share that the paper gives; shares are 0 to 1.

    `countries` are those with images.
    """

    name: str
    images: int
    share: float | None
    masks_per_image: float | None
    paper_share: float
    masks: int
    countries: int


@dataclass(frozen=True)
class Geography:
    """Images by country, region and income level; `known` and `unknown` count images."""

    known: int
    unknown: int
    countries: tuple[CountryImages, ...]
    regions: tuple[GroupImages, ...]
    income: tuple[GroupImages, ...]


@dataclass(frozen=True)
class LicenseImages:
    """The images of a license; None: of those without one."""

    license: str | None
    images: int


@dataclass(frozen=True)
class ProviderImages:
    """The images of a provider; None: of those without one."""

    provider: str | None
    images: int


@dataclass(frozen=True)
class DriftedShard:
    """A shard whose mean of a metric is far from the other shards': `z` standard deviations from `dataset`."""

    metric: str
    shard: int
    value: float
    dataset: float
    z: float


@dataclass(frozen=True)
class Outlier:
    """An image far from the others in a metric, and why it counts as far."""

    id: int
    shard: int
    image_id: str | None
    metric: str
    value: float
    reason: str


@dataclass(frozen=True)
class Statistics:
    """All statistics of a dataset, in the order of their JSON.

    Masks without scores, as people make them, do not count in the histograms of scores.
    """

    images: int
    masks: int
    sources: Mapping[str, int] | None  # masks by source, those of a build first
    relative_size: Histogram
    concavity: Concavity
    aspect_ratio: Histogram
    predicted_iou: Histogram
    stability_score: Histogram
    centers: Centers
    tiny: TinyMasks
    huge: HugeMasks
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
        """The statistics as JSON has them."""
        value: dict[str, Any] = json_value(self)
        return value


def json_value(value: Any) -> Any:
    """A value as JSON has it: a dataclass as a dictionary of its fields in their order, a tuple as a list."""
    if is_dataclass(value):
        return {field.name: json_value(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): json_value(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(each) for each in value]
    return value.isoformat() if isinstance(value, date) else value
