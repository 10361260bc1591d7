"""Result of an audit: findings, what was checked, and counts.

`result_lines` formats the result for people, and `to_json` and `from_json` write and read it as JSON.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import date
from textwrap import wrap
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from segmint.catalogs.dataset.regions import DetectedRegion, RedactionTotals, Sighting
from segmint.catalogs.dataset.versions import VersionName
from segmint.catalogs.findings import EXAMPLES, INTEGRITY, Code, Findings, Reason
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.wording import counted, json_text, listed, number, some
from segmint.operators.rows import AUTOMATIC
from segmint.pipeline.quality.statistics.values import ProviderImages, Statistics, json_value


@dataclass(frozen=True)
class CheckedCounts:
    """Counts of the data that an audit checked."""

    commits: int = 0
    catalog_parts: int = 0
    catalog_rows: int = 0  # rows of `images` and `rejects` that were compared with the catalog
    files: int = 0  # files of commits that were read completely and hashed
    bytes: int = 0
    images: int = 0  # rows
    rejects: int = 0  # rows
    masks: int = 0  # rows, each measured from its run lengths
    boxes: int = 0  # boxes without a mask, in data that segmint did not write
    jsons: int = 0  # JSON files that were compared with the tables
    jpegs: int = 0  # JPEGs whose size and metadata were checked
    jpegs_decoded: int = 0
    masks_decoded: int = 0

    def __add__(self, other: "CheckedCounts") -> "CheckedCounts":
        return CheckedCounts(
            **{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        )


@dataclass(frozen=True)
class LicenseVerdict:
    """Number of images with a license, and whether the dataset's policy allows it. None stands for no license."""

    license: str | None
    images: int
    allowed: bool


@dataclass(frozen=True)
class AssertedLicense:
    """Number of images with a license that somebody asserted, and who did so and when."""

    license: str | None
    asserted_by: str
    images: int


@dataclass(frozen=True)
class Licenses:
    """Counts of the license audit."""

    judged_on: date | None  # None: data that segmint did not write, where only missing licenses are findings
    by_license: tuple[LicenseVerdict, ...]  # most frequent first
    by_provider: tuple[ProviderImages, ...]  # most frequent first
    expired: int
    expired_since_build: int  # images whose license expired after the day of the build
    without_attribution: int  # counts only images whose license requires attribution
    asserted: tuple[AssertedLicense, ...] = ()  # most frequent first; all other licenses are the catalog's


@dataclass(frozen=True)
class DetectorCounts:
    """Counts of one detector's detections in the searched images."""

    kind: str
    name: str
    score: float  # threshold
    found: int  # remaining detections
    images: int  # images with a remaining detection
    inside_regions: int  # detections inside redacted regions
    origin: Literal["build", "audit"] = "build"  # `audit`: the user named it, and the build didn't use it
    sha256: str | None = None  # hash of the detector's file, if the user named one
    failed: int = 0  # images that it failed to search


@dataclass(frozen=True)
class UnredactedRegion(DetectedRegion):
    """Detection that a build left unredacted, with the image's shard and all detectors that found it.

    If several detectors found it, `detector` and `score` are from the first one. The box encloses every region that
    these detectors would redact.
    """

    shard: int
    found_by: tuple[Sighting, ...] = ()
    missed_by: tuple[str, ...] = ()  # detectors of this kind that searched the image but didn't find it


@dataclass(frozen=True)
class DetectorAgreement:
    """Number of regions that exactly this set of detectors found. All detectors are of one kind."""

    kind: str
    detectors: tuple[str, ...]
    regions: int


