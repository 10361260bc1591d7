"""Page and card of a report: templates with the sentences, tables, and plots of an audit and its statistics."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from segmint.catalogs.dataset.regions import HIGH_SHARE
from segmint.catalogs.dataset.tables import Kind
from segmint.catalogs.dataset.versions import VersionName
from segmint.catalogs.findings import INTEGRITY, Code, Finding, Findings
from segmint.catalogs.licenses import hub_licenses, size_category
from segmint.catalogs.lineage import describe_rounds
from segmint.infra.device import describe_precision
from segmint.infra.version import VERSION
from segmint.infra.wording import UNKNOWN, count, counted, listed, number, share, size, some, without_turning, yaml_text
from segmint.operators.prepare.deidentify import describe_recall
from segmint.operators.rows import AUTOMATIC
from segmint.pipeline.quality.audit.result import AuditReport, CheckedCounts, Licenses, PrivacyResult
from segmint.pipeline.quality.report.comparison import ReportImage, comparison_values
from segmint.pipeline.quality.report.facts import BuildFacts, Facts
from segmint.pipeline.quality.report.plots import Charts
from segmint.pipeline.quality.statistics.comparison import PAPER, DatasetComparison, PaperDataset, PaperGroup
from segmint.pipeline.quality.statistics.masks import LARGE, SMALL
from segmint.pipeline.quality.statistics.statistics import LEAST_IMAGES, LEAST_SHARDS
from segmint.pipeline.quality.statistics.values import Cleanup, Geography, GroupImages, Statistics
from segmint.pipeline.serving.documents import FILTERS, document_templates


@dataclass(frozen=True)
class FindingGroup:
    """Findings with the same code. `total` is their number, and `rows` contains the first of them."""

    code: str
    sentence: str
    total: int
    rows: tuple[Finding, ...]

    @property
    def more(self) -> int:
        """Number of findings that are counted but not listed."""
        return self.total - len(self.rows)


def groups_of(findings: Findings, area: str) -> list[FindingGroup]:
    """Group the findings of an area (`integrity`, `licenses`, `privacy`, or `duplicates`) by code."""
    return [
        FindingGroup(code.value, code.sentence, total, tuple(each for each in findings if each.code == code))
        for code, total in sorted(findings.counts.items())
        if code.area == area
    ]


def images_of(findings: Iterable[Finding]) -> list[int]:
    """Return the distinct ids of the images that findings refer to, in order."""
    return list(dict.fromkeys(finding.image for finding in findings if finding.image is not None))


ASSETS = Path(__file__).parent / "assets"
ORDERED_AREAS = (INTEGRITY, "licenses", "privacy", "duplicates")
NOT_AUDITED = "not audited"

LEADING = 3
"""Maximum number of sample images directly below the verdict."""

_FLATTEST, _TALLEST = 2.2, 0.7  # bounds of the aspect ratio, so that no image crowds out the others


@dataclass(frozen=True)
class ReportImages:
    """Images of a report: images with findings, outliers, and a sample. `why` explains why there are none."""

    flagged: tuple[ReportImage, ...] = ()
    samples: tuple[ReportImage, ...] = ()
    why: str = ""

    @property
    def leading(self) -> tuple[ReportImage, ...]:
        """Up to `LEADING` images with masks for the row below the verdict. They are spread evenly over the sample."""
        drawn = [picture for picture in self.samples if picture.jpeg is not None and picture.masks]
        if not drawn:
            return ()
        places = {(2 * place + 1) * len(drawn) // (2 * LEADING) for place in range(LEADING)}
        return tuple(drawn[place] for place in sorted(places))

    @property
    def others(self) -> tuple[ReportImage, ...]:
        """Images of the sample that are not in `leading`."""
        leading = self.leading
        return tuple(picture for picture in self.samples if picture not in leading)

    @property
    def shown(self) -> frozenset[int]:
        """Ids of all images on the page."""
        return frozenset(picture.id for picture in (*self.flagged, *self.samples))


@dataclass(frozen=True)
class VerdictLine:
    """Line of the verdict on what was checked, what wasn't, and the findings. `state` is `good`, `bad`, or empty."""

    name: str
    anchor: str
    word: str
    state: str = ""
    text: str = ""


