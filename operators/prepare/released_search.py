"""Search of a released image, for the build's last look and for the audit: both search the JPEG that is written.

A detection counts as redacted under two conditions. First, a region in the image's row must cover most of the
detection. Second, the detection's pixels must fit a mosaic. The second check matters because a row may list a region
that was never redacted; a photograph's pixels don't fit a mosaic with few cells.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from segmint.infra.arrays import Bools, Box, Ints, Pixels, Size
from segmint.model.detectors.detection import Detection, Detector, iou, lenient
from segmint.operators.prepare.deidentify import CheckedDetector, Region, box_of, outline
from segmint.operators.prepare.mosaic import is_same, mosaic_size, search_orientations, search_turned
from segmint.operators.prepare.release import ReleasedImage
from segmint.operators.redactions import band_widths
from segmint.operators.rows import Row

COVERED = 0.75
"""Share of a detection that a region must cover.

With a lower share, a face beside a redacted face would count as redacted. The share is below 1 because a detector may
find a face in the mosaic itself, in a box slightly larger than the region.
"""
ROUGHNESS = 4.0
"""Maximum RMS difference, in gray levels, between pixels and their best-fitting mosaic. It allows for JPEG errors."""
LEAST_RESIDUAL = 0.01
"""Share of the image that a detection must exceed to remain. Smaller detections are redacted, which changes little."""
MOST_RESIDUAL = 3
"""Maximum number of recorded detections that may remain in an image."""
SAME_RESIDUAL_IOU = 0.5
"""Minimum IoU at which a detection counts as the recorded one."""

_GRID = 48  # maximum sampled pixels per side of a detection

Reals = NDArray[np.floating[Any]]

ROUNDS = 3
"""Maximum number of times that an image is redacted again after a last look."""
SOURCE_SCORE, SOURCE_IOU = 0.2, 0.3
"""Minimum score and IoU at which a detection in the source confirms a detection in the released image."""

_MARGIN = 1.0  # margin of the window on each side, as a share of the detection's longer side
_LEAST_MARGIN = 48  # minimum margin, in pixels of the released image


@dataclass(frozen=True)
class ResidualDetection(Region):
    """A detection that remains, in pixels of the **released** image; redaction would have covered its box."""

    orientation: int

    def is_same(self, known: Mapping[str, Any]) -> bool:
        """Return whether an entry of `residual_detections` or `unconfirmed_detections` records this detection.

        If a side of the entry is null, return False.
        """
        if known["kind"] != self.kind or any(known[side] is None for side in "xywh"):
            return False
        return iou(box_of(known), self.box) >= SAME_RESIDUAL_IOU


def residual_of(found: Detection, shape: Size) -> ResidualDetection | None:
    """Return the entry for a detection in a released image of `shape` (h, w), or None if it is outside."""
    patch = outline(found, shape, band=False)  # `segmint redact` makes no band
    return None if patch is None else ResidualDetection.of(found, patch, found.orientation)


@dataclass(frozen=True)
class ReleasedDetection:
    """A detection in a released image, and its entry.

    `may_remain` is true if redaction itself may have caused the detection. This requires that the detection touches a
    visibly redacted region and covers more than `LEAST_RESIDUAL` of the image.
    """

    found: Detection
    entry: ResidualDetection
    is_redacted: bool
    may_remain: bool


def search_released(
    row: Row, image: Pixels, detector: Detector, orientations: Sequence[int]
) -> list[ReleasedDetection]:
    """Search a row's released image, (H, W, 3) uint8 RGB, for faces or plates in each of `orientations`.

    `row` must contain the sizes and regions of `segmint.operators.rows.IMAGES`. The detector's errors propagate.
    """
    height, width = image.shape[:2]
    regions = _regions(row)
    gray = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
    result = []
    for found in search_orientations(detector, image, orientations):
        entry = residual_of(found, (height, width))
        if entry is None:
            continue
        is_large = entry.w * entry.h > LEAST_RESIDUAL * height * width
        may_remain = is_large and any(each.touches(entry.box) and each.is_visible(gray) for each in regions)
        result.append(ReleasedDetection(found, entry, _is_redacted(found, gray, regions), may_remain))
    return result


@dataclass(frozen=True)
class _Region:
    """A redacted region in pixels of the released image, and the number of cells in its mosaic.

    Along the region's border runs a band in which the mosaic blends into the image. `inside` is the box within it.
    """

    kind: str
    x: float
    y: float
    w: float
    h: float
    inside: Box
    columns: int
    rows: int

    @classmethod
    def of(cls, region: Row, row: Row) -> "_Region":
        across, down = row["width"] / row["source_width"], row["height"] / row["source_height"]
        band_x, band_y = band_widths(region)
        x, w, band_x = (length * across for length in (region["x"], region["w"], band_x))
        y, h, band_y = (length * down for length in (region["y"], region["h"], band_y))
        inside = x + band_x, y + band_y, x + w - band_x, y + h - band_y
        return cls(region["kind"], x, y, w, h, inside, *mosaic_size(region["w"], region["h"]))

    def touches(self, box: Box) -> bool:
        """Return whether a box and the region overlap."""
        return iou(box, (self.x, self.y, self.x + self.w, self.y + self.h)) > 0

    def is_visible(self, gray: Pixels) -> bool:
        """Return whether a mosaic is visible inside the band; `gray` (H, W) is the released image."""
        whole = Detection("face" if self.kind == "face" else "plate", 1.0, self.inside, None, "")
        return _is_redacted(whole, gray, [self])

    def holds(self, x: Reals, y: Reals) -> Bools:
        """Return whether each position is inside the region but not in its band."""
        left, top, right, bottom = self.inside
        return (x >= left) & (x <= right) & (y >= top) & (y <= bottom)

    def roughness(self, x: Reals, y: Reals, gray: Reals) -> float:
        """Return the RMS difference in gray levels between the pixels at (x, y) and the region's best-fitting mosaic.

        The mosaic is linear between the centers of its cells, so solving a least-squares problem finds the best-fitting
        cell values. The result is infinite if there are fewer than two pixels per independent cell value.
        """
        across = _hats((x - self.x) / self.w * self.columns - 0.5, self.columns)
        down = _hats((y - self.y) / self.h * self.rows - 0.5, self.rows)
        weights = (down[:, :, None] * across[:, None, :]).reshape(len(x), -1)
        cells, _, rank, _ = np.linalg.lstsq(weights, gray, rcond=None)
        if len(x) < 2 * rank:
            return float("inf")
        return float(np.sqrt(np.square(gray - weights @ cells).sum() / (len(x) - rank)))


def _regions(row: Row) -> list[_Region]:
    """Return a row's regions in pixels of its released image. Regions without a known position or size are skipped."""
    if not row["source_width"] or not row["source_height"]:
        return []
    known = (region for region in row["regions"] or () if region and all(region[side] is not None for side in "xywh"))
    return [_Region.of(region, row) for region in known if region["w"] > 0 and region["h"] > 0]


