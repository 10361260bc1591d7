"""De-identification: finds faces and license plates in an image and makes them unrecognizable.

Regions that a person wants left alone: the list of their boxes, and its comparison with detections.

An entry holds for one photograph, which it names by the hash of its bytes, and for detections whose redaction would
cover about the same box. It never holds for another photograph or another place.

Measured recall of the bundled detectors, as plans and dataset cards state it.

`make bench-privacy` measures the recall. A test compares the numbers in this module with the recorded result.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from segmint.catalogs.dataset.regions import read_regions
from segmint.catalogs.findings import Reason, RejectedError
from segmint.catalogs.frozen import Sha256
from segmint.infra.arrays import Box, Pixels, Size
from segmint.infra.assets import absolute_name, pinned, resolve
from segmint.infra.errors import SegmintError, UsageError, last_line
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.units import validated
from segmint.infra.uris import redact
from segmint.infra.version import NOT_INSTALLED, installed_version
from segmint.model.detectors.detection import CandidateDetector, Detection, Detector, Kind, bounds, iou, lenient
from segmint.model.detectors.plates import PlateDetector
from segmint.model.detectors.second_look import is_confirmed
from segmint.operators.child import lacks_memory
from segmint.operators.prepare.detector_socket import DetectorProcessError
from segmint.operators.prepare.ingest import clean_message
from segmint.operators.prepare.ingest_config import control_pixels
from segmint.operators.prepare.mosaic import ORIENTATIONS, ImagePatch, ellipse, polygon, redact_patches, search_likewise
from segmint.operators.prepare.onnx_file import (
    DETECTOR_ENDINGS,
    DETECTOR_FILES,
    file_format,
    is_onnx,
    load_detector_file,
    onnx_network,
    read_weights,
)
from segmint.operators.redactions import FACE_BAND, PLATE_BAND

MTCNN_SCORE, CLP_SCORE = 0.7, 0.5
"""Default minimum scores of the bundled detectors."""

_BATCH_PIXELS = 16 * 1536**2
"""Number of pixels that a GPU searches at once, which is the size of 16 of the largest tiles."""

_CONTROL_SIZES = ((192, 256), (256, 192), (256, 256))
"""Width and height, in pixels, of the control images. Every detector must be able to search images of these sizes."""

RULE = 4
"""Version of the search and redaction rules, recorded in manifests as `deidentify.rule`."""

NO_DETECTOR = "none"
BUNDLED_DETECTORS = frozenset({"mtcnn", "clp"})
"""Names of the detectors that ship with segmint."""


def is_detector_file(name: str) -> bool:
    """Return whether `name` identifies a file: by path or URI in a configuration, or by SHA-256 in a manifest."""
    return name != NO_DETECTOR and name not in BUNDLED_DETECTORS


class DetectorConfig(BaseModel):
    """Configuration for one kind of detector. `detector` is the bundled detector, `none`, or a file's path or URI."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundled: ClassVar[str]

    detector: str
    score: float | None = Field(default=None, gt=0, le=1)

    @field_validator("detector")
    @classmethod
    def _known(cls, value: str) -> str:
        if value in (cls.bundled, NO_DETECTOR):
            return value
        if value.partition("#")[0].endswith(DETECTOR_ENDINGS):
            return validated(absolute_name)(value)
        raise ValueError(
            f"expected {cls.bundled!r}, {NO_DETECTOR!r}, or the path or URI of {DETECTOR_FILES}, got {redact(value)!r}"
        )


class FacesConfig(DetectorConfig):
    """Configuration of face detection.

    `score` is the minimum score of a detection; the default for mtcnn is 0.7. For detector files, see
    `TorchScriptDetector` and `OnnxDetector`.
    """

    bundled = "mtcnn"

    detector: str = bundled


class PlatesConfig(DetectorConfig):
    """Configuration of plate detection.

    `score` is the minimum score of a detection; the default for clp is 0.5. For detector files, see
    `TorchScriptDetector` and `OnnxDetector`.
    """

    bundled = "clp"

    detector: str = bundled


