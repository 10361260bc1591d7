"""Checks of one shard: its files and rows, licenses, privacy, and near-duplicates.

Audit of the four files of one shard, each read once.

The comparisons are in `operators/audit/`: `masks.py` compares areas, boxes, scores, crops, and points, and `rows.py`
compares tables, JPEGs, and JSON files.
"""

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import date

import numpy as np
import pyarrow as pa

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.manifest import DatasetHandle
from segmint.catalogs.dataset.outputs import note_output
from segmint.catalogs.dataset.submissions import merged_assignment
from segmint.catalogs.dataset.tombstones import BLANK, NO_NAMES, RemovedNames, read_tombstones, removed_images
from segmint.catalogs.findings import Code, Finding, FindingCollector, FindingLocation, Findings, Reason
from segmint.catalogs.layout import SCHEMA_VERSION, DamagedDatasetError, bytes_sha256, image_name
from segmint.catalogs.licenses import LicensePolicy, judge_terms
from segmint.catalogs.lineage import StageColumn
from segmint.infra.storage.errors import NotFoundError, ObjectTooLargeError
from segmint.infra.storage.location import Location
from segmint.infra.wording import some
from segmint.operators.audit.masks import DISTANCE, MaskLimits, audit_masks, find_alike, find_copies
from segmint.operators.audit.rows import (
    HashedStream,
    ShardTables,
    audit_catalog_names,
    audit_catalog_rows,
    audit_counts,
    audit_identity,
    audit_mask_count,
    audit_rejects,
    audit_taken_down,
    audit_tar,
)
from segmint.operators.audit.shard_masks import ShardMasks
from segmint.operators.audit.submissions import audit_merged_submission, audit_redacted_share
from segmint.operators.images import JpegDecoder, UndecodableError, decode_jpeg
from segmint.operators.rows import SCHEMAS, Row
from segmint.operators.shards.revise import read_table, stage_columns
from segmint.operators.similar.near import FRAME, jpeg_hashes
from segmint.pipeline.quality.audit.privacy import PrivacySummary, Searcher, SearchPlan, SearchResult, put_pictures
from segmint.pipeline.quality.audit.result import (
    AssertedLicense,
    CheckedCounts,
    Duplicates,
    Licenses,
    LicenseVerdict,
    UnsearchedImages,
)
from segmint.pipeline.quality.statistics.values import ProviderImages


@dataclass(frozen=True)
class LicenseRules:
    """License policy at the time of the build, and the date of the audit."""

    policy: LicensePolicy
    today: date


@dataclass
class LicenseCounts:
    """Counts of accepted images by license and provider, and of expired or unattributed images. Counts can be added."""

    licenses: Counter[str | None] = field(default_factory=Counter)
    providers: Counter[str | None] = field(default_factory=Counter)
    expired: int = 0
    expired_since_build: int = 0  # images whose license expired after the day of the build
    without_attribution: int = 0  # counts only images whose license requires attribution
    asserted: Counter[tuple[str | None, str]] = field(default_factory=Counter)  # by license and `license_asserted`

    def add(self, other: "LicenseCounts") -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def answer(self, rules: LicenseRules) -> Licenses:
        """Convert the counts to a result, with the most frequent licenses and providers first."""
        return Licenses(
            judged_on=rules.today,
            by_license=tuple(
                LicenseVerdict(name, images, allowed=rules.policy.judge(name, True, None) is None)
                for name, images in _ranked(self.licenses)
            ),
            by_provider=tuple(ProviderImages(name, images) for name, images in _ranked(self.providers)),
            expired=self.expired,
            expired_since_build=self.expired_since_build,
            without_attribution=self.without_attribution,
            asserted=tuple(
                AssertedLicense(license, asserted_by, images)
                for (license, asserted_by), images in sorted(
                    self.asserted.items(), key=lambda item: (-item[1], item[0][0] or "", item[0][1])
                )
            ),
        )