@dataclass(frozen=True)
class ReportVerdict:
    """Summary of what was checked and found."""

    word: str
    state: str
    checked: str
    areas: tuple[VerdictLine, ...]


def render_page(
    audit: AuditReport,
    statistics: Statistics,
    facts: Facts,
    charts: Charts,
    pictures: ReportImages,
    beside: DatasetComparison | None = None,
) -> str:
    """Render the page as one HTML file without scripts or external resources. `beside` is an optional comparison."""
    groups = {area: groups_of(audit.findings, area) for area in ORDERED_AREAS}
    privacy = None
    if is_searched(audit.privacy):
        privacy = audit.privacy
    beside_values = {}
    if beside is not None:
        beside_values = comparison_values(beside)
    template = document_templates(ASSETS).get_template("report.html.j2")
    return template.render(
        version=VERSION,
        audit=audit,
        statistics=statistics,
        facts=facts,
        charts=charts,
        groups=groups,
        verdict=verdict_of(audit, statistics, facts, groups),
        tiles=_tiles(statistics, facts),
        licenses=audit.licenses,
        privacy=privacy,
        duplicates=audit.duplicates,
        high_share=HIGH_SHARE,
        bundled=[detector.name for detector in facts.detectors if detector.bundled],
        masks_sentence=_masks_sentence(statistics),
        datasets=[PaperDataset(facts.name, facts.images, facts.masks), *PAPER.datasets],
        groups_and_paper=groups_and_paper(statistics.geography),
        paper=PAPER,
        sizes=(SMALL, LARGE),
        least_images=LEAST_IMAGES,
        least_shards=LEAST_SHARDS,
        drift_measured=_is_drift_measured(statistics, facts),
        remarks=remarks_of(statistics),
        leading=[(picture, leading_aspect(picture)) for picture in pictures.leading],
        flagged=pictures.flagged,
        others=pictures.others,
        pictures_why=pictures.why,
        shown=pictures.shown,
        made=made_of(facts),
        beside=beside,
        **beside_values,
    )


def leading_aspect(picture: ReportImage) -> float:
    """Return the aspect ratio (width over height) of the frame around an image below the verdict."""
    return round(min(_FLATTEST, max(_TALLEST, picture.width / max(1, picture.height))), 3)


def is_searched(privacy: PrivacyResult | None) -> bool:
    """Return whether a detector searched any released image."""
    return privacy is not None and bool(privacy.images_checked and privacy.detectors)


def _is_drift_measured(statistics: Statistics, facts: Facts) -> bool:
    """Return whether enough shards have enough images. Of other layouts, only the number of images is known."""
    if facts.manifest is None:
        return statistics.images >= LEAST_IMAGES * LEAST_SHARDS
    large = [commit for commit in facts.commits if commit.counts.get("images", 0) >= LEAST_IMAGES]
    return len(large) >= LEAST_SHARDS


def verdict_of(
    audit: AuditReport, statistics: Statistics, facts: Facts, groups: Mapping[str, Sequence[FindingGroup]]
) -> ReportVerdict:
    """Summarize the audit for the box at the top of the page."""
    total = audit.findings.total
    word, state = "No findings", "good"
    if total:
        word, state = counted(total, "finding"), "bad"
    elif not is_searched(audit.privacy):
        word, state = "No findings, but privacy was not audited", ""
    checked = f"{_checked(audit.checked)} {facts.reused}".rstrip()
    return ReportVerdict(word, state, checked, tuple(_areas(audit, statistics, facts, groups)))


