"""The report's page: an audit and the statistics as the sentences, tables and plots of its template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from markupsafe import Markup

from segmint.catalogs.findings import INTEGRITY
from segmint.infra.version import VERSION
from segmint.infra.wording import UNKNOWN, count, counted, listed, number, share, size
from segmint.pipeline.report.charts import Charts
from segmint.pipeline.report.facts import Facts
from segmint.pipeline.report.findings import FoundGroup, groups_of
from segmint.pipeline.report.samples import Picture
from segmint.pipeline.report.templates import ASSETS, FILTERS
from segmint.pipeline.statistics.masks import LARGE, SMALL
from segmint.pipeline.statistics.paper import PAPER
from segmint.pipeline.statistics.shards import LEAST_IMAGES, LEAST_SHARDS

AREAS = (INTEGRITY, "licenses", "privacy", "duplicates")
NOT_AUDITED = "not audited"


@dataclass(frozen=True)
class Pictures:
    """The images of a report: those with findings, outliers, and a sample; `why` says why there are none."""

    flagged: tuple[Picture, ...] = ()
    samples: tuple[Picture, ...] = ()
    why: str = ""

    @property
    def shown(self) -> frozenset[int]:
        """The ids of the images on the page."""
        return frozenset(picture.id for picture in (*self.flagged, *self.samples))


@dataclass(frozen=True)
class Area:
    """One line of the verdict; `state` is `good`, `bad` or empty."""

    name: str
    anchor: str
    word: str
    state: str = ""


@dataclass(frozen=True)
class Verdict:
    """What was checked and what was found, at a glance."""

    word: str
    state: str
    checked: str
    areas: tuple[Area, ...]


def render_page(
    audit: Mapping[str, Any], statistics: Mapping[str, Any], facts: Facts, charts: Charts, pictures: Pictures
) -> str:
    """Return the page as HTML: one file, without scripts, that loads nothing."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(FILTERS)
    groups = {area: groups_of(audit, area) for area in AREAS}
    twins = statistics.get("near_duplicates") or {}
    return environment.get_template("report.html.j2").render(
        css=Markup((ASSETS / "report.css").read_text(encoding="utf-8")),
        version=VERSION,
        audit=audit,
        facts=facts,
        charts=charts,
        groups=groups,
        verdict=verdict_of(audit, statistics, groups),
        tiles=_tiles(statistics, facts),
        licenses=audit["licenses"],
        privacy=audit["privacy"] if is_searched(audit) else None,
        duplicates=audit["duplicates"],
        bundled=[detector.name for detector in facts.detectors if detector.bundled],
        credits=[credit for credit in facts.credits if credit.attribution or credit.provider],
        masks_sentence=_masks_sentence(statistics),
        datasets=[{"name": facts.name, "images": facts.images, "masks": facts.masks}, *PAPER.datasets],
        paper=PAPER,
        sizes=(SMALL, LARGE),
        least_images=LEAST_IMAGES,
        least_shards=LEAST_SHARDS,
        remarks=remarks_of(statistics),
        twins=twins.get("examples") or [],
        geography=statistics.get("geography") or {"known": 0},
        drift=statistics.get("drift") or [],
        outliers=statistics.get("outliers") or [],
        flagged=pictures.flagged,
        samples=pictures.samples,
        pictures_why=pictures.why,
        shown=pictures.shown,
        made=made_of(facts),
    )


def is_searched(audit: Mapping[str, Any]) -> bool:
    """Whether a detector searched any released image again."""
    privacy = audit["privacy"]
    return privacy is not None and bool(privacy["images_checked"] and privacy["detectors"])


def verdict_of(
    audit: Mapping[str, Any], statistics: Mapping[str, Any], groups: Mapping[str, Sequence[FoundGroup]]
) -> Verdict:
    """Return the box at the top of the page."""
    total = audit["findings_total"]
    word, state = (counted(total, "finding"), "bad") if total else ("No findings", "good")
    return Verdict(word, state, _checked(audit["checked"]), tuple(_areas(audit, statistics, groups)))


def remarks_of(statistics: Mapping[str, Any]) -> list[str]:
    """Return sentences on what the plots do not show."""
    remarks = []
    if statistics.get("without_masks") is not None:
        remarks.append(f"{counted(statistics['without_masks'], 'image')} without masks.")
    tiny, huge, cleanup, twins = (statistics.get(key) or {} for key in ("tiny", "huge", "cleanup", "near_duplicates"))
    if tiny.get("masks") is not None:
        remarks.append(f"{counted(tiny['masks'], 'mask')} under {count(tiny['below_px'])} pixels.")
    if huge.get("masks") is not None:
        remarks.append(f"{counted(huge['masks'], 'mask')} larger than {share(huge['above_share'])} of the image.")
    if cleanup.get("cleaned") is not None:
        remarks.append(
            f"Clean-up filled holes or removed islands in {counted(cleanup['cleaned'], 'mask')} "
            f"({share(cleanup.get('cleaned_share'))}), and removed {counted(cleanup.get('removed'), 'mask')} "
            f"({share(cleanup.get('removed_share'))})."
        )
    if twins.get("pairs") is not None:
        remarks.append(
            f"{counted(twins['pairs'], 'pair')} of masks of one image with an IoU of {number(twins['threshold'])} or "
            f"more, among {counted(twins['masks'], 'mask')} of {counted(twins['images_sampled'], 'sampled image')}."
        )
    return remarks