def audit_licenses(
    images: Sequence[Row],
    catalog: Mapping[int, Row] | None,
    rules: LicenseRules,
    place: FindingLocation,
    counts: LicenseCounts,
) -> Iterator[Finding]:
    """Check the licenses of the rows `images`, yield the findings, and add the rows to `counts`.

    An image is judged by the catalog row with its ordinal, because that row states the license. Another check reports
    rows of `images` that differ from the catalog. If the catalog part is damaged, `catalog` is None. In this case,
    dates and redistribution aren't checked.
    """
    for row in images:
        counts.licenses[row["license"]] += 1
        counts.providers[row["provider"]] += 1
        known = None if catalog is None else catalog.get(row["ordinal"])
        source = known or {**row, "redistributable": True, "valid_until": None}
        if source.get("license_asserted"):
            counts.asserted[row["license"], source["license_asserted"]] += 1
        image = place.of_image(row["id"])
        for each in judge_terms(source, rules.policy, rules.today):
            counts.expired += each.code is Code.LICENSE_EXPIRED
            counts.expired_since_build += each.since_build
            counts.without_attribution += each.code is Code.MISSING_ATTRIBUTION
            yield image.finding(each.code, each.expected, each.found, f"id {row['id']}")


def _ranked(counts: "Counter[str | None]") -> list[tuple[str | None, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0] or ""))


_OTHER_MEMBER = (Code.OTHER_RELEASE, Code.OTHER_JSON, Code.BAD_JPEG, Code.JPEG_SIZE, Code.JPEG_METADATA)
_DIGITS = 16
Source = tuple[int, int]
"""First 32 hexadecimal digits of a source's SHA-256, which are unique in practice."""


@dataclass
class ShardContent:
    """Results of the content checks for one shard."""

    licenses: LicenseCounts = field(default_factory=LicenseCounts)
    searches: list[SearchResult] = field(default_factory=list)
    hashes: dict[int, int] = field(default_factory=dict)  # perceptual hashes by id
    sources: dict[int, Source] = field(default_factory=dict)  # by id


@dataclass(frozen=True)
class ContentChecker:
    """License rules and detectors that a process uses to check shards. Thread-safe."""

    rules: LicenseRules | None
    searcher: Searcher | None


@dataclass(frozen=True)
class ContentPlan:
    """Picklable description of a `ContentChecker`, which `load` creates."""

    rules: LicenseRules | None
    search: SearchPlan | None

    @property
    def on_gpu(self) -> bool:
        """True if detectors run on a GPU."""
        return self.search is not None and self.search.device != "cpu"

    def load(self) -> ContentChecker:
        """Load the detectors if images are searched. Raises the exceptions of `find_detectors`."""
        return ContentChecker(self.rules, None if self.search is None else self.search.searcher())


class ShardContentCheck:
    """Content check of one shard. It collects its results in `found`."""

    def __init__(self, looks: ContentChecker, searched: frozenset[int], decoder: JpegDecoder) -> None:
        """Set up the check. Detectors search the images at the positions `searched` in the shard's table."""
        self.found = ShardContent()
        self._looks = looks
        self._searched = searched
        self._decoder = decoder
        self._searched_ids: frozenset[int] = frozenset()

    def look_at_rows(
        self, images: Sequence[Row], catalog: Mapping[int, Row] | None, place: FindingLocation
    ) -> Iterator[Finding]:
        """Check the rows of a shard's images and yield the findings."""
        self._searched_ids = frozenset(images[position]["id"] for position in self._searched if position < len(images))
        for row in images:
            source = _source(row["source_sha256"])
            if source is not None:
                self.found.sources[row["id"]] = source
        if self._looks.rules is not None:
            yield from audit_licenses(images, catalog, self._looks.rules, place, self.found.licenses)

    def look_at_jpeg(self, row: Row, jpeg: bytes, place: FindingLocation) -> Iterator[Finding]:
        """Check a row's JPEG, whose size must match the row, and yield the findings."""
        searcher = self._looks.searcher
        try:
            hashes = self._decoder.run(jpeg_hashes, jpeg)
            self.found.hashes[row["id"]] = int(hashes[FRAME])
            if row["hashes"] is not None and row["hashes"] != hashes.tolist():
                expected = "the perceptual hashes in the image's row"
                yield place.of_image(row["id"]).finding(Code.OTHER_RELEASE, expected, "others", image_name(row["id"]))
            if searcher is None or row["id"] not in self._searched_ids:
                return
            pixels = self._decoder.run(decode_jpeg, jpeg)
        except UndecodableError as error:
            image = place.of_image(row["id"])
            yield image.finding(Code.BAD_JPEG, "an image that decodes completely", error, image_name(row["id"]))
            return
        search = searcher.search(row, pixels)
        self.found.searches.append(search)
        yield from search.findings(place)


