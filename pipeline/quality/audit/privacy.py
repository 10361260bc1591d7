"""Audit of privacy, which searches released images with the build's detectors and any additional ones."""

import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.findings import Code, Finding, FindingLocation
from segmint.catalogs.layout import DamagedDatasetError, image_name, image_stem
from segmint.infra.arrays import Pixels
from segmint.infra.assets import pinned, resolve
from segmint.infra.errors import UsageError, last_line
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.model.detectors.detection import Detector, Kind
from segmint.operators.audit.privacy import (
    DetectorFailedError,
    DetectorSpec,
    IsolatedDetector,
    RemainingDetection,
    cutouts,
    distinct_names,
    merge_found,
    picture,
    search_release,
)
from segmint.operators.prepare.deidentify import (
    CONFIGS,
    NO_DETECTOR,
    DeidentifyConfig,
    build_detector,
    is_detector_file,
)
from segmint.operators.prepare.mosaic import ORIENTATIONS
from segmint.operators.rows import Row
from segmint.pipeline.config.config import Config
from segmint.pipeline.quality.audit.result import (
    DetectorAgreement,
    DetectorCounts,
    PrivacyResult,
    UnredactedRegion,
    UnsearchedImages,
)

_PARTS = ("faces", "plates")  # of `deidentify`, in the order of `CONFIGS`

SHOWN = 1000
"""Maximum number of detections that the result lists. A file of regions contains all of them."""


@dataclass(frozen=True)
class SearchResult:
    """Regions that detectors found in an image, and, on request, crops of the unredacted ones by file name.

    `failures` contains the messages of detectors that failed, by kind and name.
    """

    found: tuple[RemainingDetection, ...]
    pictures: dict[str, bytes]
    failures: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def findings(self, place: FindingLocation, image: str | None = None) -> list[Finding]:
        """Return a finding for each remaining detection.

        For foreign data, whose redacted regions are unknown, pass the name of the `image`, which each finding then
        contains.
        """
        return [_finding(found, place, image) for found in self.found if not found.is_explained]


@dataclass(frozen=True, eq=False)
class Searcher:
    """Searcher that runs detectors on released images, one image at a time. Thread-safe.

    The detectors run on one thread, as in a build, because the number of threads affects the last bits of sums.

    `given` contains the detectors that the user named for the audit, by kind and name. `missing` lists the detectors
    that are unavailable. With `strict`, detections that the build recorded count like any other.
    """

    detectors: Sequence[Detector]
    given: Mapping[tuple[str, str], DetectorSpec]
    missing: Sequence[UnsearchedImages]
    orientations: Sequence[int]
    strict: bool
    with_pictures: bool
    _one: threading.Lock = field(default_factory=threading.Lock, init=False)

    def search(self, row: Row, image: Pixels, stem: str | None = None) -> SearchResult:
        """Search a released image, (H, W, 3) uint8 RGB. `row` is its row in `images`. Names of crops begin with `stem`.

        By default, that is the image's name in the dataset.
        """
        searched: list[Detector] = []
        found: list[RemainingDetection] = []
        failures: dict[tuple[str, str], str] = {}
        if self.strict:
            row = {**row, "residual_detections": None, "unconfirmed_detections": None, "left_alone": None}
        with self._one, _one_torch_thread():
            for detector in self.detectors:
                try:
                    found += search_release(row, image, [detector], self.orientations)
                except (RuntimeError, ValueError, DetectorFailedError) as error:
                    failures[detector.kind, detector.name] = last_line(error)
                else:
                    searched.append(detector)
        found = merge_found(found, searched)
        pictures: dict[str, bytes] = {}
        if self.with_pictures:
            shown = [each for each in found if not each.is_explained or each.is_unconfirmed]
            pictures = self._pictures(image, shown, stem)
        return SearchResult(tuple(found), pictures, failures)

    def _pictures(self, image: Pixels, left: Sequence[RemainingDetection], stem: str | None) -> dict[str, bytes]:
        """Crop the image around each region. If the audit has its own detectors, the crops show the regions blurred."""
        shown: Iterable[bytes] = map(partial(picture, image), left)
        if self.given:
            shown = cutouts(image, left)
        pictures = {}
        for index, (each, jpeg) in enumerate(zip(left, shown, strict=True), 1):
            name = f"{stem or image_stem(each.id)}_{index}_{each.kind}"
            if each.is_unconfirmed:
                name += "_unconfirmed"
            pictures[f"{name}.jpg"] = jpeg
        return pictures


