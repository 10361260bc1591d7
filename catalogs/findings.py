"""Audit findings: the codes of all problems that an audit can report, with a sentence on each."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

EXAMPLES = 100
"""Maximum number of findings kept and listed per code; all are counted."""


class Code(StrEnum):
    """Short name of a problem; `SENTENCES` explains each."""

    BAD_MANIFEST = "bad_manifest"
    MISSING_CATALOG = "missing_catalog"
    CATALOG_DIGEST = "catalog_digest"
    CATALOG_ROWS = "catalog_rows"
    BAD_COMMIT = "bad_commit"
    NOT_COMMITTED = "not_committed"
    UNKNOWN_SHARD = "unknown_shard"
    WRONG_ORDINALS = "wrong_ordinals"
    REPLACED_GENERATION = "replaced_generation"
    OTHER_NUMERICS = "other_numerics"
    BAD_COUNTS = "bad_counts"
    MISSING_FILE = "missing_file"
    FILE_SIZE = "file_size"
    FILE_DIGEST = "file_digest"
    LEFTOVER_FILE = "leftover_file"
    STRAY_FILE = "stray_file"
    BAD_TABLE = "bad_table"
    TABLE_COUNTS = "table_counts"
    ROW_IDENTITY = "row_identity"
    OTHER_CATALOG_ROW = "other_catalog_row"
    DUPLICATE_IMAGE = "duplicate_image"
    MASK_COUNT = "mask_count"
    UNKNOWN_REASON = "unknown_reason"
    INCOMPLETE_REJECT = "incomplete_reject"
    BAD_TOMBSTONE = "bad_tombstone"
    BAD_VERSION = "bad_version"
    UNLIKE_VERSION = "unlike_version"
    BAD_INDEX = "bad_index"
    STILL_THERE = "still_there"
    BAD_SUBMISSION = "bad_submission"
    OTHER_SUBMISSION = "other_submission"
    BAD_RATING = "bad_rating"
    BAD_TAR = "bad_tar"
    TAR_MEMBERS = "tar_members"
    OTHER_JSON = "other_json"
    MISSING_PAIR = "missing_pair"
    BAD_JSON = "bad_json"
    BAD_JPEG = "bad_jpeg"
    JPEG_SIZE = "jpeg_size"
    JPEG_METADATA = "jpeg_metadata"
    BAD_RLE = "bad_rle"
    RLE_SIZE = "rle_size"
    MASK_AREA = "mask_area"
    MASK_BOX = "mask_box"
    MASK_PIXELS = "mask_pixels"
    BOX_OUTSIDE = "box_outside"
    CROP_OUTSIDE = "crop_outside"
    POINT_OUTSIDE = "point_outside"
    SCORE_RANGE = "score_range"
    UNDER_THRESHOLD = "under_threshold"
    UNKNOWN_SOURCE = "unknown_source"
    UNKNOWN_PARENT = "unknown_parent"
    BAD_SECONDS = "bad_seconds"
    BAD_HASH = "bad_hash"
    REDACTED_SHARE = "redacted_share"
    REDACTION_ARTIFACT = "redaction_artifact"
    LICENSE_NOT_ALLOWED = "license_not_allowed"
    LICENSE_EXPIRED = "license_expired"
    NOT_REDISTRIBUTABLE = "not_redistributable"
    OPTED_OUT = "opted_out"
    MISSING_ATTRIBUTION = "missing_attribution"
    STILL_DETECTED = "still_detected"
    REPEATED_SOURCE = "repeated_source"
    SIMILAR_IMAGE = "similar_image"


SENTENCES = {
    Code.BAD_MANIFEST: "The manifest contradicts itself (its hash, the catalog's parts), or the generation before it.",
    Code.MISSING_CATALOG: "A part of the catalog that the manifest names is not there.",
    Code.CATALOG_DIGEST: "A part of the catalog has other bytes than those that were pinned.",
    Code.CATALOG_ROWS: "A part of the catalog is not a catalog table, or has other ordinals than were pinned.",
    Code.BAD_COMMIT: "A commit's file is not a commit: JSON, fields, file names or canonical form are wrong.",
    Code.NOT_COMMITTED: "With `--complete`: shards of the dataset have no commit, as if they were not built yet.",
    Code.UNKNOWN_SHARD: "A commit is of a shard that the dataset does not have.",
    Code.WRONG_ORDINALS: "A commit's ordinals are not those of its shard: rows would be missing, or there twice.",
    Code.REPLACED_GENERATION: "An older commit is still there besides the one that replaced it.",
    Code.OTHER_NUMERICS: "A shard was computed with other numerics than the dataset's.",
    Code.BAD_COUNTS: "A commit's counts do not add up: rows = images + rejected, and rejected = the sum over reasons.",
    Code.MISSING_FILE: "A file that a commit names is not there.",
    Code.FILE_SIZE: "A file has another size than its commit says.",
    Code.FILE_DIGEST: "A file has other bytes than its commit says, by their SHA-256.",
    Code.LEFTOVER_FILE: "Nothing names this file of a writer that died, or of a replaced commit; a build deletes it.",
    Code.STRAY_FILE: "A file with a foreign name, or of a shard that the dataset does not have, is in its folders.",
    Code.BAD_TABLE: "A table cannot be read as Parquet, has other columns, or is of a format that its dataset has not.",
    Code.TABLE_COUNTS: "A table has another number of rows than its commit counts.",
    Code.ROW_IDENTITY: "Ordinals or ids are missing, there twice, out of order, or do not belong together.",
    Code.OTHER_CATALOG_ROW: "A row says something else of its image than the catalog's row of that ordinal.",
    Code.DUPLICATE_IMAGE: "An image was accepted though an earlier row of the catalog has its `image_id`.",
    Code.MASK_COUNT: "An image's row counts other masks than the table of masks has for it.",
    Code.UNKNOWN_REASON: "An image was refused for an unknown reason.",
    Code.INCOMPLETE_REJECT: "A refused image's row lacks its uri, stage or detail.",
    Code.BAD_TOMBSTONE: "A file in `tombstones/` cannot be read: what it took down is not known.",
    Code.BAD_VERSION: "A recorded version is gone, was changed, or does not follow the one before it.",
    Code.UNLIKE_VERSION: "A manifest, commit or tombstone of the last recorded version is gone, or has other bytes.",
    Code.BAD_INDEX: "`shards.json` does not list the tars of the commits that hold; a build's command writes it again.",
    Code.STILL_THERE: "A tombstone names this row, or the source of its image, and it still says something of it.",
    Code.BAD_SUBMISSION: "A submission cannot be read, is of no image of the dataset, or one before it is gone.",
    Code.OTHER_SUBMISSION: "The submission that an image's row says was merged is missing, or its rows differ from it.",
    Code.BAD_RATING: "A rating cannot be read, or is of a mask that the dataset never had, or of another form of it.",
    Code.BAD_TAR: "A shard's tar cannot be read to its end.",
    Code.TAR_MEMBERS: "A tar does not hold the JPEG and the JSON of each image, in order of ids.",
    Code.OTHER_JSON: "An image's JSON is not what the tables say.",
    Code.MISSING_PAIR: "In data that segmint did not write, a JPEG has no JSON of its name, or a JSON no JPEG.",
    Code.BAD_JSON: "In data that segmint did not write, a JSON is not that of an image with annotations.",
    Code.BAD_JPEG: "A JPEG cannot be read, or cannot be decoded to its end.",
    Code.JPEG_SIZE: "A JPEG has another width or height than its image's row.",
    Code.JPEG_METADATA: "A JPEG holds EXIF, XMP, an ICC profile, a comment, or bytes after its end.",
    Code.BAD_RLE: "A mask's run lengths are damaged, or do not cover its size.",
    Code.RLE_SIZE: "A mask has another size than its image.",
    Code.MASK_AREA: "A mask has another area than its row says, or none.",
    Code.MASK_BOX: "A mask's box is not the one around its pixels.",
    Code.MASK_PIXELS: "A decoded mask has another area or box than its row says.",
    Code.BOX_OUTSIDE: "A mask's box leaves its image.",
    Code.CROP_OUTSIDE: "A mask's crop leaves its image, or is empty.",
    Code.POINT_OUTSIDE: "A mask's point lies outside of its crop or image.",
    Code.SCORE_RANGE: "A score is not a number, or outside of its range.",
    Code.UNDER_THRESHOLD: "A score is under the threshold that the dataset was built with.",
    Code.UNKNOWN_SOURCE: "A mask's `source` is not one of those that are known.",
    Code.UNKNOWN_PARENT: "The mask that a mask was made from is no earlier mask of its image.",
    Code.BAD_SECONDS: "The seconds of people's work are negative, endless or no number.",
    Code.BAD_HASH: "The hash of a submission, of an imported file or of weights is no SHA-256.",
    Code.REDACTED_SHARE: "A mask's share in redacted regions, or IoU with one, is not what the image's regions give.",
    Code.REDACTION_ARTIFACT: "A mask traces a redacted region, and the configuration drops such masks.",
    Code.LICENSE_NOT_ALLOWED: "An image is in the dataset whose license is missing, or not among those allowed.",
    Code.LICENSE_EXPIRED: "An image's license has ended, by the day of the audit.",
    Code.NOT_REDISTRIBUTABLE: "Redistribution is required, and is denied or unknown for an image.",
    Code.OPTED_OUT: "An image is in the dataset that the catalog says is opted out.",
    Code.MISSING_ATTRIBUTION: "An image's license asks for attribution, and its row names nobody.",
    Code.STILL_DETECTED: "A detector finds a face or a plate outside of what was redacted.",
    Code.REPEATED_SOURCE: "An image was made from the same bytes as an earlier one.",
    Code.SIMILAR_IMAGE: "An image looks like an earlier one, by their perceptual hashes.",
}
"""Explanation of each code."""

INTEGRITY = "integrity"
AREAS = {
    Code.LICENSE_NOT_ALLOWED: "licenses",
    Code.LICENSE_EXPIRED: "licenses",
    Code.NOT_REDISTRIBUTABLE: "licenses",
    Code.OPTED_OUT: "licenses",
    Code.MISSING_ATTRIBUTION: "licenses",
    Code.STILL_DETECTED: "privacy",
    Code.REPEATED_SOURCE: "duplicates",
    Code.SIMILAR_IMAGE: "duplicates",
}
"""Area of each code outside integrity."""


@dataclass(frozen=True)
class Finding:
    """One problem and its location.

    `file` is a path below the dataset, `where` a row, image, or mask in it (empty: the whole file). `shard` is None for
    a file that belongs to no shard. `image` is the number of the affected image, `mask` the annotation id of the
    affected mask; each is None if there is none or it is unknown.
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
        """Return the finding as a line of text."""
        shard = "" if self.shard is None else f"shard {self.shard}: "
        where = f", {self.where}" if self.where else ""
        return f"{self.code}: {shard}{self.file}{where}: expected {self.expected}; found {self.found}"