@dataclass(frozen=True)
class PrivacyResult:
    """Detections in released images."""

    images_checked: int  # images that at least one detector searched
    detectors: tuple[DetectorCounts, ...]
    found: tuple[UnredactedRegion, ...]  # the first detections; `found_total` counts all
    found_total: int
    inside_regions: int
    residual: int = 0  # detections that redaction itself caused, which the build recorded
    unconfirmed: int = 0  # detections that the build's second look didn't confirm
    left_alone: Mapping[str, int] = field(default_factory=dict)  # detections released by a person, by who decided
    not_turned: tuple[int, ...] = ()  # angles in degrees that the search for faces didn't turn images by
    agreement: tuple[DetectorAgreement, ...] = ()  # for kinds with several detectors

    @property
    def not_counted(self) -> list[str]:
        """Detections outside the redacted regions that `found` and `found_total` leave out, as text."""
        left = {"caused by redaction and left": self.residual, "unconfirmed by the build": self.unconfirmed}
        for name, detections in self.left_alone.items():
            left[f"released by {name}"] = detections
        return [f"{counted(detections, 'detection')} {what}" for what, detections in left.items() if detections]


NotLookedAtReason = Literal[
    "skipped",
    "not_sampled",
    "unreadable",
    "annotations_only",
    "no_image",
    "no_detector",
    "detector_not_here",
    "detector_failed",
]


@dataclass(frozen=True)
class UnsearchedImages:
    """Number of images that detectors didn't search, with the reason.

    `kind` and `detector` are set if only detectors of one kind, or only one detector, skipped the images.
    """

    reason: NotLookedAtReason
    images: int
    of: int  # all images of the dataset
    kind: str | None = None  # None: faces and plates
    detector: str | None = None  # None: all detectors of the kind
    detail: str = ""


@dataclass(frozen=True)
class Duplicates:
    """Counts of duplicates: images from repeated bytes (None if unknown), and near-duplicates.

    The perceptual hashes of near-duplicates differ in at most `distance` bits. `across_splits` counts those of both
    kinds that resemble an image of another split (None without splits).
    """

    images_compared: int
    distance: int
    repeated_sources: int | None
    similar: int
    across_splits: int | None = None


@dataclass(frozen=True)
class AuditReport:
    """Result of an audit.

    With the scope `all`, the areas `licenses`, `privacy`, `duplicates`, and `statistics` are None if they are unknown.
    With the scope `integrity`, they are always None.
    """

    dataset: str
    scope: Literal["all", "integrity"]
    kind: Literal["segmint", "sa1b", "coco", "yolo"]
    shards: int  # of the whole dataset
    sample: int
    findings: Findings
    checked: CheckedCounts
    not_built: tuple[tuple[int, int], ...] = ()  # ranges [first, last] of shards without a commit; not findings
    recent_unnamed: tuple[str, ...] = ()  # unnamed files that a writer may still commit; not findings
    other_files: tuple[str, ...] = ()  # small files of users and stores; not findings
    not_compared: tuple[int, ...] = ()  # shards that weren't compared because some of their files are damaged
    unusable_commits: tuple[int, ...] = ()  # shards with an unusable commit
    replaced: tuple[int, ...] = ()  # shards that weren't audited because a command replaced them in the meantime
    notes: tuple[str, ...] = ()  # further remarks to print
    version: VersionName | None = None  # audited version; None: data that segmint did not write
    licenses: Licenses | None = None
    privacy: PrivacyResult | None = None
    duplicates: Duplicates | None = None
    statistics: Statistics | None = None
    redactions: RedactionTotals | None = None
    unsearched: tuple[UnsearchedImages, ...] = ()
    unfinished: tuple[str, ...] = ()  # requested parts that couldn't be completed

    @property
    def images_searched(self) -> int:
        """Number of released images that detectors searched."""
        return 0 if self.privacy is None else self.privacy.images_checked

    @property
    def nothing_looked_at(self) -> bool:
        """True if detectors should have searched images but didn't search any."""
        return not self.images_searched and any(each.reason != "skipped" for each in self.unsearched)


_WIDTH = 13  # characters of an area's name
_LINE = 110
_NOT_AUDITED = "not audited: licenses, privacy, duplicates, statistics"

SMALLEST_FACE = 20
"""Side in pixels of the smallest face that mtcnn searches for. Rotated images are first searched at half size."""
SHOWN = 5
"""Maximum number of findings to print per code. The JSON result lists more."""


