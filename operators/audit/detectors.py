"""Detectors that an audit runs in addition to the build's: parsing of their names, loading, and a trial run."""

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from segmint.infra.assets.cache import sha256_of
from segmint.infra.assets.known import absolute_name, plain_name
from segmint.infra.errors import UsageError
from segmint.infra.uris import LOCAL, local_path, redact, scheme
from segmint.model.detectors.detection import Detector, Kind, TiledDetector
from segmint.operators.audit.isolated import DetectorFailedError, IsolatedDetector
from segmint.operators.audit.privacy import ON_TILES
from segmint.operators.prepare.deidentify import (
    CONFIGS,
    DeidentifyConfig,
    FacesConfig,
    PlatesConfig,
    Resolve,
    build_detector,
    is_detector_file,
)
from segmint.operators.prepare.detector_files import DETECTOR_ENDINGS, DETECTOR_FILES, contract, file_format


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
            f"{DETECTOR_FILES}, or the name of segmint's bundled detector of that kind "
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
            raise UsageError(f"{self}: no such file. To use the bundled detector, write {CONFIGS[self.kind].bundled}")
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
