"""Audits the four files of one shard, each read once."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from catalogs.commits import Commit, FileEntry
from catalogs.findings import Code, Findings, Place
from catalogs.layout import DamagedDatasetError
from infra.storage import NotFoundError, ObjectTooLargeError, Storage, join
from operators.audit_masks import MaskLimits, audit_masks
from operators.audit_rows import (
    SCHEMAS,
    ShardTables,
    audit_catalog_rows,
    audit_counts,
    audit_identity,
    audit_mask_count,
    audit_rejects,
    audit_taken_down,
    read_table,
)
from operators.audit_tar import HashedStream, audit_tar
from operators.rows import Row
from pipeline.audit_content import ShardContent
from pipeline.audit_report import Checked


@dataclass(frozen=True)
class ShardPlan:
    """What the audit of a shard must know beside its commit."""

    ordinals: tuple[int, int]  # by the manifest
    limits: MaskLimits | None
    with_images: bool
    bad_kinds: frozenset[str]  # folders whose file is known to be missing or of a wrong size
    counts_hold: bool  # whether the commit's counts agree with themselves
    decoded: frozenset[int]  # positions in the table of images: these are decoded
    taken: frozenset[int] = frozenset()  # ordinals that tombstones name
    content: ShardContent | None = None  # looks at more than integrity, where that is asked for


@dataclass
class ShardAudit:
    """What came of a shard."""

    shard: int
    findings: Findings = field(default_factory=Findings)
    checked: Checked = field(default_factory=Checked)
    compared: bool = True  # whether the files could be compared with one another
    places: Mapping[str, Place] = field(default_factory=dict)  # of its files, by folder
    content: ShardContent | None = None  # what it was planned with


def audit_shard(
    storage: Storage, dataset_uri: str, commit: Commit, plan: ShardPlan, catalog: Mapping[int, Row] | None
) -> ShardAudit:
    """Reads a shard's files and compares them with their digests, with one another and with the catalog's rows.

    In memory are its three tables and one image of its tar. A file with other bytes than its commit says is not
    looked into, and where rows are out of place nothing is compared by them. `catalog` None: its part is damaged.
    """
    places = {kind: Place(commit.file(kind).path, commit.shard) for kind in ("shards", *SCHEMAS)}
    result = ShardAudit(commit.shard, compared=not plan.bad_kinds, places=places, content=plan.content)
    read: dict[str, pa.Table] = {}
    for kind in SCHEMAS:
        if kind not in plan.bad_kinds:
            table = _read_table(storage, dataset_uri, commit.file(kind), places[kind], kind, result)
            if table is not None:
                read[kind] = table
    tables = ShardTables(**read, places=places) if len(read) == len(SCHEMAS) else None
    if "rejects" in read:
        result.findings.extend(audit_rejects(read["rejects"].to_pylist(), places["rejects"]))
        result.checked.rejects += read["rejects"].num_rows
    images: list[Row] = []
    if tables is not None:
        if plan.counts_hold:
            result.findings.extend(audit_counts(tables, commit.counts))
        result.findings.extend(audit_identity(tables, plan.ordinals))
        if Code.ROW_IDENTITY not in result.findings:
            images = tables.images.to_pylist()
            _audit_rows(tables, images, plan, catalog, result)
        else:
            tables = None
    result.compared = result.compared and tables is not None
    if "shards" not in plan.bad_kinds:
        _audit_tar(storage, dataset_uri, commit.file("shards"), tables, images, plan, places["shards"], result)
    return result


def _read_table(
    storage: Storage, dataset_uri: str, entry: FileEntry, place: Place, kind: str, result: ShardAudit
) -> pa.Table | None:
    try:
        data = storage.read(join(dataset_uri, entry.path), max_bytes=entry.size)
    except NotFoundError:
        result.findings.add(place.finding(Code.MISSING_FILE, f"{entry.size} bytes", "no such file"))
        return None
    except ObjectTooLargeError as error:
        result.findings.add(place.finding(Code.FILE_SIZE, f"{entry.size} bytes", error.size))
        return None
    result.checked.files += 1
    result.checked.bytes += len(data)
    digest = hashlib.sha256(data).hexdigest()
    if digest != entry.sha256:
        result.findings.add(place.finding(Code.FILE_DIGEST, f"SHA-256 {entry.sha256}", digest))
        return None
    try:
        return read_table(data, kind)
    except DamagedDatasetError as error:
        result.findings.add(place.finding(Code.BAD_TABLE, f"the columns of {kind}", error))
        return None


def _audit_rows(
    tables: ShardTables, images: list[Row], plan: ShardPlan, catalog: Mapping[int, Row] | None, result: ShardAudit
) -> None:
    result.findings.extend(audit_taken_down(tables, plan.taken))
    if catalog is not None:
        result.findings.extend(audit_catalog_rows(tables, catalog))
        result.checked.catalog_rows += len(catalog)
    for position, row in enumerate(images):
        masks = tables.masks_of(row["ordinal"])
        decode = position in plan.decoded
        result.findings.extend(audit_mask_count(row, len(masks), tables.places["images"]))
        size = row["height"], row["width"]
        result.findings.extend(audit_masks(size, masks, plan.limits, tables.places["masks"], decode=decode))
        result.checked.masks += len(masks)
        result.checked.masks_decoded += len(masks) if decode else 0
    result.checked.images += len(images)
    if plan.content is not None:
        result.findings.extend(plan.content.look_at_rows(images, catalog, tables.places["images"]))


def _audit_tar(
    storage: Storage,
    dataset_uri: str,
    entry: FileEntry,
    tables: ShardTables | None,
    images: list[Row],
    plan: ShardPlan,
    place: Place,
    result: ShardAudit,
) -> None:
    inside = Findings()
    content = plan.content
    decoded = frozenset(images[position]["id"] for position in plan.decoded if position < len(images))
    try:
        with storage.open(join(dataset_uri, entry.path)) as opened:
            stream = HashedStream(opened)
            if tables is not None:
                members = audit_tar(
                    stream,
                    images,
                    tables.masks_of,
                    place,
                    with_images=plan.with_images,
                    decode=decoded,
                    look=None if content is None else lambda row, data: content.look_at_jpeg(row, data, place),
                )
                inside.extend(members)
            digest = stream.digest()
    except NotFoundError:
        result.findings.add(place.finding(Code.MISSING_FILE, f"{entry.size} bytes", "no such file"))
        result.compared = False
        return
    result.checked.files += 1
    result.checked.bytes += entry.size
    if digest != entry.sha256:
        result.findings.add(place.finding(Code.FILE_DIGEST, f"SHA-256 {entry.sha256}", digest))
        result.compared = False
        if content is not None:
            content.forget_jpegs()
        return
    result.findings.extend(inside)
    if tables is not None:
        result.checked.jsons += len(images)
        result.checked.jpegs += len(images) if plan.with_images else 0
        result.checked.jpegs_decoded += len(decoded) if plan.with_images else 0
