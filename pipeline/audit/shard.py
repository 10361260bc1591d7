"""Audits the four files of one shard, each read once."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from segmint.catalogs.dataset.commits import Commit, FileEntry
from segmint.catalogs.findings import Code, Findings, Place
from segmint.catalogs.layout import DamagedDatasetError
from segmint.infra.storage.errors import NotFoundError, ObjectTooLargeError
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import join
from segmint.operators.audit.masks import MaskLimits, audit_masks
from segmint.operators.audit.rows import (
    ShardTables,
    audit_catalog_rows,
    audit_counts,
    audit_identity,
    audit_mask_count,
    audit_rejects,
    audit_taken_down,
)
from segmint.operators.audit.shard_masks import ShardMasks
from segmint.operators.audit.tar import HashedStream, audit_tar
from segmint.operators.rows import Row
from segmint.operators.schemas import SCHEMAS
from segmint.operators.shards.tables import read_table
from segmint.pipeline.audit.answer import Checked
from segmint.pipeline.audit.content import ShardContent, ShardLook


@dataclass(frozen=True)
class ShardPlan:
    """A shard to be audited: its commit, and what else is known of it before its files are read."""

    commit: Commit
    ordinals: tuple[int, int]  # by the manifest
    bad_kinds: frozenset[str]  # folders whose file is known to be missing or of a wrong size
    counts_hold: bool  # whether the commit's counts agree with themselves
    decoded: frozenset[int]  # positions in the table of images: these are decoded
    searched: frozenset[int] = frozenset()  # and in these, where detectors are asked, they look
    taken: frozenset[int] = frozenset()  # ordinals that tombstones name


@dataclass(frozen=True)
class FileSettings:
    """What a dataset's configuration says of its files."""

    limits: MaskLimits | None
    with_images: bool


@dataclass
class ShardAudit:
    """What came of a shard."""

    shard: int
    findings: Findings = field(default_factory=Findings)
    checked: Checked = field(default_factory=Checked)
    compared: bool = True  # whether the files could be compared with one another
    places: Mapping[str, Place] = field(default_factory=dict)  # of its files, by folder
    content: ShardContent | None = None  # what came of looking at more than integrity, where that was asked for


def audit_shard(
    storage: Storage,
    dataset_uri: str,
    plan: ShardPlan,
    settings: FileSettings,
    catalog: Mapping[int, Row] | None,
    look: ShardLook | None = None,
) -> ShardAudit:
    """Reads a shard's files and compares them with their digests, with one another and with the catalog's rows.

    In memory are its three tables and one image of its tar. A file with other bytes than its commit says is not
    looked into, and where rows are out of place nothing is compared by them. `catalog` None: its part is damaged.
    `look` looks at more than integrity.
    """
    commit = plan.commit
    places = {kind: Place(commit.file(kind).path, commit.shard) for kind in ("shards", *SCHEMAS)}
    result = ShardAudit(commit.shard, compared=not plan.bad_kinds, places=places)
    if look is not None:
        result.content = look.found
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
    masks: ShardMasks | None = None
    if tables is not None:
        if plan.counts_hold:
            result.findings.extend(audit_counts(tables, commit.counts))
        result.findings.extend(audit_identity(tables, plan.ordinals))
        if Code.ROW_IDENTITY not in result.findings:
            images, masks = tables.images.to_pylist(), ShardMasks(tables, settings.limits)
            _audit_rows(tables, images, masks, plan, settings, catalog, result)
            if look is not None:
                result.findings.extend(look.look_at_rows(images, catalog, places["images"]))
    result.compared = result.compared and masks is not None
    if "shards" not in plan.bad_kinds:
        uri = join(dataset_uri, commit.file("shards").path)
        _audit_tar(storage, uri, images, masks, plan, settings.with_images, look, result)
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
    tables: ShardTables,
    images: list[Row],
    masks: ShardMasks,
    plan: ShardPlan,
    settings: FileSettings,
    catalog: Mapping[int, Row] | None,
    result: ShardAudit,
) -> None:
    result.findings.extend(audit_taken_down(tables, plan.taken))
    if catalog is not None:
        result.findings.extend(audit_catalog_rows(tables, catalog))
        result.checked.catalog_rows += len(catalog)
    for position, row in enumerate(images):
        count = masks.count(row["ordinal"])
        decode = position in plan.decoded
        result.findings.extend(audit_mask_count(row, count, tables.places["images"]))
        if decode or not masks.sound(row["ordinal"]):
            size, rows = (row["height"], row["width"]), masks.table_rows(row["ordinal"])
            result.findings.extend(audit_masks(size, rows, settings.limits, tables.places["masks"], decode=decode))
        result.checked.masks += count
        result.checked.masks_decoded += count if decode else 0
    result.checked.images += len(images)


def _audit_tar(
    storage: Storage,
    uri: str,
    images: list[Row],
    masks: ShardMasks | None,
    plan: ShardPlan,
    with_images: bool,
    look: ShardLook | None,
    result: ShardAudit,
) -> None:
    inside = Findings()
    entry, place = plan.commit.file("shards"), result.places["shards"]
    decoded = frozenset(images[position]["id"] for position in plan.decoded if position < len(images))
    try:
        with storage.open(uri) as opened:
            stream = HashedStream(opened)
            if masks is not None:
                members = audit_tar(
                    stream,
                    images,
                    masks.annotations,
                    place,
                    with_images=with_images,
                    decode=decoded,
                    look=None if look is None else lambda row, data: look.look_at_jpeg(row, data, place),
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
        if look is not None:
            look.forget_jpegs()
        return
    result.findings.extend(inside)
    if masks is not None:
        result.checked.jsons += len(images)
        result.checked.jpegs += len(images) if with_images else 0
        result.checked.jpegs_decoded += len(decoded) if with_images else 0
