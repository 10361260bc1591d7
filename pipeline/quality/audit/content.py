"""Checks of licenses, privacy, and near-duplicates that run while the audit reads a shard."""

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import date

import numpy as np

from segmint.catalogs.findings import Code, Finding, FindingLocation
from segmint.catalogs.layout import image_name
from segmint.catalogs.licenses import LicensePolicy
from segmint.catalogs.terms import judge_terms
from segmint.infra.storage.location import Location
from segmint.operators.audit.similar_images import DISTANCE, find_alike, find_copies
from segmint.operators.decoding import JpegDecoder, UndecodableError
from segmint.operators.images import decode_jpeg
from segmint.operators.rows import Row
from segmint.operators.similar.hashes import FRAME, jpeg_hashes
from segmint.pipeline.quality.audit.privacy import PrivacySummary, Searcher, SearchPlan, SearchResult, put_pictures
from segmint.pipeline.quality.audit.result import (
    AssertedLicense,
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

    def __init__(self, plan: ContentPlan, privacy_sample: int | None, pictures: Location | None = None) -> None:
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
        if self._pictures is not None:
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