def remarks_of(statistics: Statistics) -> list[str]:
    """Describe statistics that the plots don't show, in sentences."""
    tiny, huge, cleanup, near = statistics.tiny, statistics.huge, statistics.cleanup, statistics.near_duplicates
    remarks = [
        f"{counted(statistics.without_masks, 'image')} without masks.",
        f"{counted(tiny.masks, 'mask')} under {count(tiny.below_px)} pixels.",
        f"{counted(huge.masks, 'mask')} covering {share(huge.above_share)} or more of the image.",
        f"{counted(statistics.levels.contained, 'mask')} contained in a larger mask.",
    ]
    sources = statistics.sources or {}
    if sources.keys() - {AUTOMATIC}:
        remarks.append(f"Masks by source: {listed(f'{masks:,} {source}' for source, masks in sources.items())}.")
    if cleanup is not None:
        remarks.append(
            f"In the build, cleanup {_cleaned(cleanup)}, and removed {counted(cleanup.removed, 'mask')} "
            f"({share(cleanup.removed_share)})."
        )
        if cleanup.artifacts:
            remarks.append(
                f"{counted(cleanup.artifacts, 'mask')} dropped for tracing a redacted region "
                f"({share(cleanup.artifacts_share)})."
            )
    remarks.append(
        f"{counted(near.pairs, 'pair')} of masks in one image with an IoU of at least {number(near.threshold)}, among "
        f"{counted(near.masks, 'mask')} in {counted(near.images_sampled, 'sampled image')}."
    )
    return remarks


def _cleaned(cleanup: Cleanup) -> str:
    """Describe the effect of cleanup: masks with filled holes or removed islands, next to the paper's shares."""
    return (
        f"filled holes in {counted(cleanup.holes, 'mask')} ({share(cleanup.holes_share)}; {PAPER.name}: about "
        f"{share(PAPER.holes_share)}), removed islands in {counted(cleanup.islands, 'mask')} "
        f"({share(cleanup.islands_share)}; {PAPER.name}: about {share(PAPER.islands_share)})"
    )


def groups_and_paper(geography: Geography) -> list[tuple[GroupImages, PaperGroup]]:
    """Return the regions and then the income levels, each with its row in the paper's table 1."""
    paper = {group.name: group for group in (*PAPER.regions, *PAPER.income)}
    return [(group, paper[group.name]) for group in (*geography.regions, *geography.income)]


def digest_of(version: VersionName) -> str:
    """Return the full digest of a dataset with its version number."""
    number = "not recorded as a version"
    if version.number is not None:
        number = f"version {version.number}"
    return f"SHA-256 {version.digest} ({number})"


def made_of(facts: Facts) -> list[tuple[str, str]]:
    """Describe how a dataset was built, as names and values. Return an empty list if it is unknown."""
    manifest, build = facts.manifest, facts.build
    if manifest is None or build is None or facts.version is None:
        return []
    made = [
        ("Digest", digest_of(facts.version)),
        ("Model", f"{manifest.weights.name}, SHA-256 {manifest.weights.sha256}"),
    ]
    if build.model.weights_sha256:
        made.append(("Files of the model", f"SHA-256 {build.model.weights_sha256}"))
    made.append(("License of the model", build.model_license))
    if manifest.round:
        made.append(("Round", "; ".join(describe_rounds(manifest.lineage))))
    masks = _recipe(build)
    if not facts.masks_of_build:
        masks += " (replaced later)"
    made.append(("Masks", masks))
    for segmenter in build.adding:
        made.append(("Added masks", segmenter))
    release = f"{build.format}, short side at most {build.short_side} pixels, JPEG quality {build.jpeg_quality}"
    if facts.released:
        release += f"; median image {facts.released[0]} × {facts.released[1]}"
    redistribution = "required" if build.require_redistributable else "not required"
    licenses = f"allowed: {listed(build.allowed or ['none'])}; judged as of {manifest.policy_date.isoformat()}"
    made += [("Release", release), ("Licenses", f"{licenses}; redistribution {redistribution}")]
    if build.segmenter is None:
        precision = describe_precision(build.precision, build.decoder_precision)
        made.append(("Computed on", f"{build.device}, {precision}"))
    shards = f"{len(facts.commits):,} of {manifest.shards:,} committed, up to {manifest.images_per_shard:,} rows each"
    return [*made, ("segmint", manifest.code_version), ("Shards", shards), ("Size", size(facts.bytes))]