class ContentAudit:
    """Audit of licenses, privacy, and near-duplicates over all shards.

    The audit keeps 40 bytes per image, and the detections, in memory. `privacy_sample` images are searched; None
    searches all images. Crops of detections are written to the folder or prefix `pictures`. This process checks shards
    with `looks`; other processes load their own checker from `plan`.
    """

    def __init__(
        self, plan: ContentPlan, dataset: Location, privacy_sample: int | None, pictures: Location | None = None
    ) -> None:
        """Load the detectors if images are searched. Raises the exceptions of `find_detectors`."""
        self.plan = plan
        self.looks = plan.load()
        self.privacy_sample = privacy_sample
        searcher = self.looks.searcher
        self.privacy = (
            PrivacySummary(())
            if searcher is None
            else PrivacySummary(searcher.detectors, searcher.given, searcher.missing, searcher.orientations)
        )
        self._images = 0
        self._to_search = 0
        self._dataset = dataset
        self._pictures = pictures
        self._licenses = LicenseCounts()
        self._shards: list[tuple[int, Mapping[str, FindingLocation]]] = []  # first id and locations by folder
        self._hashed, self._hashes = array("q"), array("Q")
        self._sourced, self._sources = array("q"), array("Q")  # two 64-bit numbers per source
        self._repeated = 0
        self._alike = 0

    def wanted(self, images: int) -> int:
        """Return the number of images to search, given the total of `images` in the dataset."""
        wanted = images if self.privacy_sample is None else min(self.privacy_sample, images)
        self._images, self._to_search = images, wanted if self.privacy.detectors else 0
        return self._to_search

    def add(self, shard: int, first_id: int, places: Mapping[str, FindingLocation], content: ShardContent) -> None:
        """Add the results of a shard. Shards must be added in order."""
        self._shards.append((first_id, places))
        self._licenses.add(content.licenses)
        self.privacy.add(shard, content.searches)
        if self._pictures is not None and any(search.pictures for search in content.searches):
            note_output(self._dataset, "audit --pictures", self._pictures, {})  # first, because the audit may be killed
            put_pictures(self._pictures, content.searches)
        self._hashed.extend(content.hashes.keys())
        self._hashes.extend(content.hashes.values())
        self._sourced.extend(content.sources.keys())
        for source in content.sources.values():
            self._sources.extend(source)

    def finish(self) -> Iterator[Finding]:
        """Yield findings that span shards: images that were made from the same bytes, and near-duplicates."""
        halves = np.asarray(self._sources, np.uint64).reshape(-1, 2)
        copies = find_copies(halves[:, 1], halves[:, 0])
        repeated = {self._sourced[place]: self._sourced[first] for place, first in copies.items()}
        self._repeated = len(repeated)
        for id, earlier in repeated.items():
            place = self._place(id, "images")
            yield place.finding(
                Code.REPEATED_SOURCE, "an image made from new bytes", f"the bytes of id {earlier}", f"id {id}"
            )
        for alike in find_alike(np.asarray(self._hashes, np.uint64)):
            id, earlier = self._hashed[alike.index], self._hashed[alike.earlier]
            if repeated.get(id) == repeated.get(earlier, earlier):
                continue  # reported above, because the source bytes are the same
            self._alike += 1
            found = f"one that differs from id {earlier} in {alike.distance} of 64 bits"
            place = self._place(id, "shards")
            yield place.finding(Code.SIMILAR_IMAGE, "no near-duplicate of an earlier image", found, image_name(id))

    def licenses(self) -> Licenses | None:
        """Return the licenses of all shards, or None without license rules."""
        return None if self.plan.rules is None else self._licenses.answer(self.plan.rules)

    def unsearched(self, *, with_images: bool) -> tuple[UnsearchedImages, ...]:
        """Return the unsearched images after all shards were added. `with_images` is False for annotations only."""
        images = self._images
        if self.privacy_sample == 0:
            return (UnsearchedImages("skipped", images, images),)
        if not with_images:
            return (UnsearchedImages("annotations_only", images, images),)
        return tuple(self.privacy.gaps(images, self._to_search))

    def duplicates(self) -> Duplicates:
        """Return the numbers of duplicates and near-duplicates. They are only complete after `finish`."""
        return Duplicates(len(self._hashed), DISTANCE, repeated_sources=self._repeated, similar=self._alike)

    def _place(self, id: int, folder: str) -> FindingLocation:
        places = self._shards[bisect_right(self._shards, id, key=lambda shard: shard[0]) - 1][1]
        return places[folder].of_image(id)


