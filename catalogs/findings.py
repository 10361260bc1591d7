"""Audit findings and reasons of rejected rows: all codes, with a sentence on each."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Self

from segmint.infra.errors import UsageError

EXAMPLES = 100
"""Maximum number of findings per code that are kept and listed. All findings are counted."""


INTEGRITY = "integrity"
"""Area of most codes."""


class Code(StrEnum):
    """Short name of a problem, with a sentence that explains it and the area of an audit that reports it."""

    sentence: str
    area: str

    def __new__(cls, name: str, sentence: str, area: str = INTEGRITY) -> Self:
        code = str.__new__(cls, name)
        code._value_, code.sentence, code.area = name, sentence, area
        return code

    BAD_MANIFEST = (
        "bad_manifest",
        "The manifest's hash or catalog parts are wrong, or it contradicts the previous generation.",
    )
    MISSING_CATALOG = ("missing_catalog", "A catalog part that the manifest lists is missing.")
    CATALOG_DIGEST = ("catalog_digest", "A catalog part's bytes don't match the pinned SHA-256.")
    CATALOG_ROWS = (
        "catalog_rows",
        "A catalog part isn't a catalog table, or its ordinals don't match the pinned ones.",
    )
    BAD_COMMIT = ("bad_commit", "A commit file is invalid: wrong JSON, fields, file names, or canonical form.")
    NOT_COMMITTED = ("not_committed", "Shards have no commit (only checked with `--complete`).")
    UNKNOWN_SHARD = ("unknown_shard", "A commit belongs to a shard that the dataset doesn't have.")
    WRONG_ORDINALS = (
        "wrong_ordinals",
        "A commit's ordinals don't match its shard, so rows would be missing or duplicated.",
    )
    REPLACED_GENERATION = ("replaced_generation", "An older commit still exists next to the one that replaced it.")
    OTHER_NUMERICS = ("other_numerics", "A shard was computed with different numerics than the dataset.")
    OTHER_BUILD = (
        "other_build",
        "A shard was built with settings, weights, or a policy date other than those in `dataset.json`.",
    )
    BAD_COUNTS = (
        "bad_counts",
        "A commit's counts don't add up: rows = images + rejected, and rejected = the sum over reasons.",
    )
    MISSING_FILE = ("missing_file", "A file that a commit or an annotation file lists is missing.")
    FILE_SIZE = ("file_size", "A file's size differs from its commit.")
    FILE_DIGEST = ("file_digest", "A file's SHA-256 differs from its commit.")
    LEFTOVER_FILE = (
        "leftover_file",
        "A killed process or a replaced commit left this file behind. A build deletes it.",
    )
    STRAY_FILE = ("stray_file", "The dataset contains a file or link that segmint didn't put there.")
    BAD_TABLE = ("bad_table", "A table isn't readable as Parquet, or its columns, format, or image sizes are wrong.")
    TABLE_COUNTS = ("table_counts", "A table's number of rows differs from its commit.")
    ROW_IDENTITY = ("row_identity", "Ordinals or ids are missing, duplicated, out of order, or mismatched.")
    OTHER_CATALOG_ROW = ("other_catalog_row", "A row contradicts the catalog's row with the same ordinal.")
    DUPLICATE_IMAGE = ("duplicate_image", "An image was accepted although an earlier catalog row has its `image_id`.")
    MASK_COUNT = ("mask_count", "An image's mask count differs from the mask table.")
    UNKNOWN_REASON = ("unknown_reason", "A rejected row has an unknown reason, and no custom stage rejected it.")
    INCOMPLETE_REJECT = ("incomplete_reject", "A rejected row lacks an image_id, uri, stage, or detail.")
    BAD_TOMBSTONE = (
        "bad_tombstone",
        "A file in `tombstones/` or `fingerprints/` is unreadable, was changed, or is missing.",
    )
    BAD_VERSION = ("bad_version", "A recorded version was deleted or changed, or doesn't follow the one before it.")
    UNLIKE_VERSION = (
        "unlike_version",
        "A manifest, commit, or tombstone of the last recorded version is missing or changed.",
    )
    BAD_INDEX = (
        "bad_index",
        "`shards.json` doesn't list the tars of the latest commits; the build command rewrites it.",
    )
    STILL_THERE = ("still_there", "A tombstone lists this row or its image's source, but some of its data remains.")
    BAD_SUBMISSION = (
        "bad_submission",
        "A submission is unreadable or belongs to an unknown image, or an earlier one is missing.",
    )
    OTHER_SUBMISSION = (
        "other_submission",
        "The submission that was merged into an image's row is missing or differs from the row.",
    )
    BAD_RATING = ("bad_rating", "A rating is unreadable, or its mask never existed or has changed since.")
    BAD_TAR = ("bad_tar", "A shard's tar can't be read to its end.")
    TAR_MEMBERS = ("tar_members", "A tar doesn't contain the JPEG and JSON of each image in order of ids.")
    OTHER_JSON = ("other_json", "An image's JSON differs from the tables.")
    MISSING_PAIR = (
        "missing_pair",
        "In data that segmint didn't write, a JPEG has no JSON, or a JSON or label file has no image.",
    )
    BAD_JSON = ("bad_json", "In data that segmint didn't write, a JSON file or one of its images can't be read.")
    BAD_JPEG = ("bad_jpeg", "An image can't be read, or can't be decoded to its end.")
    JPEG_SIZE = ("jpeg_size", "An image's width or height differs from its row or its annotation file.")
    JPEG_METADATA = (
        "jpeg_metadata",
        "An image contains EXIF, XMP, a profile, a comment, or other bytes around its picture.",
    )
    OTHER_RELEASE = ("other_release", "An intact JPEG's hashes differ from its image's `release_sha256` or `hashes`.")
    BAD_RLE = ("bad_rle", "A mask's RLE or polygon is damaged or doesn't fit its size.")
    RLE_SIZE = ("rle_size", "A mask's size differs from its image's.")
    MASK_AREA = ("mask_area", "A mask's area differs from its row or is zero.")
    MASK_BOX = ("mask_box", "A mask's box isn't the bounding box of its pixels.")
    MASK_PIXELS = ("mask_pixels", "A decoded mask's area or box differs from its row.")
    BOX_OUTSIDE = ("box_outside", "A box extends beyond its image or is empty.")
    CROP_OUTSIDE = ("crop_outside", "A mask's crop extends beyond its image or is empty.")
    POINT_OUTSIDE = ("point_outside", "A mask's prompt point is outside its crop or image.")
    SCORE_RANGE = ("score_range", "A score isn't a number or is out of range.")
    UNDER_THRESHOLD = ("under_threshold", "A score doesn't meet the threshold that the dataset was built with.")
    UNKNOWN_SOURCE = ("unknown_source", "A mask's `source` isn't a known mask source.")
    UNKNOWN_PARENT = ("unknown_parent", "A mask's `parent` isn't an earlier mask of its image.")
    BAD_LABEL = (
        "bad_label",
        "A mask's label is unknown or lacks its source, or its `label_score` or `output` is invalid.",
    )
    BAD_CONTAINER = (
        "bad_container",
        "A mask's `container` isn't a larger mask of its image, or not the smallest that contains it.",
    )
    BAD_SECONDS = ("bad_seconds", "Annotators' seconds are negative, infinite, or not a number.")
    BAD_HASH = ("bad_hash", "The hash of a submission, an imported file, or weights isn't a SHA-256.")
    REDACTED_SHARE = (
        "redacted_share",
        "A redacted share of a mask or image, or a mask's redaction_iou, doesn't match the regions.",
    )
    REDACTION_ARTIFACT = (
        "redaction_artifact",
        "A mask traces a redacted region, although the configuration drops such masks.",
    )
    LICENSE_NOT_ALLOWED = ("license_not_allowed", "An image's license is missing or not allowed.", "licenses")
    LICENSE_EXPIRED = ("license_expired", "An image's license has expired by the date of the audit.", "licenses")
    NOT_REDISTRIBUTABLE = (
        "not_redistributable",
        "Redistribution is required but denied or unknown for an image.",
        "licenses",
    )
    OPTED_OUT = ("opted_out", "An image is in the dataset although the catalog marks it as opted out.", "licenses")
    MISSING_ATTRIBUTION = (
        "missing_attribution",
        "An image's license requires attribution, but its row doesn't credit anyone.",
        "licenses",
    )
    STILL_DETECTED = ("still_detected", "A detector finds a face or plate outside the redacted regions.", "privacy")
    GPS_POSITION = ("gps_position", "An image's metadata contains the position where it was taken.", "privacy")
    OTHER_THUMBNAIL = (
        "other_thumbnail",
        "An image's file contains a thumbnail or a reduced copy that shows something else.",
        "privacy",
    )
    REPEATED_SOURCE = ("repeated_source", "An image was made from the same bytes as an earlier one.", "duplicates")
    SIMILAR_IMAGE = (
        "similar_image",
        "An image is a near-duplicate of an earlier one by perceptual hash.",
        "duplicates",
    )
    SPLIT_LEAK = (
        "split_leak",
        "An image of a split is a copy or near-duplicate of one in another split.",
        "duplicates",
    )


REPAIRABLE = frozenset(
    {
        Code.MISSING_FILE,
        Code.FILE_SIZE,
        Code.FILE_DIGEST,
        Code.BAD_COMMIT,
        Code.WRONG_ORDINALS,
        Code.BAD_COUNTS,
    }
)
"""Damage that `segmint repair` may be able to restore."""


@dataclass(frozen=True)
class Finding:
    """One problem in a dataset, and its location.

    `file` is a path below the dataset. `where` names a row, image, or mask in that file, and is empty if the whole file
    is affected. `shard` is None if the file doesn't belong to a shard. `image` is the number of the affected image, and
    `mask` is the annotation id of the affected mask. Either is None if it is unknown or doesn't apply.
    """

    code: Code
    file: str
    expected: str
    found: str
    shard: int | None = None
    where: str = ""
    image: int | None = None
    mask: int | None = None

    def line(self) -> str:
        shard = "" if self.shard is None else f"shard {self.shard}: "
        where = f", {self.where}" if self.where else ""
        return f"{self.code}: {shard}{self.file}{where}: expected {self.expected}; found {self.found}"


@dataclass(frozen=True)
class FindingLocation:
    """File in which findings are made, with its shard, if any. `image` is as in `Finding`.

    If the file lists several images, `part` is the name of one of them.
    """

    file: str
    shard: int | None = None
    image: int | None = None
    part: str = ""

    def of_image(self, image: int | None) -> "FindingLocation":
        """Return this location for findings about one image in the file."""
        return replace(self, image=image)

    def finding(
        self, code: Code, expected: object, found: object, where: str = "", *, mask: int | None = None
    ) -> Finding:
        """Create a finding at this location.

        `where` names a row, image, or mask in the file. `mask` is as in `Finding`.
        """
        where = ", ".join(filter(None, [self.part, where]))
        return Finding(code, self.file, str(expected), str(found), self.shard, where, self.image, mask)

    def mask_finding(self, id: int, code: Code, expected: object, found: object) -> Finding:
        """Create a finding about the mask `id`."""
        return self.finding(code, expected, found, f"mask {id}", mask=id)

    def image_finding(self, id: int, code: Code, expected: object, found: object) -> Finding:
        """Create a finding about the image `id`."""
        return self.of_image(id).finding(code, expected, found, f"id {id}")


@dataclass(frozen=True)
class Findings:
    """Collected findings.

    `counts` contains the number of all findings by code. `kept` contains the first `EXAMPLES` findings of each code,
    ordered by code.
    """

    counts: Mapping[Code, int]
    kept: tuple[Finding, ...]

    @property
    def total(self) -> int:
        """Number of all findings, including those that weren't kept."""
        return sum(self.counts.values())

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.kept)

    def __contains__(self, code: object) -> bool:
        return code in self.counts


