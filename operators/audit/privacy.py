"""Audit of released images: detections that remain, metadata in JPEGs, and the detectors that search for both."""

import functools
import pickle
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg

from segmint.catalogs.dataset.regions import DetectedRegion, Sighting
from segmint.catalogs.findings import Reason
from segmint.infra.arrays import Pixels
from segmint.infra.assets import absolute_name, plain_name, sha256_of
from segmint.infra.errors import SegmintError, UsageError, last_line
from segmint.infra.uris import LOCAL, local_path, redact, scheme
from segmint.model.detectors.detection import Detection, Detector, Kind, TiledDetector, iou
from segmint.operators.child import Children, SuspectError, Worker, is_out_of_memory
from segmint.operators.prepare.deidentify import (
    CONFIGS,
    DeidentifyConfig,
    FacesConfig,
    PlatesConfig,
    Region,
    Resolve,
    box_of,
    build_detector,
    is_detector_file,
    region_of,
)
from segmint.operators.prepare.deidentify import SAME_IOU as SAME_REGION_IOU
from segmint.operators.prepare.mosaic import ORIENTATIONS, is_same, mosaic, rectangle, redact_patches
from segmint.operators.prepare.onnx_file import DETECTOR_ENDINGS, DETECTOR_FILES, contract, file_format
from segmint.operators.prepare.released_search import MOST_RESIDUAL, search_released
from segmint.operators.rows import Row

SAME_IOU = 0.3
"""Minimum IoU at which boxes from two detectors count as one region. A face's box may or may not include the hair."""

ON_TILES = " on tiles"
"""Suffix of the name of a build's own detector that also searches tiles."""

_RED, _YELLOW = (255, 0, 0), (255, 215, 0)
_CONTEXT_CELLS = 8
_MARGIN = 0.5
_CUTOUT_MARGIN = 1.0  # larger than a picture's: only the area around the region is sharp
_LEAST_MARGIN = 48  # pixels


@dataclass(frozen=True, slots=True)
class RemainingDetection(DetectedRegion):
    """A detection in a released image. Its box covers everything that redacting it would change.

    - `redacted`: whether the detection is inside a redacted region.
    - `is_residual`: whether the image's row records that the build left the detection, because redaction had created
      it.
    - `is_unconfirmed`: whether the row records that the build's second look didn't confirm this detector's detection.
    - `decided_by`: who wanted the detection left alone, according to the row.
    - `found_by`: after `merge_found`, all detectors that found it.
    - `missed_by`: after `merge_found`, the detectors of the same kind that searched the image without finding it.
    """

    redacted: bool
    found_by: tuple[Sighting, ...] = ()
    missed_by: tuple[str, ...] = ()
    is_residual: bool = False
    is_unconfirmed: bool = False
    decided_by: str | None = None

    @property
    def is_explained(self) -> bool:
        """True if the detection is redacted, or if the build left it deliberately."""
        return self.redacted or self.is_residual or self.is_unconfirmed or self.decided_by is not None

    @property
    def sightings(self) -> tuple[Sighting, ...]:
        """Detectors that found this detection, with their scores."""
        return self.found_by or (Sighting(self.detector, self.score),)


def search_release(
    row: Row, image: Pixels, detectors: Sequence[Detector], orientations: Sequence[int] = ORIENTATIONS
) -> list[RemainingDetection]:
    """Search a row's released image, (H, W, 3) uint8 RGB, with all detectors, and return the detections."""
    residual = _recorded(row, "residual_detections")[:MOST_RESIDUAL]
    unconfirmed, left_alone = _recorded(row, "unconfirmed_detections"), _recorded(row, "left_alone")
    size = image.shape[1], image.shape[0]
    full = row.get("source_width") or size[0], row.get("source_height") or size[1]
    found = []
    searched = [each for detector in detectors for each in search_released(row, image, detector, orientations)]
    for each in searched:
        if any(is_same(each.found, other.found) and other.found.score > each.found.score for other in searched):
            continue
        entry = each.entry
        by_build = entry.source.removesuffix(ON_TILES)  # another detector that agrees with the build's explains nothing
        found.append(
            RemainingDetection(
                row["id"],
                entry.kind,
                entry.source,
                entry.score,
                entry.x,
                entry.y,
                entry.w,
                entry.h,
                each.is_redacted,
                is_residual=each.may_remain and any(map(entry.is_same, residual)),
                is_unconfirmed=any(known["source"] == by_build and entry.is_same(known) for known in unconfirmed),
                decided_by=_decided_by(region_of(each.found, size, full), left_alone),
            )
        )
    return found