def result_lines(report: AuditReport, width: int | None = None) -> list[str]:
    """Format a result as lines of text.

    The verdict, the areas, and the digest come first. The parts that weren't checked and the first findings of each
    code follow. Only the lines of areas are wrapped, at `width` columns (default: 110).
    """
    if report.scope == "integrity":
        summary = [f"integrity: {_findings(report.findings.total)}; {_checked(report)}"]
        if report.version is not None:
            summary.append(report.version.line())
        summary.append(_NOT_AUDITED)
    else:
        summary = [f"verdict: {verdict(report)}"]
        for name, lines in _areas(report):
            summary += _area(name, lines, width or _LINE)
    return [*summary, *_note_lines(report), *_finding_lines(report)]


def _areas(report: AuditReport) -> Iterator[tuple[str, list[str]]]:
    found = _by_area(report)
    yield INTEGRITY, [f"{_findings(found[INTEGRITY])}; {_checked(report)}"]
    if report.licenses is not None:
        yield "licenses", _license_lines(report.licenses, found["licenses"])
    if report.privacy is not None:
        yield "privacy", _privacy_lines(report, report.privacy, found["privacy"])
    if report.redactions is not None:
        yield "all images", report.redactions.lines()
    if report.duplicates is not None:
        yield "duplicates", [_duplicate_line(report.duplicates, found["duplicates"], report.checked.images)]
    if report.statistics is not None:
        yield "statistics", _statistics_lines(report.statistics)
    if report.version is not None:
        yield "digest", [str(report.version)]


def verdict(report: AuditReport) -> str:
    """Return the number of findings, and what wasn't searched. A gap must never read as just "no finding"."""
    total, found = report.findings.total, _by_area(report)
    gaps = list(map(_gap, report.unsearched))
    counts = counted(total, "finding")
    if total:
        counts += f" ({', '.join(f'{count:,} in {area}' for area, count in found.most_common())})"
    if gaps and not report.images_searched:
        return f"no image was searched for faces and plates ({', '.join(gaps)}); {counts} otherwise"
    if not total:
        counts = "no findings"
    if report.privacy is not None:
        for each in report.privacy.not_counted:
            counts += f"; {each} (--strict counts them)"
        counts = "; ".join([counts, *_searchers(report.privacy, report.kind)])
        gaps += _limits(report.privacy)
    if gaps:
        counts += f"; not searched: {', '.join(gaps)}"
    return counts


def _searchers(privacy: PrivacyResult, kind: str) -> Iterator[str]:
    """Name the detectors that the build didn't use, and the kinds that only the build's detectors searched.

    Data that segmint didn't write has no build. It is searched with the detectors that a build uses by default.
    """
    own = {each.kind for each in privacy.detectors if each.origin == "build"}
    for each in privacy.detectors:
        if each.origin == "audit" and each.failed < privacy.images_checked:
            own.discard(each.kind)
            yield f"another {each.kind} detector searched: {each.name} (SHA-256 {each.sha256 or 'unknown'})"
    if own and kind != "segmint":
        yield f"only segmint's own {listed(sorted(own))} detectors searched, and they miss some"
    elif own:
        yield f"only the build's own {listed(sorted(own))} detectors searched, and they repeat their own misses"


def _limits(privacy: PrivacyResult) -> Iterator[str]:
    """Describe the sizes and rotations that the detectors didn't search."""
    for each in privacy.detectors:
        if each.name == "mtcnn" and each.origin == "build":
            yield f"faces under {SMALLEST_FACE} px (rotated: twice that) by mtcnn"
        if each.kind == "plate":
            yield f"rotated plates by {each.name}"
    if privacy.not_turned:
        yield f"faces rotated by {' or '.join(f'{angle}°' for angle in privacy.not_turned)}"


def _finding_lines(report: AuditReport) -> list[str]:
    lines, skipped = [], False
    for code, count in sorted(report.findings.counts.items()):
        shown = [finding for finding in report.findings if finding.code == code][:SHOWN]
        lines.append(f"{code}: {count:,} ({code.sentence})")
        for finding in shown:
            lines.append(f"  {finding.line()}")
        if count > len(shown):
            lines.append(f"  and {count - len(shown):,} more")
            skipped = True
    if skipped:
        lines.append(f"--json lists up to {EXAMPLES} findings per code")
    return lines