@dataclass
class FindingCollector:
    """Collector of findings.

    It counts all findings by code, but keeps only the first `EXAMPLES` of each, to limit its memory.
    """

    counts: dict[Code, int] = field(default_factory=dict)
    _kept: dict[Code, list[Finding]] = field(default_factory=dict)

    def add(self, finding: Finding) -> None:
        """Count a finding, and keep it if fewer than `EXAMPLES` with its code have been kept."""
        self.counts[finding.code] = self.counts.get(finding.code, 0) + 1
        self._keep(finding)

    def extend(self, findings: "Iterable[Finding] | FindingCollector | Findings") -> None:
        """Add several findings in order, or everything that another collector contains."""
        if isinstance(findings, FindingCollector):
            findings = findings.collected()
        if not isinstance(findings, Findings):
            for finding in findings:
                self.add(finding)
            return
        for code, count in findings.counts.items():
            self.counts[code] = self.counts.get(code, 0) + count
        for finding in findings:
            self._keep(finding)

    def collected(self) -> Findings:
        """Return the findings collected so far."""
        return Findings(dict(self.counts), tuple(finding for code in Code for finding in self._kept.get(code, ())))

    @property
    def total(self) -> int:
        """Number of findings added so far, including those that weren't kept."""
        return sum(self.counts.values())

    def __contains__(self, code: object) -> bool:
        return code in self.counts

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.collected())

    def _keep(self, finding: Finding) -> None:
        kept = self._kept.setdefault(finding.code, [])
        if len(kept) < EXAMPLES:
            kept.append(finding)


