"""The audit of privacy: the build's detectors search released images again."""

import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.findings import Code, Finding, Place
from segmint.catalogs.layout import DamagedDatasetError, image_name, image_stem
from segmint.infra.assets.hashes import pinned
from segmint.infra.assets.resolve import resolve
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.model.detectors.detection import Detector
from segmint.operators.audit.privacy import StillDetected, picture, search_release
from segmint.operators.images import Pixels
from segmint.operators.prepare.deidentify import DeidentifyConfig, build_detectors, is_detector_file
from segmint.operators.rows import Row
from segmint.pipeline.audit.answer import DetectorCounts, FoundRegion, Privacy
from segmint.pipeline.config.config import Config

SHOWN = 1000
"""Detections that the answer lists; a file of regions has all."""


@dataclass(frozen=True)
class Search:
    """Detections in one image, and pictures of those that are not redacted, by name, if asked for."""

    found: tuple[StillDetected, ...]
    pictures: dict[str, bytes]

    def findings(self, place: Place) -> list[Finding]:
        """A finding for each detection outside of what was redacted."""
        return [_finding(found, place) for found in self.found if not found.redacted]


class Searcher:
    """Runs detectors on released images, one image at a time, for any thread.

    On one thread, as a build does: a sum on another number of threads has other bits.
    """

    def __init__(self, detectors: Sequence[Detector], *, with_pictures: bool = False) -> None:
        self.detectors = detectors
        self._with_pictures = with_pictures
        self._one = threading.Lock()

    def search(self, row: Row, image: Pixels) -> Search:
        """What the detectors find in `image`, (H, W, 3) uint8 RGB, the released one of a row of `images`."""
        with self._one, _one_torch_thread():
            found = search_release(row, image, self.detectors)
        pictures = {}
        if self._with_pictures:
            left = [each for each in found if not each.redacted]
            pictures = {f"{image_stem(f.id)}_{i}_{f.kind}.jpg": picture(image, f) for i, f in enumerate(left, 1)}
        return Search(tuple(found), pictures)


@dataclass(frozen=True)
class SearchPlan:
    """Picklable recipe for a `Searcher`; loading it loads the detectors."""

    manifest: DatasetManifest
    build: Config | None
    storage: Storage
    with_pictures: bool

    def searcher(self) -> Searcher:
        """Load the detectors; raises what `find_detectors` does."""
        return Searcher(find_detectors(self.manifest, self.build, self.storage), with_pictures=self.with_pictures)


@dataclass
class PrivacySummary:
    """Detections in all images that were searched; `found` are those outside of what was redacted, with their shard."""

    detectors: Sequence[Detector]
    images_checked: int = 0
    found: list[tuple[int, StillDetected]] = field(default_factory=list)
    inside_regions: Counter[tuple[str, str]] = field(default_factory=Counter)  # by kind and name of the detector

    def add(self, shard: int, searches: Sequence[Search]) -> None:
        """Add the searches of a shard."""
        self.images_checked += len(searches)
        for found in (found for search in searches for found in search.found):
            if found.redacted:
                self.inside_regions[found.kind, found.detector] += 1
            else:
                self.found.append((shard, found))

    def regions(self) -> list[dict[str, Any]]:
        """The detections as rows of a file that `segmint redact` takes."""
        return [found.to_dict() for _, found in self.found]

    def answer(self) -> Privacy:
        """What was found, as the answer has it."""
        by_detector: dict[tuple[str, str], list[int]] = {}  # ids of the images, once for each thing found
        for _, found in self.found:
            by_detector.setdefault((found.kind, found.detector), []).append(found.id)
        keys = [(detector.kind, detector.name) for detector in self.detectors]
        return Privacy(
            images_checked=self.images_checked,
            detectors=tuple(
                DetectorCounts(
                    kind=detector.kind,
                    name=detector.name,
                    score=detector.score,
                    found=len(by_detector.get(key, ())),
                    images=len(set(by_detector.get(key, ()))),
                    inside_regions=self.inside_regions[key],
                )
                for key, detector in zip(keys, self.detectors, strict=True)
            ),
            found=tuple(FoundRegion(**found.to_dict(), shard=shard) for shard, found in self.found[:SHOWN]),
            found_total=len(self.found),
            inside_regions=self.inside_regions.total(),
        )


def put_pictures(folder: Location, searches: Sequence[Search]) -> None:
    """Write the pictures of these searches into a folder or prefix."""
    for search in searches:
        for name, data in search.pictures.items():
            (folder / name).put(data)


def find_detectors(manifest: DatasetManifest, build: Config | None, storage: Storage) -> tuple[Detector, ...]:
    """The detectors that the dataset was built with.

    `build` is its configuration, which says where detector files are: the manifest has only their hashes. Raises
    `UsageError` if such a file is not found or differs, and `DamagedDatasetError` if the manifest does not say which
    they are.
    """
    try:
        parts = {kind: dict(manifest.identity["deidentify"][kind]) for kind in ("faces", "plates")}
        digests = {kind: part["detector"] for kind, part in parts.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedDatasetError(f"deidentify: {error!r}") from error
    hashes: dict[str, str] = {}
    files = build.deidentify.detector_files if build is not None else {}
    for kind, part in parts.items():
        digest = digests[kind]
        if not is_detector_file(digest):
            continue
        file = files.get(kind)
        if file is None:
            raise UsageError(
                f"the dataset was built with a file as deidentify.{kind}.detector (SHA-256 {digest}): name the build's "
                "configuration, which says where it is, with --config; or leave privacy out with --privacy-sample 0"
            )
        part["detector"] = file
        hashes[file] = digest
    mirror = build.assets if build is not None else None
    return build_detectors(
        DeidentifyConfig.model_validate(parts),
        resolve=lambda name: pinned(resolve(name, mirror=mirror, storage=storage), hashes.get(name)),
        threads=1,
    )


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Let torch compute on one thread; if it is not imported, no detector needs it."""
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


def _finding(found: StillDetected, place: Place) -> Finding:
    where = f"{image_name(found.id)}: {found.w} x {found.h} pixels at ({found.x}, {found.y})"
    detected = f"a {found.kind} by {found.detector} at score {found.score}"
    return place.of_image(found.id).finding(
        Code.STILL_DETECTED, f"no {found.kind} outside of what was redacted", detected, where
    )