@dataclass(frozen=True)
class SearchPlan:
    """Picklable description of a `Searcher`, which loads the detectors when it is created."""

    manifest: DatasetManifest | None  # None for foreign data, which is searched with a build's default detectors
    build: Config | None
    storage: Storage
    with_pictures: bool
    given: tuple[DetectorSpec, ...] = ()
    device: str = "cpu"
    with_build: bool = True  # search with the build's detectors, too
    strict: bool = False  # see `Searcher`

    def searcher(self) -> Searcher:
        """Load the detectors and create the searcher. Raises the exceptions of `find_detectors`.

        If the user named detectors for the audit, detectors of the build that this machine lacks are skipped.
        """
        known: tuple[Detector, ...] = ()
        missing: tuple[UnsearchedImages, ...] = ()
        used = set[str]()
        orientations: tuple[int, ...] = ORIENTATIONS
        if self.manifest is not None and self.with_build:
            recorded = _recorded(self.manifest)
            known, missing = find_detectors(
                recorded, self.build, self.storage, self.device, skip_missing=bool(self.given)
            )
            used = {recorded[part]["detector"] for part in _PARTS}
            orientations = recorded_orientations(self.manifest)
        elif self.manifest is None and not self.given:
            default = DeidentifyConfig().model_dump()
            known, missing = find_detectors(default, self.build, self.storage, self.device, skip_missing=True)
        names = distinct_names(self.given, frozenset((each.kind, each.name) for each in known))
        given = []
        by_name: dict[tuple[str, str], DetectorSpec] = {}
        for each, name in zip(self.given, names, strict=True):
            given.append(each.load(name, self.device, self.resolve))
            by_name[each.kind, name] = replace(each, repeats_build=(each.sha256 or each.detector) in used)
        return Searcher(
            (*known, *given),
            by_name,
            missing,
            orientations=orientations,
            strict=self.strict,
            with_pictures=self.with_pictures,
        )

    def resolve(self, name: str) -> Path:
        """Find the file of a known name, a path, or a URI; see `segmint.infra.assets`."""
        mirror = None
        if self.build is not None:
            mirror = self.build.assets
        return resolve(name, mirror=mirror, storage=self.storage)