def _hats(places: Reals, cells: int) -> Reals:
    """Return linear interpolation weights, (N, cells), at positions in cells. Weights are constant beyond the ends."""
    inside = np.clip(places, 0, cells - 1)
    weights: Reals = np.clip(1 - np.abs(inside[:, None] - np.arange(cells)), 0, None)
    return weights


def _is_redacted(detection: Detection, gray: Pixels, regions: Sequence[_Region]) -> bool:
    x, y = _pixels_of(detection, gray.shape[0], gray.shape[1])
    if not len(x):
        return False
    values = gray[y, x].astype(np.float64)
    across, down = x + 0.5, y + 0.5
    for index, region in enumerate(regions):
        held = region.holds(across, down)
        if held.mean() < COVERED:
            continue
        for later in regions[index + 1 :]:  # where regions overlap, the later region's mosaic is visible
            held &= ~later.holds(across, down)
        if held.mean() >= COVERED / 2 and region.roughness(across[held], down[held], values[held]) <= ROUGHNESS:
            return True
    return False


def _pixels_of(detection: Detection, height: int, width: int) -> tuple[Ints, Ints]:
    """Return evenly spaced pixels in the ellipse inside a face's box, or in a plate's quadrilateral."""
    x0, y0, x1, y1 = detection.box
    grid = np.meshgrid(_spaced(x0, x1, width), _spaced(y0, y1, height))
    x, y = (side.ravel() for side in grid)
    if detection.kind == "face":
        across = (x + 0.5 - (x0 + x1) / 2) / max((x1 - x0) / 2, 0.5)
        down = (y + 0.5 - (y0 + y1) / 2) / max((y1 - y0) / 2, 0.5)
        inside = across**2 + down**2 <= 1
    else:
        inside = _in_quad(x + 0.5, y + 0.5, detection)
    return x[inside], y[inside]


def _spaced(start: float, end: float, length: int) -> Ints:
    """Return up to `_GRID` evenly spaced pixels of a span, clipped to an image of `length` pixels."""
    first, last = max(math.floor(start), 0), min(math.ceil(end), length) - 1
    if first > last:
        return np.empty(0, np.int64)
    return np.unique(np.linspace(first, last, _GRID).round().astype(np.int64))