CONFIGS: dict[Kind, type[DetectorConfig]] = {"face": FacesConfig, "plate": PlatesConfig}
"""Configuration class of each kind of detector."""


class DeidentifyConfig(BaseModel):
    """The `deidentify:` part of a configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Literal["cpu", "cuda"] = "cpu"
    """Device that runs the detectors.

    On `cpu`, each process that decodes images runs the detectors itself. On `cuda`, a single process per node runs them
    for all of these processes. The device changes the last bits of detections, so it is part of the numerics.
    """
    faces: FacesConfig = FacesConfig()
    plates: PlatesConfig = PlatesConfig()
    orientations: tuple[Literal[0, 90, 180, 270], ...] = ORIENTATIONS
    """Counterclockwise angles, in degrees, by which images are turned for the search for faces. 0 is required."""
    max_redacted_share: float | None = Field(default=None, gt=0, le=1)
    """Maximum `redacted_share` of an image. An image with a greater share is rejected. None: no maximum."""
    left_alone: str | None = None
    """Path or URI of the list of regions to leave alone (`segmint.operators.prepare.deidentify`)."""

    @field_validator("left_alone")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        return None if value is None else validated(absolute_name)(value)

    @field_validator("orientations")
    @classmethod
    def _upright_first(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if 0 not in value:
            raise ValueError("expected 0, the upright image, and any of 90, 180, and 270, as in [0, 180]")
        return tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _onnx_on_cpus(self) -> "DeidentifyConfig":
        if self.device == "cuda" and any(map(is_onnx, self.detector_files.values())):
            raise ValueError("ONNX detectors run on CPUs: set deidentify.device to cpu, or use TorchScript files")
        return self

    @property
    def requested(self) -> dict[Kind, DetectorConfig]:
        """Configuration of each requested detector, keyed by kind."""
        parts: dict[Kind, DetectorConfig] = {"face": self.faces, "plate": self.plates}
        return {kind: part for kind, part in parts.items() if part.detector != NO_DETECTOR}

    @property
    def detectors(self) -> dict[str, str]:
        """Names of the requested detectors, keyed by their key in the configuration (`faces`, `plates`)."""
        return {f"{kind}s": part.detector for kind, part in self.requested.items()}

    @property
    def packages(self) -> frozenset[str]:
        """PyPI names of the packages that the requested detectors need, other than those for TorchScript files."""
        needed = set()
        for name in self.detectors.values():
            if name == FacesConfig.bundled:
                needed |= {"facenet-pytorch", "torchvision"}
            elif name == PlatesConfig.bundled:
                needed.add("onnxruntime" if self.device == "cpu" else "protobuf")
            elif is_onnx(name):
                needed.add("onnxruntime")
        return frozenset(needed)

    def require_packages(self) -> None:
        """Raise `UsageError` if one of `packages` is not installed, or if torchvision doesn't work."""
        missing = sorted(name for name in self.packages if installed_version(name) == NOT_INSTALLED)
        if missing:
            raise UsageError(
                f"the detectors {' and '.join(self.detectors.values())} need {', '.join(missing)}, not installed here. "
                "Run `pip install 'segmint[detectors]'`, or set other detectors in deidentify.faces and .plates."
            )
        if "torchvision" in self.packages:
            require_torchvision()

    def require_bundled(self, resolve: Callable[[str], Path]) -> None:
        """Raise `UsageError` if this machine lacks a package or file of a bundled detector.

        `resolve` finds weights by name.
        """
        self.require_packages()
        if self.plates.detector == PlatesConfig.bundled:
            resolve(PlatesConfig.bundled)

    @property
    def detector_files(self) -> dict[str, str]:
        """Requested detectors that are files: their paths or URIs, keyed by `faces` and `plates`."""
        return {kind: name for kind, name in self.detectors.items() if is_detector_file(name)}


class BrokenDetectorError(SegmintError):
    """Raised when a detector fails on control images as well, so no image is to blame."""