@dataclass
class PrivacySummary:
    """Summary of the detections in all searched images. `found` lists the remaining detections with their shards."""

    detectors: Sequence[Detector]
    given: Mapping[tuple[str, str], DetectorSpec] = field(default_factory=dict)  # detectors from the audit's options
    missing: Sequence[UnsearchedImages] = ()  # detectors of the build that this machine lacks
    orientations: Sequence[int] = ORIENTATIONS
    images_checked: int = 0  # images that at least one detector searched
    searches: int = 0  # images that were read and passed to the detectors
    found: list[tuple[int, RemainingDetection]] = field(default_factory=list)
    inside_regions: Counter[tuple[str, str]] = field(default_factory=Counter)  # by kind and name of the detector
    residual: int = 0  # detections that the build recorded
    unconfirmed: int = 0
    left_alone: Counter[str] = field(default_factory=Counter)  # by the person who decided
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)  # images by kind and name of the detector
    first_failure: dict[tuple[str, str], str] = field(default_factory=dict)  # message of the first failure

    def add(self, shard: int, searches: Sequence[SearchResult]) -> None:
        """Add the results of searching a shard."""
        self.searches += len(searches)
        for search in searches:
            self.images_checked += len(search.failures) < len(self.detectors)
            for detector, message in search.failures.items():
                self.failures[detector] += 1
                self.first_failure.setdefault(detector, message)
            for found in search.found:
                if found.redacted:
                    self.inside_regions[found.kind, found.detector] += 1
                elif found.is_residual:
                    self.residual += 1
                elif found.decided_by is not None:
                    self.left_alone[found.decided_by] += 1
                elif found.is_unconfirmed:
                    self.unconfirmed += 1
                else:
                    self.found.append((shard, found))

    def regions(self) -> list[dict[str, Any]]:
        """Return the remaining detections as rows of a file for `segmint redact`."""
        return [{**found.to_dict(), "found_by": [each.detector for each in found.sightings]} for _, found in self.found]

    def answer(self) -> PrivacyResult:
        """Return the privacy part of the audit's result."""
        by_detector: dict[tuple[str, str], list[int]] = {}  # image ids, one per detection
        for _, found in self.found:
            for sighting in found.sightings:
                by_detector.setdefault((found.kind, sighting.detector), []).append(found.id)
        counts = []
        for detector in self.detectors:
            key = detector.kind, detector.name
            images, spec = by_detector.get(key, []), self.given.get(key)
            counts.append(
                DetectorCounts(
                    kind=detector.kind,
                    name=detector.name,
                    score=detector.score,
                    found=len(images),
                    images=len(set(images)),
                    inside_regions=self.inside_regions[key],
                    origin="build" if spec is None or spec.repeats_build else "audit",
                    sha256=None if spec is None else spec.sha256,
                    failed=self.failures[key],
                )
            )
        return PrivacyResult(
            images_checked=self.images_checked,
            detectors=tuple(counts),
            found=tuple(
                UnredactedRegion(**found.to_dict(), shard=shard, found_by=found.sightings, missed_by=found.missed_by)
                for shard, found in self.found[:SHOWN]
            ),
            found_total=len(self.found),
            inside_regions=self.inside_regions.total(),
            residual=self.residual,
            unconfirmed=self.unconfirmed,
            left_alone=dict(sorted(self.left_alone.items())),
            not_turned=tuple(angle for angle in ORIENTATIONS if angle not in self.orientations),
            agreement=tuple(self._agreement()),
        )

    def _agreement(self) -> Iterator[DetectorAgreement]:
        """Yield, for each kind, the number of regions that each set of detectors agrees on, largest sets first."""
        for kind in CONFIGS:
            names = tuple(detector.name for detector in self.detectors if detector.kind == kind)
            if len(names) < 2:
                continue
            counts = Counter({names: 0})
            counts.update({(name,): 0 for name in names})
            for _, found in self.found:
                if found.kind == kind:
                    counts[tuple(each.detector for each in found.sightings)] += 1
            for detectors in sorted(counts, key=lambda each: (-len(each), [names.index(name) for name in each])):
                yield DetectorAgreement(kind, detectors, counts[detectors])

    def gaps(self, images: int, sampled: int) -> Iterator[UnsearchedImages]:
        """Yield the unsearched images among all `images` of the dataset, of which `sampled` were selected."""
        if not images:
            yield UnsearchedImages("no_image", 0, 0)
            return
        kinds: set[str | None] = {each.kind for each in self.detectors}
        for each in self.missing:
            kinds.add(each.kind)
            yield replace(each, images=images, of=images)
        for part in CONFIGS:
            if part not in kinds:
                yield UnsearchedImages("no_detector", images, images, part)
        if not self.detectors:
            return
        if sampled < images:
            yield UnsearchedImages("not_sampled", images - sampled, images)
        if self.searches < sampled:
            yield UnsearchedImages("unreadable", sampled - self.searches, images)
        for (kind, name), failed in sorted(self.failures.items()):
            yield UnsearchedImages("detector_failed", failed, images, kind, name, self.first_failure[kind, name])