class Reason(StrEnum):
    """Final verdict on one image. The dataset's `rejects` tables contain it."""

    LICENSE_NOT_ALLOWED = "license_not_allowed"
    LICENSE_MISSING = "license_missing"
    LICENSE_EXPIRED = "license_expired"
    NOT_REDISTRIBUTABLE = "not_redistributable"
    DUPLICATE_ID = "duplicate_id"
    URI_NOT_ALLOWED = "uri_not_allowed"
    NOT_FOUND = "not_found"
    UNREADABLE_OBJECT = "unreadable_object"
    EMPTY_OBJECT = "empty_object"
    HASH_MISMATCH = "hash_mismatch"
    NOT_AN_IMAGE = "not_an_image"
    UNSUPPORTED_FORMAT = "unsupported_format"
    ANIMATED = "animated"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    TOO_LARGE = "too_large"
    TOO_SMALL = "too_small"
    DETECTOR_FAILED = "detector_failed"
    STILL_DETECTED = "still_detected"
    MOSTLY_REDACTED = "mostly_redacted"
    TOO_MANY_MASKS = "too_many_masks"
    KILLED_WORKER = "killed_worker"
    OUT_OF_MEMORY = "out_of_memory"
    TIMED_OUT = "timed_out"
    PERSISTENT_FAULT = "persistent_fault"
    STAGE_FAILED = "stage_failed"
    TAKEN_DOWN = "taken_down"
    DUPLICATE_IMAGE = "duplicate_image"
    UNFIT = "unfit"
    OPTED_OUT = "opted_out"
    PROMPTS_MISFIT = "prompts_misfit"
    REFUSED_BY_LIST = "refused_by_list"


