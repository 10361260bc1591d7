"""Plots of a report: the statistics and the paper's figures, as values to draw."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from segmint.catalogs.countries import countries
from segmint.infra.wording import UNKNOWN, count, share
from segmint.pipeline.quality.report.plots import Bar, Bars, HeatMap, StepHistogram, heat_map, histogram, shares_of
from segmint.pipeline.quality.statistics.values import Concavity, FunnelStep, GroupImages, Histogram, Statistics

COUNTRIES_SHOWN = 20
_OTHERS_SHOWN = 15
_LABELS_SHOWN = 30
_UNLABELED = "no label"

_MASKS = "share of masks"

_STEPS = {
    "predicted": "predicted",
    "over_iou": "above the IoU threshold",
    "stable": "stable",
    "under_max_area": "below the maximum area",
    "inside_crop": "away from crop edges",
    "after_nms1": "after NMS within crops",
    "after_nms2": "after NMS between crops",
    "written": "written",
}


@dataclass(frozen=True)
class Charts:
    """Plots of a report. A plot is None or empty if its data is unknown."""

    masks_per_image: Bars | None
    relative_size: StepHistogram | None
    concavity: tuple[StepHistogram, ...]
    centers: HeatMap | None
    scores: tuple[StepHistogram, ...]
    funnel: Bars | None
    countries: Bars | None
    regions: Bars | None
    income: Bars | None
    licenses: Bars | None
    providers: Bars | None
    labels: Bars | None
    rejected: Bars | None


def charts_of(statistics: Statistics) -> Charts:
    """Create the plots of the statistics. Unknown values have no plot."""
    scores = (
        histogram(_up_to_1(statistics.predicted_iou), "Predicted IoU", "predicted IoU; above 1 counts as 1", _MASKS),
        histogram(statistics.stability_score, "Stability score", "stability score", _MASKS),
        histogram(statistics.aspect_ratio, "Aspect ratio", "width / height of a mask's box", _MASKS),
        histogram(statistics.coverage, "Coverage", "share of an image's pixels covered by masks", "share of images"),
    )
    geography = statistics.geography
    reasons = statistics.rejected_by_reason or {}
    return Charts(
        masks_per_image=_bars(
            "Masks",
            "Images",
            [(row.label.replace("<=", "≤ ").replace(">", "> "), row.images) for row in statistics.masks_per_image.bins],
        ),
        relative_size=histogram(statistics.relative_size, "Relative size", "√(mask's area / image's area)", _MASKS),
        concavity=_concavity(statistics.concavity),
        centers=heat_map(statistics.centers, "Mask centers"),
        scores=tuple(score for score in scores if score is not None),
        funnel=_funnel(statistics.funnel or ()),
        countries=ranked(
            ((_country_name(row.country), row.images) for row in geography.countries), "Country", COUNTRIES_SHOWN
        ),
        regions=_with_paper(geography.regions, "Region"),
        income=_with_paper(geography.income, "Income level"),
        licenses=ranked(((row.license, row.images) for row in statistics.licenses), "License", _OTHERS_SHOWN),
        providers=ranked(((row.provider, row.images) for row in statistics.providers), "Provider", _OTHERS_SHOWN),
        labels=ranked(
            ((row.label or _UNLABELED, row.masks) for row in statistics.labels), "Label", _LABELS_SHOWN, "Masks"
        ),
        rejected=_bars("Reason", "Rejected rows", sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
    )


def ranked(counted: Iterable[tuple[str | None, int]], label: str, shown: int, value: str = "Images") -> Bars | None:
    """Convert counts by name to bars, most frequent first. The names after the first `shown` share one bar.

    Returns None without names.
    """
    known = sorted((row for row in counted if row[1]), key=lambda row: (-row[1], str(row[0])))
    if not any(name for name, _ in known):
        return None
    counts = [(name or UNKNOWN, total) for name, total in known[:shown]]
    rest = known[shown:]
    if rest:
        counts.append((f"{len(rest):,} others", sum(total for _, total in rest)))
    return _bars(label, value, counts)


def _bars(label: str, value: str, counts: Sequence[tuple[str, int]]) -> Bars | None:
    """Convert counts to bars of their shares, or return None if all counts are zero."""
    if not sum(total for _, total in counts):
        return None
    shares = shares_of([total for _, total in counts])
    rows = []
    for (name, total), part in zip(counts, shares, strict=True):
        rows.append(Bar(name, part, _with_share(total, part)))
    return Bars(label, value, tuple(rows))


def _with_paper(groups: Sequence[GroupImages], label: str) -> Bars | None:
    """Create bars for regions or income levels, next to the paper's shares."""
    if not any(group.images for group in groups):
        return None
    bars = [Bar(group.name, group.share, _with_share(group.images, group.share), group.paper_share) for group in groups]
    return Bars(label, "Images", tuple(bars), has_paper=True)


def _concavity(concavity: Concavity) -> tuple[StepHistogram, ...]:
    found = []
    for row in concavity.by_size:
        values = Histogram(concavity.edges, row.counts, row.mean)
        steps = histogram(values, f"{row.size.capitalize()} masks", "1 − area / area of the convex hull", _MASKS)
        if steps is not None:
            found.append(steps)
    return tuple(found)


def _funnel(steps: Sequence[FunnelStep]) -> Bars | None:
    if not steps or not steps[0].masks:
        return None
    first = steps[0].masks
    rows = []
    for row in steps:
        share = row.masks / first
        rows.append(Bar(_STEPS.get(row.step, row.step), share, _with_share(row.masks, share)))
    return Bars("Step", "Masks", tuple(rows))


def _up_to_1(scores: Histogram) -> Histogram:
    """Let the last bin of a histogram end at 1 and include all higher scores, because an IoU can't exceed 1."""
    if scores.counts is None:
        return scores
    last = sum(edge < 1 - 1e-9 for edge in scores.edges)
    counts = (*scores.counts[: last - 1], sum(scores.counts[last - 1 :]))
    mean = scores.mean
    if mean is not None:
        mean = min(1, mean)
    return Histogram(scores.edges[: last + 1], counts, mean)


def _with_share(total: int, part: float | None) -> str:
    return f"{count(total)} ({share(part)})"


def _country_name(code: str) -> str:
    """Return a country's name, or its code if the country is unknown."""
    country = countries().get(code)
    if country is None:
        return code
    return country.name