def put_pictures(folder: Location, searches: Sequence[SearchResult]) -> None:
    """Write the crops of these searches to a folder or prefix."""
    for search in searches:
        for name, data in search.pictures.items():
            (folder / name).put(data)


def find_detectors(
    recorded: Mapping[str, Any], build: Config | None, storage: Storage, device: str = "cpu", *, skip_missing: bool
) -> tuple[tuple[Detector, ...], tuple[UnsearchedImages, ...]]:
    """Load the detectors that the dataset was built with, as its manifest records them.

    The manifest only contains the hashes of detector files, so their paths come from `build`, the build's
    configuration. With `skip_missing`, detectors that are missing or differ are skipped, and the second result says
    what they leave unsearched. Otherwise, raises `UsageError`.
    """
    found: list[Detector] = []
    missing = []
    for kind in CONFIGS:
        part = recorded[f"{kind}s"]
        if part["detector"] == NO_DETECTOR:
            continue
        try:
            found.append(_detector_of(kind, part, build, storage, device))
        except UsageError as error:
            if not skip_missing:
                raise
            why = str(error).splitlines()[0]
            missing.append(UnsearchedImages("detector_not_here", 0, 0, kind, "the build's detector", why))
    return tuple(found), tuple(missing)


def recorded_orientations(manifest: DatasetManifest) -> tuple[int, ...]:
    """Return the orientations in which the build searched. Raises `DamagedDatasetError`."""
    try:
        return DeidentifyConfig(orientations=_recorded(manifest)["orientations"]).orientations
    except (KeyError, ValueError) as error:
        raise DamagedDatasetError(f"deidentify.orientations: {error!r}") from error


def _recorded(manifest: DatasetManifest) -> dict[str, Any]:
    """Return the manifest's `deidentify` configuration. Its `detector` is a hash if the build used a detector file."""
    try:
        recorded = dict(manifest.config["deidentify"])
        for kind in _PARTS:
            recorded[kind]["detector"]
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedDatasetError(f"deidentify: {error!r}") from error
    return recorded


def _detector_of(kind: Kind, part: Mapping[str, Any], build: Config | None, storage: Storage, device: str) -> Detector:
    """Load the build's detector of one kind, where `part` is its configuration in the manifest."""
    digest, expected = part["detector"], None
    files = build.deidentify.detector_files if build is not None else {}
    if is_detector_file(digest):
        file = files.get(f"{kind}s")
        if file is None:
            raise UsageError(
                f"the dataset was built with a file as deidentify.{kind}s.detector (SHA-256 {digest}): pass the "
                "build's configuration with --config, or skip the privacy audit with --privacy-sample 0"
            )
        part, expected = {**part, "detector": file}, digest
    mirror = build.assets if build is not None else None
    return build_detector(
        kind,
        CONFIGS[kind].model_validate(part),
        device,
        resolve=lambda name: pinned(resolve(name, mirror=mirror, storage=storage), expected),
        threads=1,
        load_file=IsolatedDetector,
    )


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Limit torch to one thread. If torch isn't imported, do nothing, because then no detector uses it."""
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch is not None else 1
    if torch is None or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _finding(found: RemainingDetection, place: FindingLocation, image: str | None) -> Finding:
    where = f"{image or image_name(found.id)}: {found.w} x {found.h} pixels at ({found.x}, {found.y})"
    by = " and ".join(f"by {each.detector} at score {each.score}" for each in found.sightings)
    detected, expected = f"a {found.kind} {by}", f"no {found.kind}"
    if found.missed_by:
        detected += f", and not by {' or '.join(found.missed_by)}"
    if image is None:
        expected += " outside the redacted regions"
    return place.of_image(found.id).finding(Code.STILL_DETECTED, expected, detected, where)