def not_checked(report: AuditReport) -> list[str]:
    """Describe what the audit should have checked, but couldn't."""
    chosen = {"skipped", "not_sampled"}
    if not report.nothing_looked_at:
        chosen.add("no_detector")
    gaps = []
    for each in report.unsearched:
        if each.reason not in chosen:
            gaps.append(_gap(each) if each.kind else f"faces and plates: {_gap(each)}")
    if report.replaced:
        shards = some(report.replaced)
        gaps.append(f"shards that a command replaced while they were read: {shards}. Audit again")
    return [*gaps, *report.unfinished]


def _note_lines(report: AuditReport) -> list[str]:
    notes = [f"not checked: {each}" for each in not_checked(report)]
    if report.not_built:
        spans, missing = [], 0
        for first, last in report.not_built:
            spans.append(f"{first}" if first == last else f"{first} to {last}")
            missing += last - first + 1
        notes.append(f"not yet built: {missing:,} of {report.shards:,} shards ({some(spans)})")
    if report.recent_unnamed:
        notes.append(
            f"{counted(len(report.recent_unnamed), 'file')} that no commit names, from a running or killed writer "
            f"(changed within a day, or of shards without a commit): {some(report.recent_unnamed)}"
        )
    if report.other_files:
        files = counted(len(report.other_files), "small file")
        notes.append(f"{files} not written by segmint: {some(report.other_files)}")
    if report.not_compared:
        shards = some([f"shard {shard}" for shard in report.not_compared])
        notes.append(f"not compared, because they have findings: {shards}")
    return [*notes, *report.notes]


def _checked(report: AuditReport) -> str:
    checked = report.checked
    if report.kind != "segmint":
        parts = [counted(checked.images, "image"), counted(checked.masks, "mask")]
        if checked.boxes:
            parts.append(f"{counted(checked.boxes, 'box annotation')} without a mask")
        return f"checked {', '.join(parts)}; {counted(checked.jpegs_decoded, 'image')} decoded"
    rejected = counted(checked.rejects, "rejected row")
    reasons = report.statistics and report.statistics.rejected_by_reason
    if reasons and Reason.TAKEN_DOWN in reasons:
        rejected += f" ({reasons[Reason.TAKEN_DOWN]:,} taken down)"
    parts = [
        counted(checked.commits, "commit"),
        counted(checked.catalog_parts, "catalog part"),
        f"{counted(checked.files, 'file')} ({checked.bytes:,} bytes)",
        counted(checked.images, "image"),
        rejected,
        counted(checked.masks, "mask"),
        f"{counted(checked.jpegs_decoded, 'JPEG')} and {counted(checked.masks_decoded, 'mask')} decoded",
    ]
    return f"checked {', '.join(parts)}"


def _by_area(report: AuditReport) -> Counter[str]:
    found: Counter[str] = Counter()
    for code, count in report.findings.counts.items():
        found[code.area] += count
    return found


_WHY = {
    "skipped": "--privacy-sample 0",
    "not_sampled": "not in the sample",
    "unreadable": "couldn't be read",
    "annotations_only": "the dataset has only annotations",
    "no_detector": "no detector",
    "detector_not_here": "not available here",
    "detector_failed": "it failed",
}


def _gap(gap: UnsearchedImages) -> str:
    if gap.reason == "no_image":
        return "there are no images"
    images = f"{gap.images:,} of {counted(gap.of, 'image')}"
    what = images
    if gap.kind is not None:
        what = f"{gap.kind}s"
    if gap.detector is not None:
        what += f" by {gap.detector}"
    if gap.reason == "detector_failed":
        what += f" in {images}"
    return f"{what} ({_WHY[gap.reason]})"


