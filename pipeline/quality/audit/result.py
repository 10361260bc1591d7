"""Result of an audit: findings, what was checked, and counts.

`result_json` reads and writes the result as JSON, and `result_text` formats it for people.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import date
from typing import Literal

from segmint.catalogs.dataset.redaction_totals import RedactionTotals
from segmint.catalogs.dataset.regions import DetectedRegion, Sighting
from segmint.catalogs.dataset.versions.record import VersionName
from segmint.catalogs.findings import Findings
from segmint.pipeline.quality.statistics.values import ProviderImages, Statistics


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
