"""Audit of data that segmint did not write, in the layout of SA-1B, COCO, or YOLO: its pictures and their duplicates.

`segmint.operators.foreign` has checked its annotations when its tables were opened.
"""

import hashlib
import re
from array import array
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from segmint.catalogs.dataset.regions import write_regions
from segmint.catalogs.dataset.tables import DatasetTables, Foreign
from segmint.catalogs.findings import Code, Finding, FindingCollector, FindingLocation
from segmint.catalogs.layout import image_stem
from segmint.catalogs.source.sampling import spread_evenly
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.threads import map_ahead
from segmint.operators.audit.jpeg_parts import frame_size
from segmint.operators.audit.similar_images import DISTANCE, find_alike
from segmint.operators.decoding import JpegDecoder, UndecodableError
from segmint.operators.foreign.pictures import PictureFacts, examine_picture
from segmint.operators.images import Pixels
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
_SIZES = """
SELECT count(DISTINCT image_id) AS images, count(DISTINCT shard) AS shards, (SELECT count(*) FROM masks) AS masks
FROM images
"""
_JPEGS = """
SELECT ordinal, images.id, image_id, images.shard, jpegs.uri, "offset", size, split
FROM jpegs JOIN images USING (ordinal) ORDER BY ordinal
"""
_PLACE = "SELECT id, image_id, shard FROM images WHERE ordinal = ?"
_HOW_MANY_JPEGS = "SELECT count(*) AS jpegs FROM jpegs JOIN images USING (ordinal)"
_LICENSES = "SELECT license, count(*) AS images FROM images GROUP BY license ORDER BY images DESC, license"
_EXIF = "EXIF"
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

    def look(self, row: Row, pixels: Pixels) -> SearchResult:
        """Search a picture, (H, W, 3) uint8 RGB."""
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
    search: ForeignSearch | None,
) -> AuditReport:
    """Audit data that segmint didn't write. Its annotations were already checked when its tables were opened.

    Each picture is read and decoded once. The detectors in `search` look for faces and plates; None searches no image.
    """
    (counts,) = tables.query(_SIZES).to_pylist()
    foreign = tables.foreign or Foreign()
    findings = FindingCollector()
    findings.extend(foreign.findings)
    (found,) = tables.query(_HOW_MANY_JPEGS).to_pylist()
    privacy = None
    if search is not None:
        privacy = PrivacySummary(search.searcher.detectors, search.searcher.given, search.searcher.missing)
        search.begin(found["jpegs"])
    duplicates = _audit_pictures(tables, storage, findings, search, privacy)
    unsearched: tuple[UnsearchedImages, ...] = (UnsearchedImages("skipped", counts["images"], counts["images"]),)
    unknown = "licenses and redacted regions" if tables.kind == "sa1b" else "redacted regions"
    note = f"segmint didn't write this, so its {unknown} are unknown{', and every detection counts' * bool(privacy)}"
    if search is not None and privacy is not None:
        search.finish()
        without = counts["images"] - found["jpegs"]  # these weren't left out of the sample
        unsearched = tuple(privacy.gaps(counts["images"], len(search.positions) + without))
    decoded = duplicates.images_compared
    return AuditReport(
        dataset=str(tables.location),
        scope="all",
        kind=tables.kind,
        shards=counts["shards"],
        sample=sample,
        findings=findings.collected(),
        checked=CheckedCounts(
            images=counts["images"], masks=counts["masks"], boxes=foreign.boxes, jpegs_decoded=decoded
        ),
        notes=(note, *foreign.notes),
        licenses=_licenses(tables),
        privacy=None if privacy is None else privacy.answer(),
        duplicates=duplicates,
        statistics=compute_statistics(tables, sample),
        unsearched=unsearched,
    )


def _licenses(tables: DatasetTables) -> Licenses | None:
    """Count the licenses that data names, without a judgment. Return None for data whose layout names none."""
    if tables.kind == "sa1b":
        return None
    rows = tables.query(_LICENSES).to_pylist()
    named = tuple(LicenseVerdict(row["license"], row["images"], allowed=True) for row in rows)
    return Licenses(None, named, (), 0, 0, 0)


def _audit_pictures(
    tables: DatasetTables,
    storage: Storage,
    findings: FindingCollector,
    search: ForeignSearch | None,
    privacy: PrivacySummary | None,
) -> Duplicates:
    """Decode every picture, examine its metadata, and find duplicates. This takes 32 bytes of memory per image.

    Detectors search the images that `search` selects, and the results are added to `privacy`.
    """
    compared = _Compared()
    with JpegDecoder(own=False) as decoder:

        def look(numbered: tuple[int, Row]) -> tuple[Row, PictureFacts | None, int, list[Finding], SearchResult | None]:
            position, row = numbered
            place = _place(tables, row)
            wanted = search is not None and position in search.positions
            try:
                data = _read(storage, row)
                facts = decoder.run(partial(examine_picture, with_pixels=wanted), data)
            except NotFoundError as error:
                return row, None, 0, [place.finding(Code.MISSING_FILE, "a picture", error)], None
            except UndecodableError as error:
                return row, None, 0, _torn(tables, place, data, error), None
            seen = list(_metadata_findings(facts, place))
            found = None
            if search is not None and facts.pixels is not None:
                found = search.look(row, facts.pixels)
                seen += found.findings(place, row["image_id"])
            digest = int.from_bytes(hashlib.sha256(data).digest()[:8], "big")
            return row, replace(facts, pixels=None), digest, seen, found

        at_once, jpegs = decoder.processes, enumerate(tables.rows(_JPEGS, _ROWS))
        with closing(map_ahead(look, jpegs, at_once, at_once + 1, "audit-foreign")) as looks:
            for row, facts, digest, seen, searched in looks:
                findings.extend(seen)
                if search is not None and privacy is not None and searched is not None:
                    search.keep(row, searched)
                    privacy.add(row["shard"], [searched])
                if facts is not None:
                    compared.add(row, facts.bits, digest)
    return compared.finish(tables, findings)