def _license_lines(licenses: Licenses, findings: int) -> list[str]:
    if licenses.judged_on is None:
        lines = [f"{_findings(findings)}; looked for missing ones only"]
        if not any(each.license for each in licenses.by_license):
            return lines
    elif not licenses.by_license:
        return ["no image was judged"]
    else:
        lines = [f"{_findings(findings)}; judged on {licenses.judged_on.isoformat()}"]
    if licenses.expired:
        lines.append(f"{counted(licenses.expired, 'image')} expired, {licenses.expired_since_build:,} since the build")
    for each in licenses.asserted:
        lines.append(f"{counted(each.images, 'image')}: {each.license or 'no license'}, asserted by {each.asserted_by}")
    by_license = []
    for license in licenses.by_license:
        text = f"{license.license or 'none'} {license.images:,}"
        by_license.append(text if license.allowed else f"{text} (not allowed)")
    lines.append(f"images by license: {some(by_license)}")
    if licenses.by_provider:
        by_provider = [f"{each.provider or 'unnamed'} {each.images:,}" for each in licenses.by_provider]
        lines.append(f"by provider: {some(by_provider)}")
    return lines


def _privacy_lines(report: AuditReport, privacy: PrivacyResult, findings: int) -> list[str]:
    """Describe each detector's detections with their scores and number of images, and the detectors' disagreements."""
    details = [f"{_gap(gap)}: {gap.detail}" for gap in report.unsearched if gap.detail]
    without = any(gap.reason == "no_detector" for gap in report.unsearched)
    if not privacy.detectors and without and Code.BAD_MANIFEST not in report.findings:
        return ["not searched: the build used no detectors", *details]
    if not privacy.images_checked:
        return ["no image was searched", *details]
    images = counted(max(report.checked.images, *(gap.of for gap in report.unsearched), 0), "image")
    lines = [f"{_findings(findings)}; {privacy.images_checked:,} of {images} searched"]
    for detector in privacy.detectors:
        line = (
            f"{counted(detector.found, detector.kind)} found by {detector.name} at score {detector.score:g} or above "
            f"in {detector.images:,} of {counted(privacy.images_checked - detector.failed, 'image')}"
        )
        if detector.inside_regions:
            line += f"; {detector.inside_regions:,} more inside redacted regions"
        lines.append(line)
    compared: dict[str, list[str]] = {}
    for each in privacy.agreement:
        text = f"{each.regions:,} by {' and '.join(each.detectors)}"
        if len(each.detectors) == 1:
            text += " only"
        compared.setdefault(each.kind, []).append(text)
    for kind, parts in compared.items():
        lines.append(f"{kind}s compared: {', '.join(parts)}")
    return [*lines, *details]


def _duplicate_line(duplicates: Duplicates, findings: int, images: int) -> str:
    if not images:
        return "no image was compared"
    parts = []
    if duplicates.repeated_sources is not None:
        parts.append(f"{duplicates.repeated_sources:,} made from the same bytes as an earlier image")
    near = f"{counted(duplicates.similar, 'near-duplicate')} in {counted(duplicates.images_compared, 'image')}"
    if not duplicates.images_compared:
        near = "the pixels of no image were compared"
    parts.append(near)
    if duplicates.across_splits is not None:
        parts.append(f"{duplicates.across_splits:,} of them in another split")
    return f"{_findings(findings)}; {', '.join(parts)}"


def _statistics_lines(statistics: Statistics) -> list[str]:
    """Format the main figures. The report contains more."""
    masks, near = statistics.masks_per_image, statistics.near_duplicates
    means = {
        "predicted iou": statistics.predicted_iou,
        "stability score": statistics.stability_score,
        "relative size": statistics.relative_size,
        "concavity": statistics.concavity,
        "coverage": statistics.coverage,
    }
    lines = [
        f"{statistics.masks:,} masks in {counted(statistics.images, 'image')}, {number(masks.mean)} per image "
        f"(median {number(masks.median)}), {statistics.without_masks:,} without",
        *_sources_line(statistics),
        f"means: {', '.join(f'{name} {number(histogram.mean)}' for name, histogram in means.items())}",
        f"{counted(near.pairs, 'pair')} of near-duplicate masks in {counted(near.images_sampled, 'sampled image')} "
        f"(IoU of at least {near.threshold:g})",
    ]
    to_look_at = []
    if statistics.outliers:
        to_look_at.append(counted(len(statistics.outliers), "outlier"))
    if statistics.drift:
        to_look_at.append(counted(len(statistics.drift), "drifting shard"))
    if to_look_at:
        lines.append(f"worth a look: {', '.join(to_look_at)}")
    return lines