def _source(sha256: str | None) -> Source | None:
    try:
        return (int((sha256 or "")[:_DIGITS], 16), int((sha256 or "")[_DIGITS : 2 * _DIGITS], 16))
    except ValueError:
        return None  # unknown source


@dataclass(frozen=True)
class ShardPlan:
    """Shard to audit, with its commit and the facts that are known before its files are read."""

    commit: Commit
    ordinals: tuple[int, int]  # range that the manifest assigns
    bad_kinds: frozenset[str]  # folders whose file is missing or has the wrong size
    counts_hold: bool  # false if the commit's counts contradict each other
    decoded: frozenset[int]  # images to decode, as positions in the image table
    searched: frozenset[int] = frozenset()  # images that detectors search, as positions in the image table
    taken: frozenset[int] = frozenset()  # ordinals of images that were taken down


@dataclass(frozen=True)
class FileSettings:
    """File-related settings of a dataset's configuration."""

    limits: MaskLimits | None
    with_images: bool
    quality: int | None = None  # JPEG quality of the released images
    stages: tuple[StageColumn, ...] = ()
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class ShardAuditResult:
    """Result of auditing a shard."""

    shard: int
    findings: Findings
    checked: CheckedCounts
    compared: bool  # false if the files couldn't be compared with each other
    places: Mapping[str, FindingLocation]  # the shard's files, by folder
    content: ShardContent | None  # results beyond integrity, if requested


