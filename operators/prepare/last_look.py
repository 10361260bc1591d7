"""Last look at an image before it is released: the audit's search, on the very JPEG that will be written.

Redaction and JPEG compression create patterns that detectors take for faces. Redacting until nothing is found would
change much more of the image, so large patterns that are absent from the source may remain. They are recorded.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from segmint.model.detectors.detection import Detection, Detector, iou, lenient
from segmint.operators.images import decode_jpeg
from segmint.operators.prepare.deidentify import CheckedDetector, Pixels, Region
from segmint.operators.prepare.orientations import search_turned
from segmint.operators.prepare.released_search import MOST_RESIDUAL, ReleasedDetection, search_released
from segmint.operators.rows import Row

ROUNDS = 3
"""Maximum number of times that an image is redacted again after a look."""
SOURCE_SCORE, SOURCE_IOU = 0.2, 0.3
"""Minimum score and IoU at which a detection in the source confirms one in the released image."""

_MARGIN = 1.0  # of the window in the source on each side, as a share of the detection's longer side
_LEAST_MARGIN = 48  # pixels of the released image


@dataclass(frozen=True)
class ResidualDetection(Region):
    """A detection that remains, in pixels of the **released** image; the box is the one that would be redacted."""

    orientation: int


@dataclass(frozen=True)
class LastLook:
    """Result of a look: what to redact, in pixels of the image before redaction, and what may remain if that is all."""

    to_redact: tuple[Detection, ...]
    residual: tuple[ResidualDetection, ...]


def last_look(
    row: Row, jpeg: bytes, source: Pixels, detectors: Sequence[Detector], orientations: Sequence[int]
) -> LastLook:
    """Search the JPEG that will be released, and decide about everything that is found outside redacted regions.

    `row` contains the sizes and regions of `segmint.operators.schemas.IMAGES`; `source`, (H, W, 3) uint8 RGB, is the
    image before redaction at any size. Raises the exceptions of `CheckedDetector`.
    """
    if not detectors:
        return LastLook((), ())
    image = decode_jpeg(jpeg)
    size = image.shape[1], image.shape[0]
    across, down = source.shape[1] / size[0], source.shape[0] / size[1]
    to_redact: list[Detection] = []
    residual: list[ResidualDetection] = []
    for detector in map(CheckedDetector, detectors):
        for each in search_released(row, image, detector, orientations):
            if each.is_redacted:
                continue
            may_remain = each.may_remain and len(residual) < MOST_RESIDUAL
            if may_remain and not _is_in_source(each.found, source, size, detector):
                residual.append(_residual(each))
            else:
                to_redact.append(each.found.mapped(across, down))
    return LastLook(tuple(to_redact), tuple(residual))


def _residual(seen: ReleasedDetection) -> ResidualDetection:
    found = seen.found
    return ResidualDetection(
        found.kind, found.score, seen.x, seen.y, seen.w, seen.h, found.source, orientation=found.orientation
    )


def _is_in_source(found: Detection, source: Pixels, size: tuple[int, int], detector: Detector) -> bool:
    """Return whether the detector finds something similar, even at a low score, at the same place of the source.

    `found` is in pixels of the released image of `size` (width, height). Only a window of the source is searched, at
    the released image's scale and in the orientation in which it was found.
    """
    across, down = source.shape[1] / size[0], source.shape[0] / size[1]
    x0, y0, x1, y1 = found.box
    margin = max(_MARGIN * max(x1 - x0, y1 - y0), _LEAST_MARGIN)
    left, top = max(math.floor((x0 - margin) * across), 0), max(math.floor((y0 - margin) * down), 0)
    window = source[top : math.ceil((y1 + margin) * down), left : math.ceil((x1 + margin) * across)]
    shrunk = max(round(window.shape[1] / across), 1), max(round(window.shape[0] / down), 1)
    small = np.asarray(cv2.resize(window, shrunk, interpolation=cv2.INTER_AREA), np.uint8)
    scale_x, scale_y = window.shape[1] / shrunk[0] / across, window.shape[0] / shrunk[1] / down
    return any(
        iou(each.mapped(scale_x, scale_y, left / across, top / down).box, found.box) >= SOURCE_IOU
        for each in search_turned(lenient(detector, SOURCE_SCORE), small, found.orientation)
    )
