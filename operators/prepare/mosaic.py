"""Irreversible redaction of parts of a photograph, and detection at several orientations.

Irreversible redaction of parts of a photograph with a coarse, smoothed mosaic inside an outline.

An outline may be surrounded by a band in which the mosaic blends into the image. Every pixel inside an outline is
computed from mosaics only, so no original pixel survives there.

Search of an image in several orientations, because photographs without EXIF may be sideways or upside down.

The upright image is searched at full size. In every other orientation, the image is first searched at half size, which
takes a fraction of the time. Only if this finds something new is the image searched at full size.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from segmint.infra.arrays import Bools, Floats, Ints, Pixels, Size
from segmint.model.detectors.detection import Detection, Detector, iou, turned_back
from segmint.operators.redactions import PLATE_MARGIN

CELLS = 5
"""Number of mosaic cells along a region's longer side.

We compared 3 to 8 cells, square and not square, smoothed by interpolation and by a Gaussian. With this setting, neither
MTCNN nor OpenCV's Haar cascade detected a face again at any of several sizes.
"""
FACE_EXPANSION = 1.6
"""Size of a face's ellipse relative to its box.

The factor exceeds sqrt(2), so the ellipse contains the corners of the box. Its area is 2.01 times the area of the box.
"""
WHOLE = 256
"""Weight at which the mosaic hides the image completely. Weights in the band are lower."""

_FAR = 1 << 20  # pixels; OpenCV draws with 32 bits, and a detector file may return any number


@dataclass(frozen=True)
class ImagePatch:
    """Pixels to redact: `mask` (h, w) bool, in a window of the image whose top left corner is (x, y).

    `weight` (h, w) uint16 is the mosaic's weight in 256ths: 256 inside the mask, lower in the band, and 0 elsewhere. It
    is None without a band. The window lies inside the image and fits tightly around the mask and the band.
    """

    x: int
    y: int
    mask: Bools
    weight: NDArray[np.uint16] | None = None

    @property
    def width(self) -> int:
        """Width of the window in pixels."""
        return int(self.mask.shape[1])

    @property
    def height(self) -> int:
        """Height of the window in pixels."""
        return int(self.mask.shape[0])


def _tight(x: int, y: int, mask: Bools, weight: NDArray[np.uint16] | None = None) -> ImagePatch | None:
    if not mask.any():
        return None
    covered = mask if weight is None else weight > 0
    left, top, width, height = cv2.boundingRect(covered.view(np.uint8))
    inside = slice(top, top + height), slice(left, left + width)
    return ImagePatch(x + left, y + top, mask[inside], None if weight is None else weight[inside])


def ellipse(box: Sequence[float], shape: Size, band: float = 0.0) -> ImagePatch | None:
    """Return the ellipse around `box` (x0, y0, x1, y1), `FACE_EXPANSION` times its size, clipped to `shape` (h, w).

    The box is first rounded to whole pixels, so the last bits of a detector's floats don't move the border. `band` is
    the width of the band around the ellipse, as a share of the half axes. Returns None if the ellipse is outside the
    image.
    """
    start, end = np.round(box).reshape(2, 2)
    center = (start + end) / 2
    half = np.maximum(end - start, 1) * FACE_EXPANSION / 2
    outer, size = half * (1 + band), (shape[1], shape[0])
    left, top = np.floor(center - outer).clip(0, size).astype(np.int64).tolist()
    right, bottom = np.ceil(center + outer).clip(0, size).astype(np.int64).tolist()
    if left >= right or top >= bottom:
        return None
    dx = (np.arange(left, right) + 0.5 - center[0]) / half[0]
    dy = (np.arange(top, bottom) + 0.5 - center[1]) / half[1]
    squared = dx[None, :] ** 2 + dy[:, None] ** 2
    mask = squared <= 1
    if not band:
        return _tight(left, top, mask)
    around = ~mask & (squared < (1 + band) ** 2)
    return _tight(left, top, mask, _weights(mask, around, (np.sqrt(squared[around]) - 1) / band))


def _weights(mask: Bools, around: Bools, distances: Floats) -> NDArray[np.uint16]:
    """Return the mosaic's weights in 256ths, (h, w): 256 in `mask`, decreasing smoothly in the band `around` it.

    `distances` contains each band pixel's distance from the border of the mask, in band widths. To get the same weights
    on every CPU, the formula only uses sums, products, quotients, and square roots, whose rounding IEEE 754 defines.
    """
    left = np.clip(1 - distances, 0, 1)
    weights = mask.astype(np.uint16) * np.uint16(WHOLE)
    weights[around] = np.floor(WHOLE * (left * left * (3 - 2 * left))).astype(np.uint16)
    return weights


def polygon(points: Sequence[tuple[float, float]], shape: Size, band: float = 0.0) -> ImagePatch | None:
    """Return the convex hull of `points` (x, y), grown on every side by `PLATE_MARGIN` times its shorter side, clipped.

    The points are first rounded to whole pixels and clamped to a range that exceeds any image. `band` is the width of
    the band around the hull, as a share of the growth. Returns None if the hull is outside the image of `shape` (h, w).
    """
    corners = np.clip(points, -_FAR, _FAR).round().astype(np.int32)
    (_, sides, _) = cv2.minAreaRect(corners)
    grow = math.ceil(PLATE_MARGIN * min(sides))
    squares = [corners + np.array((dx, dy)) for dx in (-grow, grow) for dy in (-grow, grow)]
    hull = cv2.convexHull(np.concatenate(squares).astype(np.int32)).reshape(-1, 2)
    width = math.ceil(band * grow)
    left, top = np.maximum(hull.min(axis=0) - width, 0).tolist()
    right, bottom = np.minimum(hull.max(axis=0) + width + 1, (shape[1], shape[0])).tolist()
    if left >= right or top >= bottom:
        return None
    canvas = np.zeros((bottom - top, right - left), np.uint8)
    cv2.fillConvexPoly(canvas, hull - (left, top), 1)
    mask = canvas.astype(bool)
    if not width:
        return _tight(left, top, mask)
    outside = _outside(hull.astype(np.float64), np.arange(left, right), np.arange(top, bottom))
    around = ~mask & (outside < width)
    return _tight(left, top, mask, _weights(mask, around, outside[around] / width))


def _outside(hull: Floats, x: Ints, y: Ints) -> Floats:
    """Return each pixel's largest signed distance outside the sides of a convex polygon, (h, w).

    `hull` (N, 2) contains the corners of the polygon in order, N > 2. `x` and `y` are the window's columns and rows.
    """
    before, after = hull, np.roll(hull, -1, axis=0)
    turns = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    sides = (after - before) * (1.0 if turns.sum() > 0 else -1.0)
    farthest = np.full((len(y), len(x)), -np.inf)
    for (corner_x, corner_y), (across, down) in zip(before, sides, strict=True):
        length = np.sqrt(across * across + down * down)
        distance = ((x - corner_x) * down)[None, :] - ((y - corner_y) * across)[:, None]
        np.maximum(farthest, distance / length, out=farthest)
    return farthest


def rectangle(x: int, y: int, width: int, height: int, shape: Size) -> ImagePatch | None:
    """Return the rectangle clipped to the image of `shape` (h, w), or None if it is outside."""
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + width, shape[1]), min(y + height, shape[0])
    if left >= right or top >= bottom:
        return None
    return ImagePatch(left, top, np.ones((bottom - top, right - left), bool))


def mosaic_size(width: int, height: int, cells: int = CELLS) -> tuple[int, int]:
    """Return the number of columns and rows of the mosaic for a window of `width` x `height` pixels."""
    longest = max(height, width)
    columns, rows = (min(max(round(cells * side / longest), 1), max(side // 2, 1)) for side in (width, height))
    return columns, rows


def mosaic(window: Pixels, cells: int = CELLS) -> Pixels:
    """Reduce `window`, (h, w, 3) uint8, to at most `cells` x `cells` mean colors, then scale it back up linearly.

    Each side of a cell is at least two pixels long, unless the window is smaller.
    """
    height, width = window.shape[:2]
    means = cv2.resize(window, mosaic_size(width, height, cells), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(means, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def redact_patches(image: Pixels, patches: Iterable[ImagePatch]) -> Pixels:
    """Return a copy of `image` (H, W, 3) uint8 with a smoothed mosaic in every patch. Other pixels are unchanged.

    Each mosaic is computed from the original pixels of its patch's whole window. All bands are drawn first, and the
    masks on top of them, so every pixel in a mask comes from a mosaic. Where masks overlap, the last one wins.
    """
    result = image.copy()
    covers = []
    for patch in patches:
        window = result[patch.y : patch.y + patch.height, patch.x : patch.x + patch.width]
        covers.append((window, patch, mosaic(window)))
    for window, patch, cover in covers:
        if patch.weight is not None:
            window[...] = _blended(cover, window, patch.weight)
    for window, patch, cover in covers:
        cv2.copyTo(cover, patch.mask.view(np.uint8), window)
    return result


def _blended(cover: Pixels, picture: Pixels, weight: NDArray[np.uint16]) -> Pixels:
    """Blend two images, (h, w, 3), rounding half up. `weight` (h, w) is the weight of the first image in 256ths."""
    weights = np.asarray(cv2.merge([weight] * 3), np.uint16)  # five times as fast as broadcasting
    mixed = np.asarray(cover * weights + picture * (np.uint16(WHOLE) - weights) + np.uint16(WHOLE // 2), np.uint16)
    return np.asarray(mixed >> 8, np.uint8)


ORIENTATIONS: tuple[Literal[0, 90, 180, 270], ...] = (0, 90, 180, 270)
"""Counterclockwise angles, in degrees, by which images are turned."""

TURNED_SCORE = 0.9
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
    least = TURNED_SCORE if detector.name.startswith("mtcnn") else 0.0  # the others return only detections that count
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
