"""Audit of the four files of one shard, each read once.

The comparisons are in `operators/audit/`: `masks.py` compares areas, boxes, scores, crops, and points, `rows.py`
compares tables, and `tar.py` compares JPEGs and JSON files.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa

from segmint.catalogs.dataset.annotations.assignments import merged_assignment
from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.handle import DatasetHandle
from segmint.catalogs.dataset.tombstones import BLANK, NO_NAMES, RemovedNames, read_tombstones, removed_images
from segmint.catalogs.findings import Code, Finding, FindingCollector, FindingLocation, Findings
from segmint.catalogs.layout import SCHEMA_VERSION, DamagedDatasetError
from segmint.catalogs.reasons import Reason
from segmint.catalogs.stages import StageColumn
from segmint.infra.storage.errors import NotFoundError, ObjectTooLargeError
from segmint.infra.storage.location import Location
from segmint.operators.audit.masks import MaskLimits, audit_masks
from segmint.operators.audit.origins import audit_redacted_share
from segmint.operators.audit.rows import (
    ShardTables,
    audit_catalog_names,
    audit_catalog_rows,
    audit_counts,
    audit_identity,
    audit_mask_count,
    audit_rejects,
    audit_taken_down,
)
from segmint.operators.audit.shard_masks import ShardMasks
from segmint.operators.audit.submissions import audit_merged_submission
from segmint.operators.audit.tar import HashedStream, audit_tar
from segmint.operators.decoding import JpegDecoder
from segmint.operators.rows import Row
from segmint.operators.schemas import SCHEMAS
from segmint.operators.segment.artifacts import RedactionArtifacts
from segmint.operators.shards.committed_rows import read_table, stage_columns
from segmint.pipeline.quality.audit.content import ShardContent, ShardContentCheck
from segmint.pipeline.quality.audit.result import CheckedCounts


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
    artifacts: RedactionArtifacts | None
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
                masks = ShardMasks(tables, self._settings.limits, self._settings.artifacts)
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
        digest = hashlib.sha256(data).hexdigest()
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
            self._findings.add(place.finding(Code.FILE_DIGEST, f"SHA-256 {entry.sha256}", digest))
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