@dataclass(frozen=True)
class Region:
    """A redacted part of an image.

    The box (x, y, w, h) covers every changed pixel; it is in whole pixels and inside the image. `score` and `source`
    come from the detector. For a region that a person requested, they are 1 and `manual`.
    """

    kind: str
    score: float
    x: int
    y: int
    w: int
    h: int
    source: str

    @classmethod
    def of(cls, found: Detection, patch: ImagePatch, *more: Any) -> Self:
        """Return the region that redacting a detection changes, where `patch` is its `outline`.

        `more` contains the values of a subclass's own fields.
        """
        return cls(found.kind, found.score, patch.x, patch.y, patch.width, patch.height, found.source, *more)

    @property
    def box(self) -> Box:
        """Left, top, right, and bottom edge."""
        return box_of(vars(self))

    def scaled(self, before: tuple[int, int], after: tuple[int, int]) -> "Region":
        """Scale the region along with its image, rounding outward so that it covers the same content.

        `before` and `after` are the image's sizes, (width, height).
        """
        start, end = np.array(self.box).reshape(2, 2)
        left, top = (start * after // before).tolist()
        right, bottom = (-(-end * after // before)).tolist()
        return replace(self, x=left, y=top, w=right - left, h=bottom - top)


def box_of(region: Mapping[str, Any]) -> Box:
    """Return the left, top, right, and bottom edge of a region in a table."""
    return region["x"], region["y"], region["x"] + region["w"], region["y"] + region["h"]


def outline(detection: Detection, shape: Size, *, band: bool = True) -> ImagePatch | None:
    """Return the pixels to redact for a detection in an image of `shape` (h, w).

    For a face, this is an ellipse. For a plate, it is the polygon of the plate's corners. If there are no corners, or
    they don't match the box, it is the box. Without `band`, the mosaic ends at the outline.
    """
    if detection.kind == "face":
        return ellipse(detection.box, shape, FACE_BAND if band else 0.0)
    x0, y0, x1, y1 = detection.box
    box = ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    quad = detection.quad
    if quad is None or iou(bounds(quad), detection.box) < 0.5:
        quad = box
    return polygon(quad, shape, band=PLATE_BAND if band else 0.0)


def deidentify(image: Pixels, found: Sequence[Detection]) -> tuple[Pixels, list[Region]]:
    """Redact detections in `image`, (H, W, 3) uint8 RGB, upright. Detections are in pixels of `image`.

    Returns a redacted copy and its regions, in the order of the detections. A detection outside the image produces no
    region. Pixels outside the regions are unchanged.
    """
    patches, regions = [], []
    for each in found:
        patch = outline(each, (image.shape[0], image.shape[1]))
        if patch is None:
            continue
        patches.append(patch)
        regions.append(Region.of(each, patch))
    return redact_patches(image, patches), regions


@dataclass(frozen=True)
class Candidates:
    """Detections in an image: those to redact, and those that a second look didn't confirm."""

    confirmed: tuple[Detection, ...] = ()
    unconfirmed: tuple[Detection, ...] = ()

    def __add__(self, other: "Candidates") -> "Candidates":
        """Append the detections of `other`."""
        return Candidates(self.confirmed + other.confirmed, self.unconfirmed + other.unconfirmed)


def find(image: Pixels, detectors: Sequence[Detector], source: Pixels | None = None) -> Candidates:
    """Search `image`, which must be upright, with each detector. Confirm the results in `source`, or in `image`.

    `source` has the size of `image`. Raises the same errors as `CheckedDetector`.
    """
    if source is None:
        source = image
    result = Candidates()
    for detector in map(CheckedDetector, detectors):
        result += detector.confirm(detector.detect(image), source)
    return result


def find_likewise(
    image: Pixels, detectors: Sequence[Detector], hits: Sequence[Detection], known: Sequence[Detection]
) -> Candidates:
    """Search `image` again in the turned orientations that produced `hits`, and confirm; see `search_likewise`."""
    result = Candidates()
    for detector in map(CheckedDetector, detectors):
        result += detector.confirm(search_likewise(detector, image, hits, known), image)
    return result


class CheckedDetector:
    """A detector that rejects the image if it fails on this image but works on control images."""

    def __init__(self, detector: Detector) -> None:
        self.kind, self.name, self.score = detector.kind, detector.name, detector.score
        self.is_bundled = self.name in BUNDLED_DETECTORS  # only their detections need a second look
        self._detector = detector

    def detect(self, image: Pixels) -> list[Detection]:
        """Search `image`, (H, W, 3) uint8 RGB. Detections are in its pixels, sorted by score from best to worst.

        If the detector fails, it is tried on control images. Raises `RejectedError` with `detector_failed` if these
        succeed, and `BrokenDetectorError` if they fail too.
        """
        return self._checked(lenient(self._detector, self.score).detect, image)

    def confirm(self, found: Sequence[Detection], source: Pixels) -> Candidates:
        """Take a second look at each detection in `source`, (H, W, 3) uint8 RGB, before redaction.

        The detections are in pixels of `source`. Those of detector files are all confirmed, because the scores of
        unknown networks mean something else. Raises the same errors as `detect`.
        """
        if not self.is_bundled:
            return Candidates(confirmed=tuple(found))
        confirmed, unconfirmed = [], []
        for each in found:
            if is_confirmed(self._look, source, each):
                confirmed.append(each)
            else:
                unconfirmed.append(each)
        return Candidates(tuple(confirmed), tuple(unconfirmed))

    def _look(self, window: Pixels) -> list[Detection]:
        if not isinstance(self._detector, CandidateDetector):
            raise TypeError(f"the {self.kind} detector {self.name} can't search views of candidates")
        return self._checked(self._detector.look, window)

    def _checked(self, search: Callable[[Pixels], list[Detection]], image: Pixels) -> list[Detection]:
        try:
            return search(image)
        except Exception as error:  # a detector file is third-party code and may raise anything
            if blames_nothing(error):
                raise
            _require_detector(self._detector)
            message = clean_message(last_line(error))
            detail = f"the {self.kind} detector {self.name} fails on this image, and not on others: {message}"
            raise RejectedError(Reason.DETECTOR_FAILED, detail) from None


def _require_detector(detector: Detector) -> None:
    """Raise `BrokenDetectorError` if a detector fails on a portrait, landscape, or square control image."""
    for size in _CONTROL_SIZES:
        try:
            detector.detect(np.asarray(cv2.resize(control_pixels(), size), np.uint8))
        except Exception as error:
            if blames_nothing(error):
                raise
            raise BrokenDetectorError(
                f"the {detector.kind} detector {detector.name} fails on a control image of {size[0]} x {size[1]} "
                f"pixels, too, so no image was rejected: {last_line(error)}. Fix its file or the machine, or build "
                "another dataset with another detector"
            ) from error


def blames_nothing(error: Exception) -> bool:
    """Return whether neither the image nor the detector caused an error. Such an error is never a verdict.

    The machine or its GPU is out of memory, a package is missing, or the detector process doesn't reply.
    """
    if isinstance(error, ImportError | DetectorProcessError):
        return True
    return lacks_memory(error)


Resolve = Callable[[str], Path]
LoadFile = Callable[[Path, Kind, float | None, str], Detector]
"""Function that loads a detector file, given its path, kind, minimum score (or None), and torch device."""


def pinned_files(storage: Storage, assets: str | None, detector_sha256: Mapping[str, str]) -> Resolve:
    """Return a function that finds weights and detector files for `build_detectors`.

    Detector files contain executable code, so the function raises `AssetError` if a file differs from its hash in
    `detector_sha256`. `assets` is a folder that mirrors the files.
    """
    return lambda name: pinned(resolve(name, mirror=assets, storage=storage), detector_sha256.get(name))


def build_detectors(
    config: DeidentifyConfig, resolve: Resolve = resolve, threads: int | None = None
) -> tuple[Detector, ...]:
    """Build the detectors that `config` requests: faces first, then plates. See `build_detector`."""
    parts = config.requested.items()
    return tuple(build_detector(kind, part, config.device, resolve, threads) for kind, part in parts)


def build_detector(
    kind: Kind,
    config: DetectorConfig,
    device: str = "cpu",
    resolve: Resolve = resolve,
    threads: int | None = None,
    load_file: LoadFile | None = None,
) -> Detector:
    """Build the detector of one kind that `config` requests, which must not be `none`.

    - `device`: the torch device that runs the detector. On a CPU, onnxruntime runs the bundled plate detector.
    - `resolve`: finds weights by name or path; `segmint.infra.assets` by default.
    - `threads`: the size of the plate network's own thread pool; torch's number of threads by default.
    - `load_file`: loads a detector that is a file; `load_detector_file` by default.

    On a GPU, this function disables cuDNN for the whole process: cuDNN prepares a plan for each new size of its input,
    which takes up to 100 ms, and photographs and pyramid levels have many sizes.

    In a new process, this function takes about a second, mostly for imports. Raises `UsageError` if a file is missing
    or isn't a detector.
    """
    on_gpu = device.startswith("cuda")
    if on_gpu:
        import torch

        torch.backends.cudnn.enabled = False
    if config.detector == FacesConfig.bundled:
        return _mtcnn(config.score or MTCNN_SCORE, device)
    if config.detector == PlatesConfig.bundled:
        path, score = resolve(config.detector), config.score or CLP_SCORE
        return _clp_on_gpu(path, score, device) if on_gpu else PlateDetector(onnx_network(path, threads), score)
    load = load_file or partial(load_detector_file, threads=threads)
    key = f"deidentify.{kind}s.detector"
    try:
        path = resolve(config.detector)
    except UsageError as error:
        raise UsageError(f"{key}: {error}") from error
    try:
        return load(path, kind, config.score, device)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"{key}: {path} can't be loaded as {file_format(path)} on {device}: {error}") from error


def require_torchvision() -> None:
    """Raise `UsageError` if torchvision's operators, which mtcnn needs, don't work with this torch."""
    import torch

    try:
        from torchvision.ops import nms

        nms(torch.empty(0, 4), torch.empty(0), 0.5)
    except (RuntimeError, AttributeError) as error:  # AttributeError: an earlier import failed halfway
        raise UsageError(
            f"torchvision {installed_version('torchvision')} doesn't work with torch {torch.__version__}, so mtcnn "
            f"can't run: {last_line(error)}. Reinstall both together from one index, such as `pip install "
            "--force-reinstall torch torchvision`"
        ) from error


def _mtcnn(score: float, device: str) -> Detector:
    import torch

    require_torchvision()
    from segmint.model.detectors.cascade import CascadeDetector

    with warnings.catch_warnings():  # importing the package changes the process's warning filters
        from facenet_pytorch import MTCNN

    cascade = MTCNN(device=torch.device(device)).eval()
    return CascadeDetector(cascade.to(memory_format=torch.channels_last), score=score, device=device)


def _clp_on_gpu(path: Path, score: float, device: str) -> Detector:
    from segmint.model.detectors.plate_network import PlateNetworkOnDevice

    return PlateDetector(PlateNetworkOnDevice(read_weights(path), device), score, batch_pixels=_BATCH_PIXELS)


SAME_IOU = 0.5
"""Minimum IoU of an entry's box with the box that redacting a detection would cover."""


class LeftAloneEntry(BaseModel):
    """Row of the list: a box (x, y, w, h) in whole pixels of the upright photograph, and who decided to leave it."""

    model_config = ConfigDict(frozen=True)

    sha256: Sha256  # of the photograph's bytes
    x: int = Field(ge=0)
    y: int = Field(ge=0)
    w: int = Field(ge=1)
    h: int = Field(ge=1)
    decided_by: str = Field(min_length=1)
    decided_on: date | None = None

    def matches(self, region: Mapping[str, Any]) -> bool:
        """Return whether a region's box, in pixels of the upright photograph, is about the same as the entry's."""
        return iou(box_of(vars(self)), box_of(region)) >= SAME_IOU


Entries = tuple[LeftAloneEntry, ...]


@dataclass(frozen=True)
class LeftAloneRegion(Region):
    """A detection that a person wanted left alone. Its box is the one that redacting it would have covered."""

    decided_by: str
    decided_on: str | None  # ISO 8601


def region_of(found: Detection, size: tuple[int, int], full: tuple[int, int]) -> Region | None:
    """Return the region that redacting a detection would cover, in an image of the size `full`.

    The detection is in pixels of an image of the size `size`. Sizes are (width, height).
    """
    patch = outline(found, (size[1], size[0]))
    return None if patch is None else Region.of(found, patch).scaled(size, full)


class LeftAlone:
    """Entries of one photograph, and the detections that they hold for.

    `size` is the size of the searched image, and `full` the photograph's, both (width, height). `regions` contains the
    first region that each entry held for, in pixels of the upright photograph.
    """

    def __init__(self, entries: Entries, size: tuple[int, int], full: tuple[int, int]) -> None:
        self._entries = entries
        self._size = size
        self._full = full
        self.regions: dict[LeftAloneEntry, LeftAloneRegion] = {}
        self.detections: list[Detection] = []

    def take(self, found: Iterable[Detection]) -> list[Detection]:
        """Keep the detections that an entry holds for, and return all others, which must be redacted."""
        if not self._entries:
            return list(found)
        others = []
        for each in found:
            region = region_of(each, self._size, self._full)
            entry = next((entry for entry in self._entries if region and entry.matches(vars(region))), None)
            if region is None or entry is None:
                others.append(each)
                continue
            self.detections.append(each)
            decision = entry.model_dump(mode="json", include={"decided_by", "decided_on"})
            self.regions.setdefault(entry, LeftAloneRegion(**vars(region), **decision))
        return others


def count_unmatched(entries: Mapping[str, Entries], images: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    """Count the entries without a photograph among `images`, and those of a photograph that hold for no detection.

    `images` contains rows of `images`, at least those whose `source_sha256` is a key of `entries`.
    """
    unseen, unmatched = set(entries), {entry for each in entries.values() for entry in each}
    for row in images:
        unseen.discard(row["source_sha256"])
        for region in row["left_alone"] or ():
            unmatched -= {entry for entry in entries.get(row["source_sha256"], ()) if entry.matches(region)}
    without_photograph = sum(entry.sha256 in unseen for entry in unmatched)
    return without_photograph, len(unmatched) - without_photograph


def read_left_alone(file: Location) -> dict[str, Entries]:
    """Read a list from a JSON Lines or Parquet file; return its entries by the photograph's SHA-256.

    Raises the errors of `read_regions`.
    """
    found: dict[str, Entries] = {}
    for entry in read_regions(file, LeftAloneEntry):
        found[entry.sha256] = (*found.get(entry.sha256, ()), entry)
    return found


Share = tuple[int, int]
"""Number of marked faces or plates that a detector found, and the number of all marked ones."""

PHOTOGRAPHS = 13
COMPOSITES = 40


@dataclass(frozen=True)
class MeasuredRecall:
    """Recall of a detector in upright photographs, photographs rotated by 90, 180, or 270 degrees, and composites."""

    kind: str  # in the plural
    upright: Share
    turned: Share
    composites: Share

    @property
    def shares(self) -> tuple[Share, Share, Share]:
        """The shares for upright photographs, rotated photographs, and composites."""
        return self.upright, self.turned, self.composites


RECALL = {
    "mtcnn": MeasuredRecall("faces", upright=(37, 37), turned=(111, 111), composites=(135, 138)),
    "clp": MeasuredRecall("plates", upright=(2, 2), turned=(1, 6), composites=(5, 5)),
}
"""Measured recall, keyed by bundled detector."""


def describe_recall(names: Iterable[str]) -> str:
    """Describe the measured recall of the bundled detectors in `names`, in sentences."""
    parts = []
    for name in names:
        found = RECALL.get(name)
        if found is not None:
            upright, turned, made = (f"{hits} of {marks}" for hits, marks in found.shares)
            parts.append(
                f"{name} found {upright} {found.kind} upright, {turned} rotated by 90, 180, or 270 degrees, and {made} "
                "in the composites."
            )
    measured = f"They were measured on {PHOTOGRAPHS} photographs and {COMPOSITES} composites of them: "
    return measured + " ".join(parts) if parts else ""
