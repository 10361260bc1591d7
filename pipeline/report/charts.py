"""The plots of a report: the statistics and the paper's figures, as values to draw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segmint.catalogs.countries import countries
from segmint.infra.wording import count, number, share
from segmint.pipeline.report.plots import Bar, Bars, HeatMap, Steps, heat_map, histogram, shares_of

COUNTRIES_SHOWN = 20
_OTHERS_SHOWN = 15

_MASKS = "share of masks"

_SCORES = {
    "predicted_iou": ("Predicted IoU", "predicted IoU", _MASKS),
    "stability_score": ("Stability score", "stability score", _MASKS),
    "aspect_ratio": ("Aspect ratio", "width / height of a mask's box", _MASKS),
    "coverage": ("Coverage", "share of an image's pixels covered by masks", "share of images"),
}

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
    """The plots; None or empty if the data is unknown."""

    masks_per_image: Bars | None
    relative_size: Steps | None
    concavity: tuple[Steps, ...]
    centers: HeatMap | None
    scores: tuple[Steps, ...]
    funnel: Bars | None
    countries: Bars | None
    regions: Bars | None
    income: Bars | None
    licenses: Bars | None
    providers: Bars | None
    rejected: Bars | None


def charts_of(statistics: Mapping[str, Any]) -> Charts:
    """Return the plots of these statistics; null or absent ones have no plot."""
    scores = [histogram(statistics.get(key), *labels) for key, labels in _SCORES.items()]
    geography = statistics.get("geography") or {}
    bins = (statistics.get("masks_per_image") or {}).get("bins") or []
    reasons = statistics.get("rejected_by_reason") or {}
    return Charts(
        masks_per_image=_bars(
            "Masks", "Images", [(row["label"].replace("<=", "≤ ").replace(">", "> "), row["images"]) for row in bins]
        ),
        relative_size=histogram(
            statistics.get("relative_size"), "Relative size", "√(mask's area / image's area)", _MASKS
        ),
        concavity=_concavity(statistics.get("concavity")),
        centers=heat_map(statistics.get("centers"), "Mask centers"),
        scores=tuple(score for score in scores if score is not None),
        funnel=_funnel(statistics.get("funnel") or []),
        countries=ranked(_named(geography.get("countries")), "country", "Country", COUNTRIES_SHOWN),
        regions=_with_paper(geography.get("regions"), "Region"),
        income=_with_paper(geography.get("income"), "Income level"),
        licenses=ranked(statistics.get("licenses"), "license", "License", _OTHERS_SHOWN),
        providers=ranked(statistics.get("providers"), "provider", "Provider", _OTHERS_SHOWN),
        rejected=_bars("Reason", "Refused rows", sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
    )


def ranked(rows: Sequence[Mapping[str, Any]] | None, key: str, label: str, shown: int) -> Bars | None:
    """Return images by a property as bars, most frequent first; those beyond `shown` are one bar.

    None if no row has the property.
    """
    known = sorted((row for row in rows or () if row["images"]), key=lambda row: (-row["images"], str(row[key])))
    if not any(row[key] for row in known):
        return None
    counts = [(str(row[key] or "unknown"), row["images"]) for row in known[:shown]]
    rest = known[shown:]
    if rest:
        counts.append((f"{len(rest):,} others", sum(row["images"] for row in rest)))
    return _bars(label, "Images", counts)


def _bars(label: str, value: str, counts: Sequence[tuple[str, int]]) -> Bars | None:
    """Return counts as bars of their shares; None if there is nothing to count."""
    if not sum(total for _, total in counts):
        return None
    shares = shares_of([total for _, total in counts])
    rows = [Bar(name, part, _with_share(total, part)) for (name, total), part in zip(counts, shares, strict=True)]
    return Bars(label, value, tuple(rows))


def _with_paper(rows: Sequence[Mapping[str, Any]] | None, label: str) -> Bars | None:
    """Return regions or income levels, with the paper's shares and their masks per image."""
    if not any(row["images"] for row in rows or ()):
        return None
    bars = [
        Bar(
            row["name"],
            row["share"],
            _with_share(row["images"], row["share"]),
            row["paper_share"],
            number(row["masks_per_image"]) if row["images"] else "",
        )
        for row in rows or ()
    ]
    return Bars(label, "Images", tuple(bars), has_paper=True, more="Masks per image")


def _concavity(statistic: Mapping[str, Any] | None) -> tuple[Steps, ...]:
    if not statistic:
        return ()
    found = [
        histogram(
            {"edges": statistic.get("edges"), **row},
            f"{row['size'].capitalize()} masks",
            "1 − area / area of the convex hull",
            _MASKS,
        )
        for row in statistic.get("by_size") or []
    ]
    return tuple(steps for steps in found if steps is not None)


def _funnel(steps: Sequence[Mapping[str, Any]]) -> Bars | None:
    known = [(row["step"], row["masks"]) for row in steps if row.get("masks") is not None]
    if not known or not known[0][1]:
        return None
    whole = known[0][1]
    rows = [Bar(_STEPS.get(step, step), masks / whole, _with_share(masks, masks / whole)) for step, masks in known]
    return Bars("Step", "Masks", tuple(rows))


def _with_share(total: int, part: float) -> str:
    return f"{count(total)} ({share(part)})"


def _named(rows: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Replace known country codes by names."""
    known = countries()
    return [
        {**row, "country": known[row["country"]].name if row["country"] in known else row["country"]}
        for row in rows or ()
    ]
