"""Formatting of an audit's result as lines for people."""

from collections import Counter
from collections.abc import Iterator, Sequence
from textwrap import wrap

from segmint.catalogs.findings import AREAS, EXAMPLES, INTEGRITY, SENTENCES, Code
from segmint.catalogs.reasons import Reason
from segmint.infra.wording import counted, listed, number, some
from segmint.operators.schemas import AUTOMATIC
from segmint.pipeline.quality.audit.result import AuditReport, Duplicates, Licenses, PrivacyResult, UnsearchedImages
from segmint.pipeline.quality.statistics.values import Statistics

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
        yield "duplicates", [_duplicate_line(report.duplicates, found["duplicates"])]
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
        left = {
            "caused by redaction and left": report.privacy.residual,
            "unconfirmed by the build": report.privacy.unconfirmed,
        }
        for name, number in report.privacy.left_alone.items():
            left[f"released by {name}"] = number
        for what, number in left.items():
            if number:
                counts += f"; {counted(number, 'detection')} {what} (--strict counts them)"
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
        lines.append(f"{code}: {count:,} ({SENTENCES[code]})")
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
        shards = some(list(map(str, report.replaced)))
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
        found[AREAS.get(code, INTEGRITY)] += count
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


def _duplicate_line(duplicates: Duplicates, findings: int) -> str:
    parts = []
    if duplicates.repeated_sources is not None:
        parts.append(f"{duplicates.repeated_sources:,} made from the same bytes as an earlier image")
    parts.append(f"{counted(duplicates.similar, 'near-duplicate')} in {counted(duplicates.images_compared, 'image')}")
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