def _recipe(build: BuildFacts) -> str:
    """Describe how the masks were made."""
    if build.segmenter is not None:
        return build.segmenter
    return (
        f"profile {build.profile}: {build.points_per_side} points per side, "
        f"{counted(build.crop_n_layers, 'crop layer')}, predicted IoU over {build.pred_iou_thresh}, stability "
        f"score of at least {build.stability_score_thresh}"
    )


def _checked(checked: CheckedCounts) -> str:
    counts = (
        (checked.files, "file"),
        (checked.images, "image"),
        (checked.rejects, "rejected row"),
        (checked.masks, "mask"),
    )
    sentence = f"{listed([counted(total, noun) for total, noun in counts if total]) or 'nothing'} read and compared"
    if checked.bytes:
        sentence += f", {size(checked.bytes)} in total"
    if checked.jpegs_decoded:
        decoded = f"{counted(checked.jpegs_decoded, 'JPEG')} and {counted(checked.masks_decoded, 'mask')}"
        sentence += f"; {decoded} decoded to pixels"
    return f"{sentence[0].upper()}{sentence[1:]}."


def _areas(
    audit: AuditReport, statistics: Statistics, facts: Facts, groups: Mapping[str, Sequence[FindingGroup]]
) -> list[VerdictLine]:
    none = "no findings"
    audited = {
        INTEGRITY: (none, _missing_shards(audit, facts)),
        "licenses": (NOT_AUDITED, _licenses_text(audit, facts)),
        "privacy": (_privacy_word(audit.privacy), _privacy_text(facts)),
        "duplicates": (NOT_AUDITED, ""),
    }
    if audit.licenses is not None and audit.licenses.by_license:
        audited["licenses"] = none, _licenses_text(audit, facts)
    if audit.duplicates is not None and audit.checked.images:
        audited["duplicates"] = none, f"{counted(audit.duplicates.images_compared, 'image')} compared."
    areas = []
    for area, (word, text) in audited.items():
        found, state = sum(group.total for group in groups[area]), ""
        if found:
            word, state = counted(found, "finding"), "bad"
        elif word == none:
            state = "good"
        areas.append(VerdictLine(area.capitalize(), area, word, state, text))
    if facts.taken_down is not None:
        takedowns = VerdictLine("Takedowns", INTEGRITY, "none")
        if facts.taken_down:
            left = audit.findings.counts.get(Code.STILL_THERE, 0)
            text = f"{counted(facts.taken_down, 'catalog row')} taken down. Exports and other copies weren't checked."
            word, state = none, "good"
            if left:
                word, state = f"{counted(left, 'finding')} of data that remains", "bad"
            takedowns = VerdictLine("Takedowns", INTEGRITY, word, state, text)
        areas.insert(3, takedowns)
    mean = f"{number(statistics.masks_per_image.mean)} per image on average"
    areas.append(VerdictLine("Masks", "masks", mean, text=_masks_text(facts)))
    known = UNKNOWN
    if statistics.geography.known:
        known = f"known for {counted(statistics.geography.known, 'image')}"
    areas.append(VerdictLine("Geography", "geography", known))
    to_check = []
    if statistics.drift:
        to_check.append(counted(len({row.shard for row in statistics.drift}), "shard"))
    if statistics.outliers:
        to_check.append(counted(len({row.id for row in statistics.outliers}), "image"))
    drift = f"{listed(to_check or ['nothing'])} to check"
    if statistics.images < LEAST_IMAGES:
        drift = "not measured"
    areas.append(VerdictLine("Drift", "drift", drift))
    if facts.version is not None:
        areas.append(VerdictLine("Version", "made", str(facts.version)))
    return areas


def _missing_shards(audit: AuditReport, facts: Facts) -> str:
    """Describe which shards the report leaves out."""
    texts = []
    if audit.not_compared:
        texts.append(f"{counted(len(audit.not_compared), 'damaged shard')} left out of all numbers.")
    if facts.manifest is not None and len(facts.commits) < facts.manifest.shards:
        texts.append(f"{len(facts.commits):,} of {counted(facts.manifest.shards, 'shard')} built.")
    return " ".join(texts)