def _recorded(row: Row, column: str) -> list[Row]:
    """Return the entries of a column without nulls. Foreign and older data may lack the column."""
    return [known for known in row.get(column) or () if known]


def _decided_by(region: Region | None, left_alone: Sequence[Row]) -> str | None:
    """Return who wanted a region left alone, or None if nobody did."""
    for known in left_alone:
        if region is not None and iou(region.box, box_of(known)) >= SAME_REGION_IOU:
            return str(known["decided_by"])
    return None


def merge_found(found: Sequence[RemainingDetection], searched: Sequence[Detector]) -> list[RemainingDetection]:
    """Merge detections that several detectors made at the same place in an image. Explained detections aren't merged.

    Two detections are at the same place if they are of the same kind and their boxes overlap with an IoU of at least
    `SAME_IOU`. The merged detection takes the detector and score of the first one, and its box encloses all boxes.
    `searched` contains the detectors that searched the image.
    """
    merged: list[list[RemainingDetection]] = []
    for each in found:
        if each.is_explained:
            continue
        near = [
            (iou(same[0].box, each.box), index)
            for index, same in enumerate(merged)
            if same[0].kind == each.kind and all(other.detector != each.detector for other in same)
        ]
        best, index = max(near, default=(0.0, 0))
        if best >= SAME_IOU:
            merged[index].append(each)
        else:
            merged.append([each])
    return [_merged(same, searched) for same in merged] + [each for each in found if each.is_explained]


def picture(image: Pixels, found: RemainingDetection) -> bytes:
    """Return a JPEG of `image` with a detection framed in red. Beyond a margin, the image is a coarse mosaic.

    A detection that the build didn't confirm has a yellow frame with a label.
    """
    window = _around(found, _MARGIN)
    shown = mosaic(image, _CONTEXT_CELLS)
    shown[window] = image[window]
    _frame(shown, found, (found.x, found.y), max(1, round(max(image.shape[:2]) / 500)))
    return _encoded(shown)


def _frame(shown: Pixels, found: RemainingDetection, corner: tuple[int, int], width: int) -> None:
    """Draw a detection's frame, whose top left corner is (x, y) in `shown`."""
    end = corner[0] + found.w - 1, corner[1] + found.h - 1
    cv2.rectangle(shown, corner, end, _YELLOW if found.is_unconfirmed else _RED, width)
    if found.is_unconfirmed:
        cv2.putText(
            shown, "unconfirmed", (corner[0], end[1] - 3), cv2.FONT_HERSHEY_SIMPLEX, 0.4, _YELLOW, 1, cv2.LINE_AA
        )


def cutouts(image: Pixels, found: Sequence[RemainingDetection]) -> Iterator[bytes]:
    """Yield a JPEG of the area around each detection, with the detection framed in red and all detections blurred."""
    height, width = image.shape[:2]
    patches = (rectangle(each.x, each.y, each.w, each.h, (height, width)) for each in found)
    blurred = redact_patches(image, filter(None, patches))
    for each in found:
        rows, columns = _around(each, _CUTOUT_MARGIN, _LEAST_MARGIN)
        shown = blurred[rows, columns].copy()
        corner = each.x - columns.start, each.y - rows.start
        _frame(shown, each, corner, max(1, round(max(shown.shape[:2]) / 200)))
        yield _encoded(shown)


def _around(found: RemainingDetection, margin: float, least: int = 0) -> tuple[slice, slice]:
    """Return the rows and columns of a detection with a margin, in longer sides of its box and at least in pixels."""
    pixels = max(round(margin * max(found.w, found.h)), least)
    rows = slice(max(found.y - pixels, 0), found.y + found.h + pixels)
    return rows, slice(max(found.x - pixels, 0), found.x + found.w + pixels)


def _merged(same: Sequence[RemainingDetection], searched: Sequence[Detector]) -> RemainingDetection:
    first = same[0]
    lefts, tops, rights, bottoms = zip(*(each.box for each in same), strict=True)
    names = {each.detector for each in same}
    return replace(
        first,
        x=min(lefts),
        y=min(tops),
        w=max(rights) - min(lefts),
        h=max(bottoms) - min(tops),
        found_by=tuple(Sighting(each.detector, each.score) for each in same),
        missed_by=tuple(each.name for each in searched if each.kind == first.kind and each.name not in names),
    )