LICENSE_REASONS = frozenset(
    {
        Reason.LICENSE_NOT_ALLOWED,
        Reason.LICENSE_MISSING,
        Reason.LICENSE_EXPIRED,
        Reason.NOT_REDISTRIBUTABLE,
    }
)

CURATE_REASONS = frozenset({Reason.DUPLICATE_IMAGE, Reason.UNFIT, Reason.OPTED_OUT})
"""Reasons that a catalog may give in `refused_reason`."""

_BUILT_IN = frozenset(map(str, Reason))
_CUSTOM = re.compile(r"[a-z][a-z0-9_]{0,62}")

DELIBERATE_REASONS = LICENSE_REASONS | CURATE_REASONS | {Reason.TAKEN_DOWN, Reason.REFUSED_BY_LIST}
"""Reasons that result from a person's decision. Even a large number of them doesn't indicate an outage."""


class RejectedError(Exception):
    """A verdict that rejects one image. The image becomes a rejected row with this reason, and the build continues.

    `detail` is a sentence about what was found and what was expected. The dataset stores the sentence, so it must not
    contain image data.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["RejectedError"], tuple[Reason, str]]:
        """Make the verdict picklable, so that one process can send it to another."""
        return type(self), (self.reason, self.detail)


def is_custom_reason(name: str) -> bool:
    """Return whether a custom stage may reject an image for this reason."""
    return bool(_CUSTOM.fullmatch(name)) and name not in _BUILT_IN


def check_reasons(names: Collection[str], custom: bool) -> None:
    """Raise `UsageError` for a reason that `--retry-rejected` doesn't accept.

    With `custom`, the reasons of custom stages are accepted, too.
    """
    known = [reason.value for reason in Reason if reason is not Reason.TAKEN_DOWN]
    for name in names:
        if name not in known and not (custom and is_custom_reason(name)):
            more = ", or a reason of a custom stage" if custom else ""
            raise UsageError(f"--retry-rejected {name!r}: expected one of {', '.join(known)}{more}")