def _licenses_text(audit: AuditReport, facts: Facts) -> str:
    """Describe the images by license, and what they were and weren't compared with."""
    if not facts.is_licensed:
        return "The licenses are unknown."
    shown, limited = [], 0
    for license, images in facts.licenses:
        shown.append(f"{license or 'none'} {images:,}")
        if "-NC" in (license or ""):
            limited += images
    text = f"Images by license: {some(shown, 5)}."
    if audit.licenses is not None and audit.licenses.judged_on is not None:
        text += f" Compared on {audit.licenses.judged_on} with those allowed."
    text += " Whether licenses permit commercial use wasn't checked"
    if limited:
        text += f"; {counted(limited, 'image')} with a noncommercial (NC) one"
    return f"{text}."


def _privacy_text(facts: Facts) -> str:
    """Describe what the build redacted, and how many misses people found."""
    if not facts.detectors:
        return "It's unknown whether faces and plates were redacted."
    texts = []
    for each in facts.detectors:
        text = f"{each.kind} not searched for"
        if each.name:
            text = f"{each.kind} redacted as found by {each.name}"
        if each.bundled:
            text += " (for trials)"
        texts.append(text)
    if facts.study is not None and facts.study.answered:
        texts.append(f"misses found by people: {facts.study.sentence(facts.study.any)}")
    return f"Build: {'; '.join(texts)}."


def _masks_text(facts: Facts) -> str:
    """Describe how people changed the masks, who set their labels, and which prompts they were made from."""
    if facts.manifest is None:
        return ""
    by_people = counted(sum(each.masks for each in facts.people), "mask")
    texts = [f"{by_people} made or changed by people, and masks of {counted(facts.annotated, 'image')} reviewed."]
    for what, counts in (("Labels by source", facts.labels), ("Masks by kind of prompt", facts.prompts)):
        if counts:
            texts.append(f"{what}: {listed(f'{masks:,} {name}' for name, masks in counts.items())}.")
    return " ".join(texts)


def _privacy_word(privacy: PrivacyResult | None) -> str:
    """Describe the number of detections, without claiming that no face or plate remains."""
    if privacy is None or not is_searched(privacy):
        return NOT_AUDITED
    names = listed(detector.name for detector in privacy.detectors)
    found = f"{privacy.found_total:,} found by {names} in {counted(privacy.images_checked, 'image')}"
    if privacy.not_counted:
        found += f", not counting {listed(privacy.not_counted)}"
    return found


def _tiles(statistics: Statistics, facts: Facts) -> list[tuple[str, str]]:
    tiles = [
        ("Images", count(facts.images)),
        ("Masks", count(facts.masks)),
        ("Masks per image", number(statistics.masks_per_image.mean)),
        ("Rejected rows", count(facts.rejected)),
    ]
    if facts.manifest is not None:
        tiles.append(("Shards", f"{len(facts.commits):,} of {facts.manifest.shards:,}"))
        tiles.append(("Size", size(facts.bytes)))
    return tiles


def _masks_sentence(statistics: Statistics) -> str:
    per_image = statistics.masks_per_image
    return (
        f"{counted(statistics.masks, 'mask')} in {counted(statistics.images, 'image')}: {number(per_image.mean)} per "
        f"image on average, {number(per_image.median)} in the median image; mean relative size "
        f"{number(statistics.relative_size.mean)}, mean concavity {number(statistics.concavity.mean)}."
    )


_LAYOUTS: Mapping[Kind, str] = {"segmint": "SA-1B", "sa1b": "SA-1B", "coco": "COCO", "yolo": "YOLO"}

_SPECIAL = re.compile(r"[\\`*_\[\]|~$#!]")


def describe_licenses(licenses: Licenses | None) -> str:
    """Describe where the licenses of a dataset come from. `licenses` is None if they weren't audited."""
    texts = ["The licenses are those of the catalog; segmint doesn't verify them."]
    if licenses is None:
        texts.append("Who asserted them wasn't audited.")
    else:
        for each in licenses.asserted:
            license = each.license or "no license"
            texts.append(f"{license} of {counted(each.images, 'image')} was asserted by {each.asserted_by}.")
    return " ".join(texts)


