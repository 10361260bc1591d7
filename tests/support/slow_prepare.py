"""A worker for `segmint.operators.child.Children` whose searches take long; importable in a child process."""

import time
from collections.abc import Callable

import numpy as np

from segmint.model.detectors.detection import Detection, Kind
from segmint.operators.prepare.deidentify import DeidentifyConfig
from segmint.operators.prepare.ingest import IngestConfig
from segmint.operators.prepare.prepare import PrepareConfig, PreparedImage, prepare_image
from segmint.operators.prepare.release import ReleaseConfig


class SlowDetector:
    """Finds nothing, and takes a while for that."""

    kind: Kind = "face"
    name = "slow"
    score = 0.5

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def detect(self, image: np.ndarray) -> list[Detection]:
        time.sleep(self._seconds)
        return []


def prepares_slowly(seconds: float) -> Callable[[bytes], PreparedImage]:
    """A child that prepares images with one second for decoding; each search takes `seconds`."""
    config = PrepareConfig(IngestConfig(), DeidentifyConfig(orientations=(0,)), ReleaseConfig(), crops=None)
    return lambda data: prepare_image(data, config, [SlowDetector(seconds)], timeout_s=1.0)