class ShardAudit:
    """Audit that compares a shard's files with their digests, with each other, and with the catalog's rows.

    The three tables and one image of the tar are in memory at a time. If a file's digest differs from the commit, the
    file isn't parsed. If rows are misplaced, no rows are compared.
    """

    def __init__(
        self,
        dataset: Location,
        plan: ShardPlan,
        settings: FileSettings,
        catalog: Mapping[int, Row] | None,
        decoder: JpegDecoder,
        look: ShardContentCheck | None = None,
        names: RemovedNames = NO_NAMES,
    ) -> None:
        """Set up the audit. `catalog` maps ordinals to catalog rows, or is None if the catalog part is damaged.

        `look` adds checks beyond integrity. `names` contains the names in all tombstones of the dataset.
        """
        self._dataset = dataset
        self._plan = plan
        self._settings = settings
        self._catalog = catalog
        self._decoder = decoder
        self._look = look
        self._names = names
        self._places = {
            kind: FindingLocation(plan.commit.file(kind).path, plan.commit.shard) for kind in ("shards", *SCHEMAS)
        }
        self._findings = FindingCollector()
        self._checked = CheckedCounts()
        self._compared = not plan.bad_kinds

    def run(self) -> ShardAuditResult:
        """Audit all files. Call this only once per instance."""
        tables = self._read_tables()
        images: list[Row] = []
        masks = None
        if tables is not None:
            if self._plan.counts_hold:
                self._findings.extend(audit_counts(tables, self._plan.commit))
            self._findings.extend(audit_identity(tables, self._plan.ordinals))
            if Code.ROW_IDENTITY not in self._findings:
                images = tables.images.to_pylist()
                masks = ShardMasks(tables, self._settings.limits)
                self._audit_rows(tables, images, masks)
        self._compared = self._compared and masks is not None
        if "shards" not in self._plan.bad_kinds:
            self._audit_tar(images, masks)
        return ShardAuditResult(
            shard=self._plan.commit.shard,
            findings=self._findings.collected(),
            checked=self._checked,
            compared=self._compared,
            places=self._places,
            content=None if self._look is None else self._look.found,
        )

    def _read_tables(self) -> ShardTables | None:
        """Read the three tables. Return None if one of them is unusable."""
        read = {kind: self._read_table(kind) for kind in SCHEMAS if kind not in self._plan.bad_kinds}
        tables = {kind: table for kind, table in read.items() if table is not None}
        if "rejects" in tables:
            self._findings.extend(audit_rejects(tables["rejects"].to_pylist(), self._places["rejects"]))
            self._checked += CheckedCounts(rejects=tables["rejects"].num_rows)
        if len(tables) < len(SCHEMAS):
            return None
        return ShardTables(**tables, places=self._places)

    def _read_table(self, kind: str) -> pa.Table | None:
        entry, place = self._plan.commit.file(kind), self._places[kind]
        try:
            data = (self._dataset / entry.path).read(max_bytes=entry.size)
        except NotFoundError:
            self._findings.add(place.finding(Code.MISSING_FILE, f"{entry.size} bytes", "no such file"))
            return None
        except ObjectTooLargeError as error:
            self._findings.add(place.finding(Code.FILE_SIZE, f"{entry.size} bytes", error.size))
            return None
        self._checked += CheckedCounts(files=1, bytes=len(data))
        digest = bytes_sha256(data)
        if digest != entry.sha256:
            self._findings.add(place.finding(Code.FILE_DIGEST, f"SHA-256 {entry.sha256}", digest))
            return None
        try:
            table = read_table(data, kind)
            settings = self._settings
            handle = DatasetHandle(location=self._dataset, with_images=settings.with_images, stages=settings.stages)
            stage_columns(handle, {kind: table})
            for name in ("height", "width") if kind == "images" else ():
                if table.column(name).null_count:
                    raise DamagedDatasetError(f"an image without {name}")
        except DamagedDatasetError as error:
            self._findings.add(place.finding(Code.BAD_TABLE, f"the columns of {kind}", error))
            return None
        return table

    def _audit_rows(self, tables: ShardTables, images: list[Row], masks: ShardMasks) -> None:
        self._findings.extend(audit_taken_down(tables, self._plan.taken, self._names))
        self._findings.extend(self._audit_tombstones(tables.rejects))
        if self._catalog is not None:
            self._findings.extend(audit_catalog_names(self._catalog, self._names, self._places["images"]))
            self._findings.extend(audit_catalog_rows(tables, self._catalog))
            self._checked += CheckedCounts(catalog_rows=len(self._catalog))
        for position, row in enumerate(images):
            count = masks.count(row["ordinal"])
            decode = position in self._plan.decoded
            annotated = masks.annotated(row["ordinal"])
            self._findings.extend(audit_mask_count(row, count, self._places["images"], annotated=annotated))
            image, place = (self._places[kind].of_image(row["id"]) for kind in ("images", "masks"))
            if merged_assignment(row["submission"]) is not None:
                rows = masks.table_rows(row["ordinal"])
                self._findings.extend(audit_merged_submission(self._dataset, row, rows, image, place))
            self._findings.extend(masks.audit_origins(row, place))
            if self._settings.schema_version == SCHEMA_VERSION:
                self._findings.extend(audit_redacted_share(row, image))
            self._findings.extend(masks.audit_work(row, image, place))
            self._findings.extend(masks.audit_containers(row, place) if decode else ())
            if decode or not masks.sound(row["ordinal"]):
                size, rows = (row["height"], row["width"]), masks.table_rows(row["ordinal"])
                self._findings.extend(audit_masks(size, rows, self._settings.limits, place, decode=decode))
            self._checked += CheckedCounts(masks=count, masks_decoded=count if decode else 0)
        self._checked += CheckedCounts(images=len(images))
        if self._look is not None:
            self._findings.extend(self._look.look_at_rows(images, self._catalog, self._places["images"]))

    def _audit_tombstones(self, rejects: pa.Table) -> Iterator[Finding]:
        """Yield a finding for each row that a takedown has emptied although no tombstone lists it."""
        rows = [row for row in rejects.to_pylist() if row["reason"] == Reason.TAKEN_DOWN and row["image_id"] == BLANK]
        if all(row["ordinal"] in self._plan.taken for row in rows):
            return
        with suppress(DamagedDatasetError):  # already a finding
            listed = removed_images(read_tombstones(self._dataset))  # again: a takedown may have begun meanwhile
            for row in rows:
                if row["ordinal"] not in listed:
                    place = self._places["rejects"].of_image(row["id"])
                    yield place.finding(Code.BAD_TOMBSTONE, "a tombstone of this row", "none", f"id {row['id']}")

    def _audit_tar(self, images: list[Row], masks: ShardMasks | None) -> None:
        """Audit the tar's digest. If `masks` are available, audit its members, too."""
        inside = FindingCollector()
        entry, place = self._plan.commit.file("shards"), self._places["shards"]
        with_images, look = self._settings.with_images, self._look
        decoded = frozenset(images[position]["id"] for position in self._plan.decoded if position < len(images))
        try:
            with (self._dataset / entry.path).open() as opened:
                stream = HashedStream(opened)
                if masks is not None:
                    members = audit_tar(
                        stream,
                        images,
                        masks.annotations,
                        place,
                        with_images=with_images,
                        decode=decoded,
                        decoder=self._decoder,
                        quality=self._settings.quality,
                        look=None if look is None else lambda row, data: look.look_at_jpeg(row, data, place),
                    )
                    inside.extend(members)
                digest = stream.digest()
        except NotFoundError:
            self._findings.add(place.finding(Code.MISSING_FILE, f"{entry.size} bytes", "no such file"))
            self._compared = False
            return
        self._checked += CheckedCounts(files=1, bytes=entry.size)
        if digest != entry.sha256:
            found = digest
            others = dict.fromkeys(str(each.image) for each in inside.collected() if each.code in _OTHER_MEMBER)
            if others:
                found += f"; images that differ from the tables: {some(list(others))}"
            self._findings.add(place.finding(Code.FILE_DIGEST, f"SHA-256 {entry.sha256}", found))
            self._compared = False
            if look is not None:
                look.found.hashes.clear()  # drop them, because these JPEGs aren't the committed ones
                look.found.searches.clear()
            return
        self._findings.extend(inside)
        if masks is not None:
            jpegs = len(images) if with_images else 0
            self._checked += CheckedCounts(
                jsons=len(images), jpegs=jpegs, jpegs_decoded=len(decoded) if with_images else 0
            )
