"""Isolation of a detector file in a child process, because its code may hang, crash, or exhaust the memory."""

import functools
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from segmint.catalogs.reasons import Reason
from segmint.infra.errors import SegmintError, last_line
from segmint.model.detectors.detection import Detection, Detector, Kind, Pixels
from segmint.operators.child import Children, SuspectError, Worker, is_out_of_memory

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
        from segmint.operators.prepare.detector_files import is_onnx, load_detector_file

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
