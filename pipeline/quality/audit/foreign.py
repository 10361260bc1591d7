"""Audit of data that segmint did not write, in the layout of SA-1B, COCO, or YOLO: its pictures and their duplicates.

`segmint.operators.foreign` has checked its annotations when its tables were opened.
"""

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from segmint.catalogs.dataset.regions import write_regions
from segmint.catalogs.dataset.tables import DatasetTables, Foreign
from segmint.catalogs.findings import Code, Finding, FindingCollector, FindingLocation
from segmint.catalogs.source.sampling import spread_evenly
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.wording import counted
from segmint.operators.audit.masks import DISTANCE, find_alike, find_copies
from segmint.operators.audit.privacy import frame_size
from segmint.operators.foreign.layouts import ForeignFile, read_file
from segmint.operators.foreign.measure import PictureFacts, examine_picture
from segmint.operators.images import JpegDecoder, UndecodableError
from segmint.operators.prepare.ingest_config import ANY_SIZE
from segmint.operators.rows import Row
from segmint.pipeline.quality.audit.privacy import PrivacySummary, Searcher, SearchResult, put_pictures
from segmint.pipeline.quality.audit.result import (
    AuditReport,
    CheckedCounts,
    Duplicates,
    Licenses,
    LicenseVerdict,
    UnsearchedImages,
)
from segmint.pipeline.quality.statistics.statistics import compute_statistics

_ROWS = 1_000
_COUNTS = """
SELECT count(*) AS images, count(DISTINCT shard) AS shards, (SELECT count(*) FROM masks) AS masks,
    (SELECT count(DISTINCT (uri, "offset", split)) FROM jpegs) AS jpegs
FROM images
"""
_JPEGS = """
SELECT ordinal, images.id, image_id, source_width, source_height, regions, images.shard, jpegs.uri, "offset", size,
    split
FROM jpegs JOIN images USING (ordinal)
QUALIFY row_number() OVER (PARTITION BY jpegs.uri, "offset", split ORDER BY ordinal) = 1
ORDER BY ordinal
"""
_PLACE = "SELECT id, image_id, shard FROM images WHERE ordinal = ?"
_LICENSES = "SELECT license, count(*) AS images FROM images GROUP BY license ORDER BY images DESC, license"
_NO_FILE_NAME = re.compile(r"[^\w.-]+")
_LONGEST_NAME = 100


@dataclass(frozen=True)
class ForeignSearch:
    """Search for faces and plates in foreign data. Its redacted regions are unknown, so every detection counts.

    Without a `searcher`, no image is searched. At most `most` images, spread evenly, are searched; None searches all
    images. Detections are written to the file `regions`, and crops of the detections to the folder `pictures`.
    """

    searcher: Searcher | None = None
    most: int | None = None
    regions: Location | None = None
    pictures: Location | None = None


def audit_foreign(tables: DatasetTables, sample: int, search: ForeignSearch) -> AuditReport:
    """Audit data that segmint didn't write. Its annotations were already checked when its tables were opened.

    Each picture is read and decoded once. The detectors in `search` look for faces and plates.
    """
    (counts,) = tables.query(_COUNTS).to_pylist()
    foreign = tables.foreign or Foreign()
    pictures = _PictureAudit(tables, search, counts["jpegs"])
    pictures.findings.extend(foreign.findings)
    pictures.run()
    duplicates = pictures.compare()
    unsearched: Iterable[UnsearchedImages] = [UnsearchedImages("skipped", counts["images"], counts["images"])]
    if search.searcher is not None:
        without = counts["images"] - counts["jpegs"]  # these weren't left out of the sample
        unsearched = pictures.privacy.gaps(counts["images"], len(pictures.positions) + without)
    unknown = "licenses and redacted regions" if tables.kind == "sa1b" else "redacted regions"
    note = f"segmint didn't write this, so its {unknown} are unknown"
    if search.searcher is not None:
        note += ", and every detection counts"
    notes = [note, *foreign.notes]
    if foreign.unlisted:
        which = "that aren't JPEGs" if tables.kind == "sa1b" else "that the audited files don't list"
        notes.append(f"not looked at: {counted(foreign.unlisted, 'image file')} {which}")
    return AuditReport(
        dataset=str(tables.location),
        scope="all",
        kind=tables.kind,
        shards=counts["shards"],
        sample=sample,
        findings=pictures.findings.collected(),
        checked=CheckedCounts(
            images=counts["images"],
            masks=counts["masks"],
            boxes=foreign.boxes,
            jpegs_decoded=duplicates.images_compared,
        ),
        notes=tuple(notes),
        licenses=_licenses(tables),
        privacy=None if search.searcher is None else pictures.privacy.answer(),
        duplicates=duplicates,
        statistics=compute_statistics(tables, sample),
        unsearched=tuple(unsearched),
    )


