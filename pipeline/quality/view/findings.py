"""Findings of an audit by image, for a viewer."""

from collections.abc import Iterator
from dataclasses import dataclass

from segmint.catalogs.findings import Finding
from segmint.pipeline.quality.audit.result import AuditReport, PrivacyResult
from segmint.pipeline.quality.statistics.values import Statistics

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class ImageFinding:
    """Finding about an image: a code, a sentence, and the mask or box that it refers to, if any.

    `mask` is the mask's `annotation_id`; `box` is (x, y, width, height) in pixels of the released image.
    """

    image: int
    code: str
    text: str
    mask: int | None = None
    box: Box | None = None


@dataclass(frozen=True)
class AuditFindings:
    """Findings about images, and the number of findings about files, shards, or rows."""

    images: tuple[ImageFinding, ...] = ()
    elsewhere: int = 0


def findings_of(audit: AuditReport) -> AuditFindings:
    """Return the findings, detections, outliers, and near-duplicate masks of an audit by image."""
    found = [_finding(finding.image, finding) for finding in audit.findings if finding.image is not None]
    elsewhere = sum(finding.image is None for finding in audit.findings)
    if audit.privacy is not None:
        found.extend(_regions(audit.privacy))
    if audit.statistics is not None:
        found.extend(_masks_and_images(audit.statistics))
    return AuditFindings(tuple(found), elsewhere)


def _finding(image: int, finding: Finding) -> ImageFinding:
    text = f"{finding.where or finding.file}: expected {finding.expected}; found {finding.found}"
    return ImageFinding(image, str(finding.code), text, finding.mask)


def _regions(privacy: PrivacyResult) -> Iterator[ImageFinding]:
    for region in privacy.found:
        text = f"a {region.kind} found by {region.detector} at score {region.score:.2f}"
        yield ImageFinding(region.id, f"{region.kind}_found", text, box=(region.x, region.y, region.w, region.h))


def _masks_and_images(statistics: Statistics) -> Iterator[ImageFinding]:
    for outlier in statistics.outliers:
        yield ImageFinding(outlier.id, "outlier", outlier.reason)
    for pair in statistics.near_duplicates.examples:
        one, other = pair.annotation_ids
        text = f"masks {one} and {other} are near-duplicates: IoU {pair.iou:.3f}"
        yield ImageFinding(pair.id, "near_duplicate", text, mask=one)
