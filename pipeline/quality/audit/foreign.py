"""Audit of data that segmint did not write: its files, near-duplicates, and statistics."""

import re
from array import array
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from segmint.catalogs.dataset.regions import write_regions
from segmint.catalogs.dataset.tables import DatasetTables
from segmint.catalogs.findings import Code, Finding, FindingCollector, FindingLocation
from segmint.catalogs.layout import image_stem
from segmint.catalogs.source.sampling import spread_evenly
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.threads import map_ahead
from segmint.operators.audit.jpeg_parts import frame_size
from segmint.operators.audit.similar_images import DISTANCE, find_alike
from segmint.operators.decoding import JpegDecoder, UndecodableError
from segmint.operators.images import decode_jpeg
from segmint.operators.rows import Row
from segmint.operators.similar.hashes import FRAME, jpeg_hashes
from segmint.pipeline.quality.audit.privacy import PrivacySummary, Searcher, SearchResult, put_pictures
from segmint.pipeline.quality.audit.result import AuditReport, CheckedCounts, Duplicates, UnsearchedImages
from segmint.pipeline.quality.statistics.statistics import compute_statistics

_ROWS = 1_000
_SIZES = """
SELECT count(*) AS images, count(DISTINCT shard) AS shards, (SELECT count(*) FROM masks) AS masks FROM images
"""
_JPEGS = """
SELECT ordinal, images.id, image_id, images.shard, jpegs.uri, "offset", size
FROM jpegs JOIN images USING (ordinal) ORDER BY ordinal
"""
_NAME = "SELECT id, image_id, shard FROM images WHERE ordinal = ?"
_HOW_MANY_JPEGS = "SELECT count(*) AS jpegs FROM jpegs JOIN images USING (ordinal)"
_NO_FILE_NAME = re.compile(r"[^\w.-]+")
_LONGEST_NAME = 100


@dataclass
class ForeignSearch:
    """Search for faces and plates in foreign data. Its redacted regions are unknown, so every detection counts.

    At most `most` images, spread evenly, are searched; None searches all images. Detections are written to the file
    `regions`, and crops of the detections to the folder `pictures`.
    """

    searcher: Searcher
    most: int | None
    regions: Location | None = None
    pictures: Location | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)  # rows of the file `regions`
    positions: frozenset[int] = frozenset()  # positions of the JPEGs to search

    def begin(self, jpegs: int) -> None:
        """Choose the JPEGs to search, given their total number."""
        self.positions = frozenset(spread_evenly(jpegs, jpegs if self.most is None else self.most))

    def look(self, row: Row, jpeg: bytes, decoder: JpegDecoder) -> SearchResult:
        """Search a JPEG. Raises `UndecodableError`."""
        pixels = decoder.run(decode_jpeg, jpeg)
        unknown = dict.fromkeys(("source_width", "source_height", "regions"))
        found = self.searcher.search({"id": row["id"], **unknown}, pixels)
        name = f"{_NO_FILE_NAME.sub('_', row['image_id'])[-_LONGEST_NAME:]}_{row['ordinal']}"
        pictures = {each.replace(image_stem(row["id"]), name, 1): data for each, data in found.pictures.items()}
        return replace(found, pictures=pictures)

    def keep(self, row: Row, search: SearchResult) -> None:
        """Write the crops of an image's detections, and keep its regions until `finish` writes them."""
        if self.pictures is not None:
            put_pictures(self.pictures, [search])
        if self.regions is not None:
            self.rows += [
                {**found.to_dict(), "image": row["image_id"], "found_by": [each.detector for each in found.sightings]}
                for found in search.found
            ]

    def finish(self) -> None:
        """Write the file of regions."""
        if self.regions is not None:
            write_regions(self.regions, self.rows)


