"""The result of an audit: its findings, what was checked, and what was counted.

`result_json` writes and reads it as JSON, `result_text` as lines for a person.
"""

from dataclasses import dataclass, fields
from datetime import date
from typing import Literal

from segmint.catalogs.dataset.regions import DetectedRegion, Sighting
from segmint.catalogs.dataset.versions.record import VersionName
from segmint.catalogs.findings import Findings
from segmint.pipeline.quality.statistics.values import ProviderImages, Statistics


@dataclass(frozen=True)
class CheckedCounts:
    """How much an audit checked."""

    commits: int = 0
    catalog_parts: int = 0
    catalog_rows: int = 0  # rows of images and rejects that were compared with the catalog
    files: int = 0  # of commits, read whole and hashed
    bytes: int = 0
    images: int = 0  # rows
    rejects: int = 0  # rows
    masks: int = 0  # rows, each measured from its run lengths
    jsons: int = 0  # compared with the tables
    jpegs: int = 0  # size and metadata checked
    jpegs_decoded: int = 0
    masks_decoded: int = 0

    def __add__(self, other: "CheckedCounts") -> "CheckedCounts":
        return CheckedCounts(
            **{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        )


@dataclass(frozen=True)
class LicenseVerdict:
    """The images of a license (None: of those without one), and whether the dataset's policy allows it."""

    license: str | None
    images: int
    allowed: bool


@dataclass(frozen=True)
class Licenses:
    """What the audit of licenses counted."""

    judged_on: date
    by_license: tuple[LicenseVerdict, ...]  # the most frequent first
    by_provider: tuple[ProviderImages, ...]  # the most frequent first
    expired: int
    expired_since_build: int  # of these
    without_attribution: int  # of the images whose license asks for one


@dataclass(frozen=True)
class DetectorCounts:
    """What one detector found in the images that were searched."""

    kind: str
    name: str
    score: float  # threshold
    found: int  # outside of what was redacted
    images: int  # with such a detection
    inside_regions: int  # detections inside of what was redacted
    origin: Literal["build", "audit"] = "build"  # named by the build, or to the audit
    sha256: str | None = None  # of the file of a detector that the audit was given
    failed: int = 0  # images in which it could not search


@dataclass(frozen=True)
class UnredactedRegion(DetectedRegion):
    """A region outside of what was redacted that a detector found, the shard of its image, and which detectors agree.

    Where several found it, detector and score are the first one's, and the box is around what each would redact.
    """

    shard: int
    found_by: tuple[Sighting, ...] = ()
    missed_by: tuple[str, ...] = ()  # detectors of this kind that searched the image and did not find it


@dataclass(frozen=True)
class DetectorAgreement:
    """How many regions of a kind these detectors found, and no other one of that kind."""

    kind: str
    detectors: tuple[str, ...]
    regions: int


@dataclass(frozen=True)
class PrivacyResult:
    """What detectors found in released images."""

    images_checked: int  # by one detector or more
    detectors: tuple[DetectorCounts, ...]
    found: tuple[UnredactedRegion, ...]  # the first of `found_total`
    found_total: int
    inside_regions: int
    agreement: tuple[DetectorAgreement, ...] = ()  # for kinds with several detectors


NotLookedAtReason = Literal[
    "skipped",
    "not_sampled",
    "unreadable",
    "annotations_only",
    "no_image",
    "foreign",
    "no_detector",
    "detector_not_here",
    "detector_failed",
]


@dataclass(frozen=True)
class UnsearchedImages:
    """Images that detectors did not search, and why: all detectors, those of a kind, or one."""

    reason: NotLookedAtReason
    images: int
    of: int  # images of the dataset
    kind: str | None = None  # None: faces and plates
    detector: str | None = None  # None: all of the kind
    detail: str = ""


@dataclass(frozen=True)
class Duplicates:
    """Images of the same bytes (None: not known) and images that look alike, up to `distance` bits of their hashes."""

    images_compared: int
    distance: int
    repeated_sources: int | None
    similar: int


@dataclass(frozen=True)
class AuditReport:
    """The result of an audit.

    The areas `licenses`, `privacy`, `duplicates` and `statistics` are None where they cannot be known, and all of
    them with the scope `integrity`.
    """

    dataset: str
    scope: Literal["all", "integrity"]
    kind: Literal["segmint", "sa1b"]
    shards: int  # of the whole dataset
    sample: int
    findings: Findings
    checked: CheckedCounts
    not_built: tuple[tuple[int, int], ...] = ()  # ranges [first, last] of shards without a commit; no finding
    recent_unnamed: tuple[str, ...] = ()  # files that no commit names, and that a writer may still name; no finding
    not_compared: tuple[int, ...] = ()  # shards whose files could not be compared, since some are damaged
    unusable_commits: tuple[int, ...] = ()  # shards whose commit cannot be used
    notes: tuple[str, ...] = ()  # what else a person should know
    version: VersionName | None = None  # what was audited; None: data that segmint did not write
    licenses: Licenses | None = None
    privacy: PrivacyResult | None = None
    duplicates: Duplicates | None = None
    statistics: Statistics | None = None
    unsearched: tuple[UnsearchedImages, ...] = ()

    @property
    def images_searched(self) -> int:
        """Released images that detectors searched."""
        return 0 if self.privacy is None else self.privacy.images_checked

    @property
    def nothing_looked_at(self) -> bool:
        """Whether detectors were to search images, and searched none."""
        return not self.images_searched and any(each.reason != "skipped" for each in self.unsearched)