def card_markdown(audit: AuditReport, statistics: Statistics, facts: Facts, charts: Charts) -> str:
    """Write the card as Markdown. All text from the data is escaped."""
    bundled = [detector.name for detector in facts.detectors if detector.name and detector.bundled]
    body = render_markdown(
        "card.md.j2",
        audit,
        statistics,
        facts,
        layout=_LAYOUTS[facts.kind],
        licenses=describe_licenses(audit.licenses),
        bundled=bundled,
        recall=describe_recall(bundled),
        funnel=charts.funnel.rows if charts.funnel else (),
        gaps=_gaps(audit, statistics, facts),
    )
    return f"---\n{front_matter(facts)}---\n\n{body}"


def render_markdown(template: str, audit: AuditReport, statistics: Statistics, facts: Facts, **values: Any) -> str:
    """Render a Markdown template of a dataset's facts. `values` are those that only this template shows."""
    manifest = facts.manifest
    body = (
        _markdown_templates()
        .get_template(template)
        .render(
            facts=facts,
            manifest=manifest,
            build=facts.build,
            digest=digest_of(facts.version) if facts.version is not None else None,
            rows=sum(part.rows for part in manifest.catalog) if manifest is not None else 0,
            statistics=statistics,
            rounds=describe_rounds(manifest.lineage) if manifest is not None else [],
            privacy=audit.privacy if is_searched(audit.privacy) else None,
            **values,
        )
    )
    return f"{body.strip()}\n"


def _markdown_templates() -> jinja2.Environment:
    """Load the Markdown templates. They escape all text, so text from the data can't be read as Markdown or HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        finalize=escaped,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=False,
    )
    environment.filters.update(FILTERS)
    return environment


def front_matter(facts: Facts) -> str:
    """Return the front matter for the Hub, as YAML. Of data that segmint didn't write, only the layout is known."""
    value: dict[str, Any] = {
        "pretty_name": facts.name,
        **hub_licenses(license for license, _ in facts.licenses),
        "size_categories": [size_category(facts.images)],
        "task_categories": ["image-segmentation"],
    }
    tags = [_LAYOUTS[facts.kind].lower()]
    if facts.build is not None:
        value["task_categories"].append("mask-generation")
        value["annotations_creators"] = ["machine-generated"]
        if facts.people:
            value["annotations_creators"].append("other")
        if facts.build.segmenter is None and facts.masks_of_build:
            tags.insert(0, "segment-anything")
        if not facts.labeled:
            tags.append("class-agnostic")
        tags.append("webdataset")
    value["tags"] = tags
    return yaml_text(value)


def escaped(value: Any) -> Any:
    """Escape text for Markdown and put it on one line. Return other values unchanged."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    line = " ".join(without_turning(value).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\g<0>", line)


def _gaps(audit: AuditReport, statistics: Statistics, facts: Facts) -> list[str]:
    gaps = []
    reasons = statistics.rejected_by_reason or {}
    if facts.rejected is None:
        gaps.append("It is unknown whether any images were rejected when the dataset was made.")
    elif facts.rejected:
        ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
        parts = ", ".join(f"{reason}: {count:,}" for reason, count in ordered)
        gaps.append(f"{counted(facts.rejected, 'catalog row')} rejected and not in the dataset: {parts}.")
    else:
        gaps.append("No catalog rows were rejected.")
    if facts.manifest is not None and len(facts.commits) < facts.manifest.shards:
        missing = facts.manifest.shards - len(facts.commits)
        gaps.append(f"{counted(missing, 'shard')} of {facts.manifest.shards:,} are not built yet.")
    gaps += remarks_of(statistics)
    if audit.findings.total:
        gaps.append(f"The audit reported {counted(audit.findings.total, 'finding')}; see index.html.")
    else:
        gaps.append("The audit reported no findings.")
    gaps += [facts.reused] if facts.reused else []
    if audit.licenses is None or not audit.licenses.by_license:
        gaps.append("The licenses were not audited.")
    if facts.with_images and not is_searched(audit.privacy):
        gaps.append("No detector searched the released images again.")
    return gaps