def audit_foreign(
    tables: DatasetTables,
    storage: Storage,
    sample: int,
    search: ForeignSearch | None = None,
    *,
    skipped: bool = False,
) -> AuditReport:
    """Audit SA-1B-style data. Its masks were already measured when its tables were opened.

    Each JPEG is read once. Because such data doesn't name licenses or detectors, licenses aren't checked, and privacy
    is checked only with `search`. `skipped` means that the user didn't request a privacy check.
    """
    (counts,) = tables.query(_SIZES).to_pylist()
    findings = FindingCollector()
    if tables.foreign is not None:
        findings.extend(tables.foreign.findings)
    (found,) = tables.query(_HOW_MANY_JPEGS).to_pylist()
    privacy = None if search is None else PrivacySummary(search.searcher.detectors, search.searcher.given)
    if search is not None:
        search.begin(found["jpegs"])
    duplicates = _audit_pictures(tables, storage, findings, search, privacy)
    unsearched: tuple[UnsearchedImages, ...] = (
        UnsearchedImages("skipped" if skipped else "foreign", counts["images"], counts["images"]),
    )
    note = "segmint didn't write this, so its licenses and redacted regions are unknown"
    if search is not None and privacy is not None:
        search.finish()
        unsearched = tuple(privacy.gaps(counts["images"], len(search.positions)))
        note += ", and every detection counts"
    return AuditReport(
        dataset=str(tables.location),
        scope="all",
        kind=tables.kind,
        shards=counts["shards"],
        sample=sample,
        findings=findings.collected(),
        checked=CheckedCounts(images=counts["images"], masks=counts["masks"]),
        notes=(note,),
        privacy=None if privacy is None else privacy.answer(),
        duplicates=duplicates,
        statistics=compute_statistics(tables, sample),
        unsearched=unsearched,
    )


def _audit_pictures(
    tables: DatasetTables,
    storage: Storage,
    findings: FindingCollector,
    search: ForeignSearch | None,
    privacy: PrivacySummary | None,
) -> Duplicates:
    """Decode every JPEG and find near-duplicates. This takes 16 bytes of memory per image.

    Detectors search the images that `search` selects, and the results are added to `privacy`.
    """
    ordinals, hashes = array("q"), array("Q")
    with JpegDecoder(own=False) as decoder:

        def look(numbered: tuple[int, Row]) -> tuple[Row, int | None, list[Finding], SearchResult | None]:
            position, row = numbered
            data = _read(storage, row)
            try:
                bits = int(decoder.run(jpeg_hashes, data)[FRAME])
                wanted = search is not None and position in search.positions
                found = search.look(row, data, decoder) if search is not None and wanted else None
            except UndecodableError as error:
                return row, None, list(_torn(row, data, error)), None
            place = FindingLocation(row["image_id"], row["shard"], row["id"])
            return row, bits, [] if found is None else found.findings(place, row["image_id"]), found

        at_once, jpegs = decoder.processes, enumerate(tables.rows(_JPEGS, _ROWS))
        with closing(map_ahead(look, jpegs, at_once, at_once + 1, "audit-foreign")) as looks:
            for row, bits, seen, searched in looks:
                findings.extend(seen)
                if search is not None and privacy is not None and searched is not None:
                    search.keep(row, searched)
                    privacy.add(row["shard"], [searched])
                if bits is not None:
                    ordinals.append(row["ordinal"])
                    hashes.append(bits)
    alike = find_alike(np.asarray(hashes, np.uint64))
    for each in alike:
        image, earlier = (_named(tables, ordinals[index]) for index in (each.index, each.earlier))
        found = f"one that differs from {earlier['image_id']} in {each.distance} of 64 bits"
        place = FindingLocation(image["image_id"], image["shard"], image["id"])
        findings.add(place.finding(Code.SIMILAR_IMAGE, "no near-duplicate of an earlier image", found))
    return Duplicates(len(hashes), DISTANCE, repeated_sources=None, similar=len(alike))


def _read(storage: Storage, row: Row) -> bytes:
    with storage.open_ranges(row["uri"]) as stream:
        stream.seek(row["offset"])
        return stream.read(row["size"])


def _torn(row: Row, data: bytes, error: ValueError) -> Iterator[Finding]:
    try:
        frame_size(data)
    except ValueError:
        return  # already reported when its size was measured
    place = FindingLocation(row["image_id"], row["shard"], row["id"])
    yield place.finding(Code.BAD_JPEG, "an image that decodes completely", error)


def _named(tables: DatasetTables, ordinal: int) -> Row:
    (row,) = tables.query(_NAME, [ordinal]).to_pylist()
    return dict(row)