def _encoded(shown: Pixels) -> bytes:
    encoded: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(shown), quality=90, colorspace="RGB", colorsubsampling="420"
    )
    return encoded


TIMEOUT_S = 120.0
"""Time limit in seconds for searching one image or tile. The first search also loads the file."""
MOST_LATE = 3
"""Number of consecutive timeouts after which the detector isn't run again."""
MEMORY = 4 << 30
"""Memory limit in bytes for one search on a CPU in the child. Applies only on Linux."""

_MOST_TASKS = 10_000
_TRIED_SIDE = 256  # pixels
_LOAD = b""
"""Request that makes the child load the file and return the minimum score."""


class DetectorFailedError(SegmintError):
    """Raised when a detector file fails to search an image. The message gives the reason."""


class NotLoadedError(DetectorFailedError, ValueError):
    """Raised when a detector file can't be loaded."""


class IsolatedDetector:
    """A detector from `load_detector_file` in a child process, with one torch thread and a deadline. Thread-safe."""

    def __init__(
        self,
        path: Path,
        kind: Kind,
        score: float | None = None,
        device: str = "cpu",
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Start the child and load the file. Raise `NotLoadedError` if that fails.

        `score` is the minimum score of a detection; the default is the file's own. `timeout_s` is the time limit for
        one search.
        """
        self.kind: Kind = kind
        self.name = path.name
        self._timeout_s = timeout_s
        self._late = 0
        self.children: Children[list[Detection] | float | DetectorFailedError] = Children(
            functools.partial(_build, path, kind, score, device),
            timeout_s=timeout_s,
            memory_limit=MEMORY if device == "cpu" else None,
            max_tasks=_MOST_TASKS,
        )
        try:
            self.score = float(self._ask(_LOAD))
        except DetectorFailedError as error:
            self.close()
            raise NotLoadedError(str(error)) from None

    def detect(self, image: Pixels) -> list[Detection]:
        """Search `image`, (H, W, 3) uint8 RGB. Detections are in its pixels, sorted by score from best to worst.

        Raises `DetectorFailedError` if the file's code raises any exception, its process dies, or the search times out
        twice. After `MOST_LATE` consecutive timeouts, the detector isn't run again.
        """
        found: list[Detection] = self._ask(pickle.dumps(np.ascontiguousarray(image)))
        return found

    def try_out(self) -> None:
        """Search a blank image. Raises the same errors as `detect`."""
        self.detect(np.zeros((_TRIED_SIDE, _TRIED_SIDE, 3), np.uint8))

    def close(self) -> None:
        """Stop the child. Idempotent."""
        self.children.close()

    def _ask(self, data: bytes) -> Any:
        if self._late >= MOST_LATE:
            raise DetectorFailedError(
                f"not run again, because it took over {self._timeout_s:g} seconds {self._late} times in a row"
            )
        try:
            answer = self.children.run(data)
        except SuspectError as error:
            if error.reason != Reason.TIMED_OUT:
                raise DetectorFailedError(_deaths(error)) from None
            self._late += 1
            raise DetectorFailedError(f"not done within {self._timeout_s:g} seconds, twice") from None
        self._late = 0
        if isinstance(answer, DetectorFailedError):
            raise answer
        return answer


def _deaths(error: SuspectError) -> str:
    if error.reason == Reason.OUT_OF_MEMORY:
        return f"needs more than the {MEMORY >> 30} GiB of memory that a search may take"
    return "its process died, twice"


def _build(
    path: Path, kind: Kind, score: float | None, device: str
) -> Worker[list[Detection] | float | DetectorFailedError]:
    """Build the child's worker. Loading the file is a task like each search, so a deadline applies to it as well."""

    @functools.cache
    def load() -> Detector:
        from segmint.operators.prepare.onnx_file import is_onnx, load_detector_file

        if not is_onnx(path):  # an ONNX network needs no torch, which takes seconds and memory to import
            import torch

            torch.set_num_threads(1)  # as in a build, because the number of threads changes the bits of sums
        return load_detector_file(path, kind, score, device, threads=1)

    def search(data: bytes) -> list[Detection] | float | DetectorFailedError:
        try:
            detector = load()
        except (RuntimeError, ValueError) as error:
            return NotLoadedError(str(error))
        if data == _LOAD:
            return detector.score
        try:
            return detector.detect(pickle.loads(data))  # the image comes from the parent
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return DetectorFailedError(last_line(error))

    return search


@dataclass(frozen=True)
class DetectorSpec:
    """A detector, identified by its kind and its name in the configuration. Small enough to send to other processes."""

    kind: Kind
    detector: str  # `mtcnn`, `clp`, or the absolute path or URI of a file
    sha256: str | None = None  # hash of the file, set by `pinned`
    repeats_build: bool = False  # whether the build used the same detector

    @classmethod
    def of(cls, text: str) -> "DetectorSpec":
        """Parse a detector in the form KIND=PATH. Raise `UsageError` for anything else."""
        kind, _, name = text.partition("=")
        for known, config in CONFIGS.items():
            if kind == known and name == config.bundled:
                return cls(known, name)
            if kind == known and name.partition("#")[0].endswith(DETECTOR_ENDINGS):
                return cls(known, absolute_name(name))
        raise UsageError(
            f"--detector is {redact(text)!r}: expected face=PATH or plate=PATH, where PATH is the path or URI of "
            f"{DETECTOR_FILES}, or the name of segmint's built-in detector of that kind "
            f"(face={FacesConfig.bundled}, plate={PlatesConfig.bundled})"
        )

    @property
    def name(self) -> str:
        """File name, or name of the bundled detector."""
        return plain_name(self.detector)

    def pinned(self, resolve: Resolve) -> "DetectorSpec":
        """Return a copy that includes the file's hash. Raise `UsageError` if the file doesn't exist."""
        if not is_detector_file(self.detector):
            return self
        if scheme(self.detector) == LOCAL and not local_path(self.detector).is_file():
            raise UsageError(f"{self}: no such file. To use the built-in detector, write {CONFIGS[self.kind].bundled}")
        try:
            return replace(self, sha256=sha256_of(resolve(self.detector)))
        except UsageError as error:
            raise UsageError(f"{self}: {error}") from error

    def load(self, name: str, device: str, resolve: Resolve) -> Detector:
        """Load the detector onto `device` to search whole images and tiles. Its detections have the source `name`.

        A detector file is tried on a blank image first. Raises `UsageError` if the file isn't the pinned one, can't be
        loaded, or violates the contract of `TorchScriptDetector` or `OnnxDetector`.
        """
        if is_detector_file(self.detector):
            return TiledDetector(self._load_file(device, resolve), name)
        bundled = CONFIGS[self.kind](detector=self.detector)
        return TiledDetector(build_detector(self.kind, bundled, device, resolve, threads=1), name)

    def _load_file(self, device: str, resolve: Resolve) -> Detector:
        path = resolve(self.detector)
        if self.sha256 is not None and sha256_of(path) != self.sha256:
            raise UsageError(
                f"{self}: the file differs between the machines of this audit: expected SHA-256 {self.sha256}, found "
                f"{sha256_of(path)}. Put the same file on each machine, or pass one in a bucket."
            )
        try:
            detector = IsolatedDetector(path, self.kind, device=device)
            _try(detector, path)
        except ValueError as error:
            raise UsageError(f"{self}: {path} can't be loaded as {file_format(path)} on {device}: {error}") from error
        return detector

    def __str__(self) -> str:
        return f"--detector {self.kind}={redact(self.detector)}"


def try_detector_files(config: DeidentifyConfig, resolve: Resolve) -> None:
    """Try each detector file of a configuration on a blank image, in a child process.

    If detectors run on a GPU, this does nothing. Raises `UsageError` if a file is missing, can't be loaded, or fails.
    """

    def load(path: Path, kind: Kind, score: float | None, device: str) -> Detector:
        detector = IsolatedDetector(path, kind, score, device)
        with closing(detector):
            _try(detector, path)
        return detector

    for kind, part in config.requested.items():
        if config.device == "cpu" and is_detector_file(part.detector):
            build_detector(kind, part, "cpu", resolve, load_file=load)


def _try(detector: IsolatedDetector, path: Path) -> None:
    """Search a blank image with the detector from the file `path`. Raises `ValueError` if that fails."""
    try:
        detector.try_out()
    except DetectorFailedError as error:
        raise ValueError(f"it failed on a blank image. Expected {contract(path)}: {error}") from error


def distinct_names(given: tuple[DetectorSpec, ...], taken: frozenset[tuple[str, str]]) -> tuple[str, ...]:
    """Return a name for each detector that is unique within its kind.

    `taken` contains the kinds and names of the build's detectors. If a detector has the same name as one of them, it
    gets a suffix, because its results differ: the audit also searches tiles. Raises `UsageError` if two detectors have
    the same name.
    """
    names = tuple(f"{each.name}{ON_TILES}" if (each.kind, each.name) in taken else each.name for each in given)
    known: dict[tuple[str, str], DetectorSpec] = {}
    for name, each in zip(names, given, strict=True):
        other = known.setdefault((each.kind, name), each)
        if other is not each:
            raise UsageError(
                f"{other} and {each}: both are called {name}, so the result couldn't distinguish them. Pass each "
                "detector once, and give files different names."
            )
    return names


_START = b"\xff\xd8"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN, _END, _FILL = 0xDA, 0xD9, 0xFF
_COMMENT = 0xFE
_APPLICATIONS = range(0xE0, 0xF0)
_JFIF, _PROFILES, _ADOBE = 0xE0, 0xE2, 0xEE  # applications' segments that tell how to show the picture
_JFIF_BYTES, _ADOBE_BYTES = 14, 12  # without a thumbnail
_PROFILE = b"ICC_PROFILE\0"
_BARE = frozenset(range(0xD0, 0xD8)) | {0x01}
_KNOWN = {
    b"Exif\0": "EXIF",
    b"http://ns.adobe.com/xap/1.0/\0": "XMP",
    b"http://ns.adobe.com/xmp/extension/\0": "XMP",
    _PROFILE: "an ICC profile",
    b"Photoshop 3.0\0": "Photoshop data",
    b"MPF\0": "more pictures",
    b"JFXX\0": "a thumbnail",
    b"\xff\xfe": "a comment",
}


def metadata_names(data: bytes) -> list[str]:
    """Return the names of the kinds of metadata that a JPEG contains, recognized by their first bytes."""
    return sorted({name for beginning, name in _KNOWN.items() if beginning in data})


def is_profile_segment(marker: int, contents: bytes) -> bool:
    """Return whether a JPEG's segment says that it contains a color profile or a part of one."""
    return marker == _PROFILES and contents.startswith(_PROFILE)


def metadata_name(marker: int, contents: bytes) -> str | None:
    """Return the name of the metadata in a JPEG's segment, or None if the segment contains none.

    `contents` begins behind the segment's length. Color profiles and the plain headers of JFIF and Adobe aren't named.
    """
    if marker == _COMMENT:
        return "a comment"
    if marker not in _APPLICATIONS or is_profile_segment(marker, contents):
        return None
    if marker == _ADOBE and contents.startswith(b"Adobe") and len(contents) == _ADOBE_BYTES:
        return None
    if marker == _JFIF and contents.startswith(b"JFIF\0"):
        return "a thumbnail" if any(contents[12:14]) or len(contents) > _JFIF_BYTES else None
    for beginning, name in _KNOWN.items():
        if contents.startswith(beginning):
            return name
    return f"data in APP{marker - _APPLICATIONS[0]}"


def frame_size(head: bytes) -> tuple[int, int] | None:
    """Return the (width, height) in pixels from the first bytes of a JPEG, or None if its frame header comes later.

    Raises ValueError if the bytes aren't a JPEG, or if the image data begins without a frame.
    """
    if not head.startswith(_START):
        raise ValueError("it does not begin like a JPEG")
    position = 2
    while position + 9 < len(head):
        if head[position] != _FILL:
            raise ValueError(f"there is no marker at byte {position}")
        while head[position] == _FILL:
            position += 1
            if position == len(head):
                raise ValueError("it ends before the picture does")
        marker, position = head[position], position + 1
        if marker in _BARE:
            continue
        if marker in {_SCAN, _END}:
            raise ValueError("it has no frame")
        if marker in _FRAMES:
            frame = head[position + 3 : position + 7]
            return (int.from_bytes(frame[2:], "big"), int.from_bytes(frame[:2], "big")) if len(frame) == 4 else None
        position += max(2, int.from_bytes(head[position : position + 2], "big"))
    return None