def _metadata_findings(facts: PictureFacts, place: FindingLocation) -> Iterator[Finding]:
    names = set(facts.metadata)
    if facts.has_position:
        names.discard(_EXIF)
        yield place.finding(Code.GPS_POSITION, "no position where it was taken", "one in its EXIF data")
    if facts.other_thumbnail:
        names.discard(_EXIF)
        yield place.finding(Code.OTHER_THUMBNAIL, "a thumbnail of this picture", "one that shows something else")
    if names:
        yield place.finding(Code.JPEG_METADATA, "no metadata", ", ".join(sorted(names)))
    if facts.more_bytes:
        found = f"{facts.more_bytes:,} bytes after the picture's end"
        yield place.finding(Code.JPEG_METADATA, "the end of the file after the picture", found)


@dataclass
class _Compared:
    """Hashes of the decoded pictures, in order: of their pixels and of their bytes, and the splits that they are in."""

    ordinals: "array[int]" = field(default_factory=lambda: array("q"))
    hashes: "array[int]" = field(default_factory=lambda: array("Q"))
    digests: "array[int]" = field(default_factory=lambda: array("Q"))
    splits: "array[int]" = field(default_factory=lambda: array("q"))
    names: list[str] = field(default_factory=list)  # of the splits

    def add(self, row: Row, bits: int, digest: int) -> None:
        """Add the hashes of a picture."""
        if row["split"] not in self.names:
            self.names.append(row["split"])
        self.splits.append(self.names.index(row["split"]))
        self.ordinals.append(row["ordinal"])
        self.hashes.append(bits)
        self.digests.append(digest)

    def finish(self, tables: DatasetTables, findings: FindingCollector) -> Duplicates:
        """Report each picture that equals or resembles an earlier one, once, and count them."""
        _, first, kind = np.unique(np.asarray(self.digests, np.uint64), return_index=True, return_inverse=True)
        earlier = {each.index: each.earlier for each in find_alike(np.asarray(self.hashes, np.uint64))}
        same = {index: int(first[place]) for index, place in enumerate(kind.tolist()) if first[place] != index}
        resembled = earlier | same
        across = 0
        for index, other in sorted(resembled.items()):
            known = other
            while self.splits[known] == self.splits[index] and known in resembled:
                known = resembled[known]  # which the earlier picture is a duplicate of
            leaks = self.splits[known] != self.splits[index]
            if leaks:
                other = known
            self._report(index, other, tables, findings, Code.SPLIT_LEAK if leaks else None)
            across += leaks
        similar = len(earlier.keys() - same.keys())
        splits = across if len(self.names) > 1 else None
        return Duplicates(len(self.hashes), DISTANCE, len(same), similar, splits)

    def _report(
        self, index: int, other: int, tables: DatasetTables, findings: FindingCollector, code: Code | None
    ) -> None:
        (row,) = tables.query(_PLACE, [self.ordinals[index]]).to_pylist()
        (earlier,) = tables.query(_PLACE, [self.ordinals[other]]).to_pylist()
        name = earlier["image_id"]
        if len(self.names) > 1:
            name += f" ({self.names[self.splits[other]]})"
        if self.digests[index] == self.digests[other]:
            expected, found = "no copy of an earlier image", f"the same bytes as {name}"
            code = code or Code.REPEATED_SOURCE
        else:
            distance = (self.hashes[index] ^ self.hashes[other]).bit_count()
            expected, found = (
                "no near-duplicate of an earlier image",
                f"one that differs from {name} in {distance} of 64 bits",
            )
            code = code or Code.SIMILAR_IMAGE
        findings.add(_place(tables, row).finding(code, expected, found))


def _place(tables: DatasetTables, row: Row) -> FindingLocation:
    """Return the location of an image's picture. The shards of listed images mean nothing to users."""
    return FindingLocation(row["image_id"], row["shard"] if tables.kind == "sa1b" else None, row["id"])


def _read(storage: Storage, row: Row) -> bytes:
    """Read a picture. Raises `NotFoundError`."""
    with storage.open_ranges(row["uri"]) as stream:
        stream.seek(row["offset"])
        return stream.read(min(row["size"], ANY_SIZE.max_bytes + 1))  # larger pictures are refused


def _torn(tables: DatasetTables, place: FindingLocation, data: bytes, error: ValueError) -> list[Finding]:
    try:
        frame_size(data)
    except ValueError:
        if tables.kind == "sa1b":
            return []  # already reported when its size was measured
    return [place.finding(Code.BAD_JPEG, "an image that decodes completely", error)]