@dataclass(frozen=True)
class FindingLocation:
    """A file with findings and its shard, if it belongs to one; `image` as in `Finding`."""

    file: str
    shard: int | None = None
    image: int | None = None

    def of_image(self, image: int | None) -> "FindingLocation":
        """Return the same file, for findings about one image."""
        return replace(self, image=image)

    def finding(
        self, code: Code, expected: object, found: object, where: str = "", *, mask: int | None = None
    ) -> Finding:
        """Return a finding in this file; `where` names a row, image, or mask in it, `mask` is as in `Finding`."""
        return Finding(code, self.file, str(expected), str(found), self.shard, where, self.image, mask)


@dataclass(frozen=True)
class Findings:
    """Collected findings: the `counts` of all by code, and the first `EXAMPLES` per code in `kept`, ordered by code."""

    counts: Mapping[Code, int]
    kept: tuple[Finding, ...]

    @property
    def total(self) -> int:
        """Number of findings, kept or not."""
        return sum(self.counts.values())

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.kept)

    def __contains__(self, code: object) -> bool:
        return code in self.counts


@dataclass
class FindingCollector:
    """Collector of findings, which counts all by code and keeps the first `EXAMPLES` of each code.

    This bounds its memory for any amount of damage.
    """

    counts: dict[Code, int] = field(default_factory=dict)
    _kept: dict[Code, list[Finding]] = field(default_factory=dict)

    def add(self, finding: Finding) -> None:
        """Count a finding, and keep it if few with its code are kept."""
        self.counts[finding.code] = self.counts.get(finding.code, 0) + 1
        self._keep(finding)

    def extend(self, findings: "Iterable[Finding] | FindingCollector | Findings") -> None:
        """Add several findings, in order, or everything that another collector holds."""
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
        """Return the findings so far."""
        return Findings(dict(self.counts), tuple(finding for code in Code for finding in self._kept.get(code, ())))

    @property
    def total(self) -> int:
        """Number of findings so far, kept or not."""
        return sum(self.counts.values())

    def __contains__(self, code: object) -> bool:
        return code in self.counts

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.collected())

    def _keep(self, finding: Finding) -> None:
        kept = self._kept.setdefault(finding.code, [])
        if len(kept) < EXAMPLES:
            kept.append(finding)
