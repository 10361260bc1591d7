"""Search of an image in several orientations, because photographs without EXIF may be sideways or upside down.

The upright image is searched at full size. In every other orientation, the image is first searched at half size, which
takes a fraction of the time. Only if this finds something new is the image searched at full size.
"""

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np

from segmint.model.detectors.detection import Detection, Detector, iou, turned_back
from segmint.operators.images import Pixels

ORIENTATIONS: tuple[Literal[0, 90, 180, 270], ...] = (0, 90, 180, 270)
"""Counterclockwise angles, in degrees, by which images are turned."""

_TURNED_SCORE = 0.9
"""Minimum score of mtcnn's detections in a turned image. With 0.7, mtcnn detected a face in an upside-down dog."""
_SAME_IOU = 0.5
"""Minimum IoU at which two detections in different orientations show the same face."""


def search_orientations(
    detector: Detector, image: Pixels, orientations: Sequence[int] = ORIENTATIONS
) -> list[Detection]:
    """Search `image`, (H, W, 3) uint8 RGB, upright and in each of `orientations`. Plates are searched only upright.

    Boxes and corners are in pixels of the upright image. The upright detections come first. The detections in other
    orientations follow, unless they repeat one with at least their score; the orientation with the best score comes
    first. The detector's errors propagate.
    """
    found = list(detector.detect(image))
    turned = [angle for angle in orientations if angle and detector.kind == "face"]
    if not turned:
        return found
    size = max(image.shape[1] // 2, 1), max(image.shape[0] // 2, 1)
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    across, down = image.shape[1] / size[0], image.shape[0] / size[1]
    views = [(angle, [each.mapped(across, down) for each in search_turned(detector, small, angle)]) for angle in turned]
    for angle, hits in sorted(views, key=lambda view: -max((each.score for each in view[1]), default=0.0)):
        if any(_is_new(each, detector, found) for each in hits):
            for each in (*search_turned(detector, image, angle), *hits):
                if _is_new(each, detector, found):
                    found.append(each)
    return found


def search_likewise(
    detector: Detector, image: Pixels, hits: Sequence[Detection], known: Sequence[Detection]
) -> list[Detection]:
    """Search `image`, (H, W, 3) uint8 RGB, at full size in the turned orientations that produced `hits`.

    Returns the detections that don't repeat one of `known` with at least their score. `known` is in pixels of `image`.
    The detector's errors propagate.
    """
    found: list[Detection] = []
    own = (hit for hit in hits if (hit.kind, hit.source) == (detector.kind, detector.name))
    for angle in sorted({hit.orientation for hit in own if hit.orientation}):
        for each in search_turned(detector, image, angle):
            if _is_new(each, detector, [*known, *found]):
                found.append(each)
    return found


def _is_new(candidate: Detection, detector: Detector, known: Sequence[Detection]) -> bool:
    """Return whether a detection in a turned image counts: its score is high enough, and no known one repeats it.

    A sideways face is often detected upright as well, with a lower score. If only the upright detection were kept, the
    second look would search upright and miss the face.
    """
    least = _TURNED_SCORE if detector.name.startswith("mtcnn") else 0.0  # the others return only detections that count
    if candidate.score < least:
        return False
    for each in known:
        is_as_good = each.orientation == candidate.orientation or each.score >= candidate.score
        if is_as_good and iou(candidate.box, each.box) >= _SAME_IOU:
            return False
    return True


def is_same(one: Detection, other: Detection) -> bool:
    """Return whether two detections of one detector, in different orientations, show the same face."""
    if (one.kind, one.source) != (other.kind, other.source) or one.orientation == other.orientation:
        return False
    return iou(one.box, other.box) >= _SAME_IOU


def search_turned(detector: Detector, image: Pixels, angle: int) -> list[Detection]:
    """Search `image`, (H, W, 3) uint8 RGB, after turning it counterclockwise by `angle`, a multiple of 90 degrees.

    Boxes and corners are in pixels of `image` before turning.
    """
    turned = np.ascontiguousarray(np.rot90(image, angle // 90))
    size = image.shape[1], image.shape[0]
    return [turned_back(each, angle, size) for each in detector.detect(turned)]