def made_of(facts: Facts) -> list[tuple[str, str]]:
    """Return how a dataset was made, as names and values; empty if that is unknown."""
    manifest = facts.manifest
    if manifest is None:
        return []
    masks, release, license = facts.config("masks"), facts.config("release"), facts.config("license")
    numerics = manifest.numerics
    pixels = facts.released
    return [
        ("Model", f"{manifest.weights.name}, SHA-256 {manifest.weights.sha256}"),
        (
            "Masks",
            f"profile {masks.get('profile')}: {masks.get('points_per_side')} points per side, "
            f"{counted(masks.get('crop_n_layers'), 'crop layer')}, predicted IoU over "
            f"{masks.get('pred_iou_thresh')}, stability score of at least {masks.get('stability_score_thresh')}",
        ),
        (
            "Release",
            f"{release.get('format')}, short side at most {release.get('short_side')} pixels, JPEG quality "
            f"{release.get('jpeg_quality')}" + (f"; median image {pixels[0]} × {pixels[1]}" if pixels else ""),
        ),
        (
            "Licenses",
            f"allowed: {listed(license.get('allow') or ['none'])}; judged as of {manifest.policy_date.isoformat()}; "
            f"redistribution {'required' if license.get('require_redistributable') else 'not required'}",
        ),
        ("Computed on", f"{numerics.get('device')}, {numerics.get('precision')}"),
        ("segmint", manifest.code_version),
        ("Shards", f"{len(facts.commits):,} of {manifest.shards:,} committed, {manifest.images_per_shard:,} rows each"),
        ("Size", size(facts.bytes)),
    ]


def _checked(checked: Mapping[str, int]) -> str:
    checks = [
        counted(checked[key], noun)
        for key, noun in (("files", "file"), ("images", "image"), ("rejects", "refused row"), ("masks", "mask"))
        if checked.get(key)
    ]
    sentence = f"{listed(checks) or 'nothing'} read and compared"
    if checked.get("bytes"):
        sentence += f", {size(checked['bytes'])} in total"
    if checked.get("jpegs_decoded"):
        decoded = f"{counted(checked['jpegs_decoded'], 'JPEG')} and {counted(checked['masks_decoded'], 'mask')}"
        sentence += f"; {decoded} decoded to pixels"
    return f"{sentence[0].upper()}{sentence[1:]}."


def _areas(
    audit: Mapping[str, Any], statistics: Mapping[str, Any], groups: Mapping[str, Sequence[FoundGroup]]
) -> list[Area]:
    areas = []
    for area in AREAS:
        found = sum(group.total for group in groups[area])
        if found:
            areas.append(Area(area.capitalize(), area, counted(found, "finding"), "bad"))
        elif area == "privacy":
            areas.append(Area("Privacy", area, _privacy_word(audit["privacy"]) if is_searched(audit) else NOT_AUDITED))
        elif area != INTEGRITY and audit[area] is None:
            areas.append(Area(area.capitalize(), area, NOT_AUDITED))
        else:
            areas.append(Area(area.capitalize(), area, "no findings", "good"))
    per_image = statistics.get("masks_per_image") or {}
    areas.append(Area("Masks", "masks", f"{number(per_image.get('mean'))} per image on average"))
    known = (statistics.get("geography") or {}).get("known")
    areas.append(Area("Geography", "geography", f"known for {counted(known, 'image')}" if known else UNKNOWN))
    shards = len({row["shard"] for row in statistics.get("drift") or []})
    images = len({row["id"] for row in statistics.get("outliers") or []})
    to_check = [counted(many, noun) for many, noun in ((shards, "shard"), (images, "image")) if many]
    areas.append(Area("Drift", "drift", f"{listed(to_check or ['nothing'])} to check"))
    return areas


def _privacy_word(privacy: Mapping[str, Any]) -> str:
    names = listed(detector["name"] for detector in privacy["detectors"])
    return f"{privacy['found_total']:,} found by {names} in {counted(privacy['images_checked'], 'image')}"


def _tiles(statistics: Mapping[str, Any], facts: Facts) -> list[tuple[str, str]]:
    per_image = statistics.get("masks_per_image") or {}
    tiles = [
        ("Images", count(facts.images)),
        ("Masks", count(facts.masks)),
        ("Masks per image", number(per_image.get("mean"))),
        ("Refused rows", count(facts.rejected)),
    ]
    if facts.manifest is not None:
        tiles.append(("Shards", f"{len(facts.commits):,} of {facts.manifest.shards:,}"))
        tiles.append(("Size", size(facts.bytes)))
    return tiles


def _masks_sentence(statistics: Mapping[str, Any]) -> str:
    per_image = statistics.get("masks_per_image") or {}
    concavity, relative = (statistics.get(key) or {} for key in ("concavity", "relative_size"))
    return (
        f"{counted(statistics['masks'], 'mask')} in {counted(statistics['images'], 'image')}: "
        f"{number(per_image.get('mean'))} per image on average, {number(per_image.get('median'))} in the median image; "
        f"mean relative size {number(relative.get('mean'))}, mean concavity {number(concavity.get('mean'))}."
    )