def _sources_line(statistics: Statistics) -> list[str]:
    """Return a line with the number of masks per source, if there are annotated masks."""
    sources = statistics.sources or {}
    if not sources.keys() - {AUTOMATIC}:
        return []
    return [f"by source: {', '.join(f'{source} {masks:,}' for source, masks in sources.items())}"]


def _area(name: str, lines: Sequence[str], width: int) -> list[str]:
    wrapped = []
    for line in lines:
        for part in wrap(line, max(20, width - _WIDTH), break_long_words=False):
            wrapped.append(f"{name:{_WIDTH}}{part}")
            name = ""
    return wrapped


def _findings(total: int) -> str:
    if not total:
        return "no findings"
    return counted(total, "finding")


_HEAD = ("dataset", "scope", "kind", "version", "shards", "sample")
_FINDING = ("code", "shard", "file", "where", "image", "mask", "expected", "found")
_AREAS = ("licenses", "privacy", "duplicates", "statistics", "redactions")
_NEEDED = (
    *("dataset", "scope", "findings_total", "findings_by_code", "findings"),
    *("checked", "files_of_writers", "not_compared"),
)
_EXPECTED = "expected the output of `segmint audit DATASET --json -o FILE`"
_ADAPTER = TypeAdapter(AuditReport)


def to_dict(report: AuditReport) -> dict[str, Any]:
    """Convert the result to a JSON object. It counts all findings, but only lists the first findings of each code."""
    areas = _AREAS if report.scope == "all" else ()
    return {
        **{name: json_value(getattr(report, name)) for name in _HEAD},
        "findings_total": report.findings.total,
        "findings_by_code": {str(code): count for code, count in sorted(report.findings.counts.items())},
        "findings": [{name: getattr(finding, name) for name in _FINDING} for finding in report.findings],
        "checked": json_value(report.checked),
        "not_built": json_value(report.not_built),
        "files_of_writers": json_value(report.recent_unnamed),
        "other_files": json_value(report.other_files),
        "not_compared": json_value(report.not_compared),
        "unusable_commits": json_value(report.unusable_commits),
        "replaced": json_value(report.replaced),
        "notes": json_value(report.notes),
        "not_checked": not_checked(report),
        "unfinished": json_value(report.unfinished),
        **{area: json_value(getattr(report, area)) for area in areas},
        **({"unsearched": json_value(report.unsearched), "verdict": verdict(report)} if areas else {}),
    }


def to_json(report: AuditReport) -> str:
    """Return the result as `segmint audit --json` prints it."""
    return json_text(to_dict(report))


def from_json(data: str | bytes, where: str) -> AuditReport:
    """Parse JSON from `to_json`. Raises `UsageError`, which names the source `where`, for any other text."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not an audit: not JSON: {error}; {_EXPECTED}") from error
    missing = [key for key in _NEEDED if not isinstance(value, dict) or key not in value]
    if missing:
        raise UsageError(f"{where} is not an audit: no {missing[0]}; {_EXPECTED}")
    findings = value["findings"]
    if not isinstance(findings, list) or not all(isinstance(each, dict) for each in findings):
        raise UsageError(f"{where} is not an audit: findings is not a list of objects; {_EXPECTED}")
    if not all("image" in finding for finding in findings):
        raise UsageError(f"{where} contains findings without their image. Audit again; {_EXPECTED}")
    try:
        return _ADAPTER.validate_python(
            {
                **value,
                "findings": {"counts": value["findings_by_code"], "kept": findings},
                "recent_unnamed": value["files_of_writers"],
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise UsageError(f"{where} is not an audit: {name}: {first['msg']}; {_EXPECTED}") from error


def read_audit(file: Location) -> AuditReport:
    """Read a result from a file. Raises `UsageError` if the file is missing or isn't a result."""
    try:
        data = file.read()
    except NotFoundError as error:
        raise UsageError(f"{file} does not exist. Create it with `segmint audit DATASET --json -o FILE`") from error
    return from_json(data, str(file))