def _licenses(tables: DatasetTables) -> Licenses | None:
    """Count the licenses that data names, without a judgment. Return None for data whose layout names none."""
    if tables.kind == "sa1b":
        return None
    rows = tables.query(_LICENSES).to_pylist()
    named = tuple(LicenseVerdict(row["license"], row["images"], allowed=True) for row in rows)
    return Licenses(None, named, (), 0, 0, 0)


class _SeenPicture(NamedTuple):
    """What a thread found out about a picture: its findings and, if it can be decoded, its hash, digest, and search."""

    row: Row
    findings: list[Finding]
    bits: int | None = None
    digest: int = 0  # first 64 bits of the SHA-256 of its bytes
    search: SearchResult | None = None


class _PictureAudit:
    """Audit of all pictures: of what they contain, and of duplicates. It takes 32 bytes of memory per image.

    `privacy` summarizes the search of the pictures at `positions`.
    """

    def __init__(self, tables: DatasetTables, search: ForeignSearch, count: int) -> None:
        self.findings = FindingCollector()
        self.positions: frozenset[int] = frozenset()
        self.privacy = PrivacySummary(())
        self._tables = tables
        self._search = search
        searcher = search.searcher
        if searcher is not None:
            self.positions = frozenset(spread_evenly(count, count if search.most is None else search.most))
            self.privacy = PrivacySummary(searcher.detectors, searcher.given, searcher.missing)
        self._hashes = array("Q")  # of each picture: its ordinal, the number of its split, its hash, and its digest
        self._splits: list[str] = []

    def run(self) -> None:
        """Decode every picture, examine its metadata, and search for faces and plates."""
        regions: list[Row] = []
        with JpegDecoder(own=False) as decoder:
            look, jpegs = partial(self._look, decoder), enumerate(self._tables.rows(_JPEGS, _ROWS))
            at_once = decoder.processes
            with closing(map_ahead(look, jpegs, at_once, at_once + 1, "audit-foreign")) as pictures:
                for seen in pictures:
                    self.findings.extend(seen.findings)
                    if seen.bits is not None:
                        self._add_hashes(seen.row, seen.bits, seen.digest)
                    if seen.search is not None:
                        regions += self._add_search(seen.row, seen.search)
        if self._search.regions is not None:
            write_regions(self._search.regions, regions)

    def _look(self, decoder: JpegDecoder, numbered: tuple[int, Row]) -> _SeenPicture:
        position, row = numbered
        place = self._place(row)
        file = ForeignFile(row["image_id"], row["uri"], row["size"], row["offset"])
        try:
            data = read_file(self._tables.location.storage, file, ANY_SIZE.max_bytes + 1)  # larger ones are refused
            facts = decoder.run(partial(examine_picture, with_pixels=position in self.positions), data)
        except NotFoundError as error:
            return _SeenPicture(row, [place.finding(Code.MISSING_FILE, "a picture", error)])
        except UndecodableError as error:
            return _SeenPicture(row, self._torn(place, data, error))
        findings = list(_metadata_findings(facts, place))
        search = None
        if self._search.searcher is not None and facts.pixels is not None:
            stem = f"{_NO_FILE_NAME.sub('_', row['image_id'])[-_LONGEST_NAME:]}_{row['ordinal']}"
            search = self._search.searcher.search(row, facts.pixels, stem)
            findings += search.findings(place, row["image_id"])
        digest = int.from_bytes(hashlib.sha256(data).digest()[:8], "big")
        return _SeenPicture(row, findings, facts.bits, digest, search)

    def _torn(self, place: FindingLocation, data: bytes, error: ValueError) -> list[Finding]:
        try:
            frame_size(data)
        except ValueError:
            if self._tables.kind == "sa1b":
                return []  # already reported when its size was measured
        return [place.finding(Code.BAD_JPEG, "an image that decodes completely", error)]

    def _add_hashes(self, row: Row, bits: int, digest: int) -> None:
        if row["split"] not in self._splits:
            self._splits.append(row["split"])
        self._hashes.extend((row["ordinal"], self._splits.index(row["split"]), bits, digest))

    def _add_search(self, row: Row, search: SearchResult) -> list[Row]:
        """Add the search of a picture to the summary, write crops, and return rows for the file of regions."""
        self.privacy.add(row["shard"], [search])
        if self._search.pictures is not None:
            put_pictures(self._search.pictures, [search])
        return [
            {**found.to_dict(), "image": row["image_id"], "found_by": [each.detector for each in found.sightings]}
            for found in search.found
        ]

    def compare(self) -> Duplicates:
        """Report each picture that equals or resembles an earlier one, once, and count them."""
        ordinals, splits, hashes, digests = np.asarray(self._hashes, np.uint64).reshape(-1, 4).T
        same = find_copies(digests)
        alike = {each.index: each.earlier for each in find_alike(hashes)}
        resembled = alike | same
        across = 0
        for index, other in sorted(resembled.items()):
            known = other
            while splits[known] == splits[index] and known in resembled:
                known = resembled[known]  # which the earlier picture is a duplicate of
            leaks = bool(splits[known] != splits[index])
            across += leaks
            other = known if leaks else other
            (row,), (earlier,) = (
                self._tables.query(_PLACE, [int(ordinals[each])]).to_pylist() for each in (index, other)
            )
            name = earlier["image_id"]
            if len(self._splits) > 1:
                name += f" ({self._splits[int(splits[other])]})"
            code, expected, found = Code.REPEATED_SOURCE, "no copy of an earlier image", f"the same bytes as {name}"
            if digests[index] != digests[other]:
                distance = int(hashes[index] ^ hashes[other]).bit_count()
                code, expected = Code.SIMILAR_IMAGE, "no near-duplicate of an earlier image"
                found = f"one that differs from {name} in {distance} of 64 bits"
            self.findings.add(self._place(row).finding(Code.SPLIT_LEAK if leaks else code, expected, found))
        similar = len(alike.keys() - same.keys())
        return Duplicates(len(hashes), DISTANCE, len(same), similar, across if len(self._splits) > 1 else None)

    def _place(self, row: Row) -> FindingLocation:
        """Return the location of an image's picture. The shards of listed images mean nothing to users."""
        return FindingLocation(row["image_id"], row["shard"] if self._tables.kind == "sa1b" else None, row["id"])


def _metadata_findings(facts: PictureFacts, place: FindingLocation) -> Iterator[Finding]:
    if facts.has_position:
        yield place.finding(Code.GPS_POSITION, "no position where it was taken", "one in its EXIF data")
    if facts.other_thumbnail:
        yield place.finding(Code.OTHER_THUMBNAIL, "a thumbnail of this picture", "one that shows something else")
    if facts.metadata:
        yield place.finding(Code.JPEG_METADATA, "no metadata", ", ".join(facts.metadata))
    if facts.more_bytes:
        found = f"{facts.more_bytes:,} bytes after the picture's end"
        yield place.finding(Code.JPEG_METADATA, "the end of the file after the picture", found)
