"""Redaction of what detectors find upright, without a last look."""

from collections.abc import Sequence

import numpy as np

from segmint.model.detectors.detection import Detector
from segmint.operators.prepare.deidentify import Region, deidentify, find


def redacted(image: np.ndarray, detectors: Sequence[Detector]) -> tuple[np.ndarray, list[Region]]:
    """The redacted image, and the regions in its pixels."""
    return deidentify(image, find(image, detectors).confirmed)