def _in_quad(x: Reals, y: Reals, detection: Detection) -> Bools:
    if detection.quad is None:
        return np.ones(len(x), bool)
    corners = np.array(detection.quad)
    sides = np.roll(corners, -1, axis=0) - corners
    turns = sides[:, :1] * (y - corners[:, 1:]) - sides[:, 1:] * (x - corners[:, :1])
    return np.asarray((turns >= 0).all(axis=0) | (turns <= 0).all(axis=0), bool)


@dataclass(frozen=True)
class LastLook:
    """Result of a last look at a JPEG.

    `to_redact` contains detections to redact, in pixels of the image before redaction. `residual` contains detections
    of detector files that may remain, and `unconfirmed` those of bundled detectors that a second look didn't confirm,
    both in pixels of the released image.
    """

    to_redact: tuple[Detection, ...]
    residual: tuple[ResidualDetection, ...]
    unconfirmed: tuple[ResidualDetection, ...] = ()


def last_look(
    row: Row, released: ReleasedImage, source: Pixels, detectors: Sequence[Detector], orientations: Sequence[int]
) -> LastLook:
    """Search the image that is about to be released, and decide whether to redact or keep each remaining detection.

    A detection of a bundled detector remains if a second look at the source doesn't confirm it.

    Redaction and JPEG compression create patterns that detectors mistake for faces, and redacting these patterns would
    change much more of the image. So if a detector file finds a large pattern at a redacted region, but nothing similar
    in the source, it may remain. At most `MOST_RESIDUAL` such detections remain; they are recorded, and all others are
    redacted.

    `row` contains the sizes and regions of `segmint.operators.rows.IMAGES`. `source`, (H, W, 3) uint8 RGB, is the
    image before redaction at any size. Raises the same errors as `CheckedDetector`.
    """
    size = released.width, released.height
    across, down = source.shape[1] / size[0], source.shape[0] / size[1]
    to_redact: list[Detection] = []
    residual: list[ResidualDetection] = []
    unconfirmed: list[ResidualDetection] = []
    for detector in map(CheckedDetector, detectors):
        for each in search_released(row, released.pixels, detector, orientations):
            if each.is_redacted:
                continue
            in_source = each.found.mapped(across, down)
            if any(is_same(in_source, other) for other in to_redact):
                continue
            if detector.is_bundled:
                if detector.confirm([in_source], source).confirmed:
                    to_redact.append(in_source)
                else:
                    unconfirmed.append(each.entry)
                continue
            may_remain = each.may_remain and len(residual) < MOST_RESIDUAL
            if may_remain and not _is_in_source(each.found, source, size, detector):
                residual.append(each.entry)
            else:
                to_redact.append(in_source)
    return LastLook(tuple(to_redact), tuple(residual), tuple(unconfirmed))


def unconfirmed_entries(
    look: LastLook, before: Iterable[Detection], size: tuple[int, int], released: tuple[int, int]
) -> tuple[ResidualDetection, ...]:
    """Return the unconfirmed detections of a last look, then those of earlier searches that it didn't repeat.

    `before` contains the earlier ones, in pixels of the image before redaction. `size` is the size of that image, and
    `released` that of the released image, (width, height).
    """
    entries = list(look.unconfirmed)
    for found in before:
        there = found.mapped(released[0] / size[0], released[1] / size[1])
        entry = residual_of(there, (released[1], released[0]))
        if entry is not None and not any(entry.is_same(vars(other)) for other in entries):
            entries.append(entry)
    return tuple(entries)


def _is_in_source(found: Detection, source: Pixels, size: tuple[int, int], detector: Detector) -> bool:
    """Return whether the detector finds something similar at the same place in the source, even with a low score.

    `found` is in pixels of the released image, whose size is `size` (width, height). To reproduce the conditions of
    that detection, only a window of the source is searched, at the scale of the released image and in the detection's
    orientation.
    """
    scale = np.array([source.shape[1], source.shape[0]]) / size
    start, end = np.array(found.box).reshape(2, 2)
    margin = max(_MARGIN * (end - start).max(), _LEAST_MARGIN)
    first = np.floor((start - margin) * scale).clip(0).astype(np.int64)
    last = np.ceil((end + margin) * scale).astype(np.int64)
    window = source[first[1] : last[1], first[0] : last[0]]
    sides = np.array([window.shape[1], window.shape[0]])
    shrunk = (sides / scale).round().clip(1).astype(np.int64)
    small = np.asarray(cv2.resize(window, shrunk.tolist(), interpolation=cv2.INTER_AREA), np.uint8)
    back = (*(sides / shrunk / scale).tolist(), *(first / scale).tolist())
    hits = search_turned(lenient(detector, SOURCE_SCORE), small, found.orientation)
    return any(iou(each.mapped(*back).box, found.box) >= SOURCE_IOU for each in hits)
