"""The audit of data that segmint did not write: its files, similar pictures, statistics."""

from array import array
from collections.abc import Iterator
from contextlib import closing

import numpy as np

from segmint.catalogs.dataset.tables import DatasetTables
from segmint.catalogs.findings import Code, Finding, FindingCollector, Place
from segmint.infra.storage.storage import Storage
from segmint.infra.threads import map_ahead
from segmint.operators.audit.jpeg_parts import frame_size
from segmint.operators.audit.similar_images import DISTANCE, find_alike, perceptual_hash
from segmint.operators.decoding import JpegDecoder, UndecodableError
from segmint.operators.rows import Row
from segmint.pipeline.audit.answer import AuditReport, Checked, Duplicates, NotLookedAt
from segmint.pipeline.statistics.statistics import compute_statistics

_ROWS = 1_000
_SIZES = """
SELECT count(*) AS images, count(DISTINCT shard) AS shards, (SELECT count(*) FROM masks) AS masks FROM images
"""
_JPEGS = """
SELECT ordinal, images.id, image_id, images.shard, jpegs.uri, "offset", size
FROM jpegs JOIN images USING (ordinal) ORDER BY ordinal
"""
_NAME = "SELECT id, image_id, shard FROM images WHERE ordinal = ?"


def audit_foreign(tables: DatasetTables, storage: Storage, sample: int, *, left_out: bool = False) -> AuditReport:
    """Audit SA-1B-style data, which was measured when its tables were opened.

    Each JPEG is read once. Licenses and privacy are not checked: such data names neither licenses nor detectors;
    `left_out`: privacy was not asked for.
    """
    (counts,) = tables.query(_SIZES).to_pylist()
    findings = FindingCollector()
    if tables.foreign is not None:
        findings.extend(tables.foreign.findings)
    duplicates = _audit_pictures(tables, storage, findings)
    return AuditReport(
        dataset=str(tables.location),
        scope="all",
        kind=tables.kind,
        shards=counts["shards"],
        sample=sample,
        findings=findings.collected(),
        checked=Checked(images=counts["images"], masks=counts["masks"]),
        notes=("not looked at: licenses and privacy, since segmint did not write this",),
        duplicates=duplicates,
        statistics=compute_statistics(tables, sample),
        not_looked_at=(NotLookedAt("left_out" if left_out else "foreign", counts["images"], counts["images"]),),
    )


def _audit_pictures(tables: DatasetTables, storage: Storage, findings: FindingCollector) -> Duplicates:
    """Read every JPEG to its end, and find those that look alike; 16 bytes per image are in memory."""
    ordinals, hashes = array("q"), array("Q")
    with JpegDecoder(own=False) as decoder:

        def look(row: Row) -> tuple[Row, int | None, list[Finding]]:
            data = _read(storage, row)
            try:
                return row, decoder.run(perceptual_hash, data), []
            except UndecodableError as error:
                return row, None, list(_torn(row, data, error))

        at_once = decoder.processes
        with closing(map_ahead(look, _jpegs(tables), at_once, at_once + 1, "audit-foreign")) as looks:
            for row, bits, torn in looks:
                findings.extend(torn)
                if bits is not None:
                    ordinals.append(row["ordinal"])
                    hashes.append(bits)
    alike = find_alike(np.asarray(hashes, np.uint64))
    for each in alike:
        image, earlier = (_named(tables, ordinals[index]) for index in (each.index, each.earlier))
        found = f"one that differs from {earlier['image_id']} in {each.distance} of 64 bits"
        place = Place(image["image_id"], image["shard"], image["id"])
        findings.add(place.finding(Code.SIMILAR_IMAGE, "an image unlike all earlier ones", found))
    return Duplicates(len(hashes), DISTANCE, repeated_sources=None, similar=len(alike))


def _jpegs(tables: DatasetTables) -> Iterator[Row]:
    with tables.connection.cursor() as cursor:
        for batch in cursor.sql(_JPEGS).to_arrow_reader(_ROWS):
            yield from batch.to_pylist()


def _read(storage: Storage, row: Row) -> bytes:
    with storage.open_ranges(row["uri"]) as stream:
        stream.seek(row["offset"])
        return stream.read(row["size"])


def _torn(row: Row, data: bytes, error: ValueError) -> Iterator[Finding]:
    try:
        frame_size(data)
    except ValueError:
        return  # found when its size was measured
    place = Place(row["image_id"], row["shard"], row["id"])
    yield place.finding(Code.BAD_JPEG, "a picture that decodes to its end", error)


def _named(tables: DatasetTables, ordinal: int) -> Row:
    (row,) = tables.query(_NAME, [ordinal]).to_pylist()
    return dict(row)
