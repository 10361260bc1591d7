"""Search of a released image for faces and plates, which separates redacted detections from remaining ones.

A detection counts as redacted if a region in the image's row covers most of it and the pixels there are those of a
mosaic. The second condition is measured because a row may list a region that was never redacted: a mosaic of few cells,
fitted to its pixels, leaves much of them unexplained.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from segmint.catalogs.dataset.regions import DetectedRegion, Sighting
from segmint.model.detectors.detection import Box, Detection, Detector, iou
from segmint.operators.prepare.deidentify import outline
from segmint.operators.prepare.mosaic import mosaic, mosaic_size, rectangle, redact_patches
from segmint.operators.redactions import band_widths
from segmint.operators.rows import Row

COVERED = 0.75
"""Share of a detection that a region must cover.

A lower share would accept a face next to a redacted one. Full coverage is not required, because a detector may take a
mosaic for a face slightly larger than the region.
"""
ROUGHNESS = 4.0
"""Maximum gray-level difference (RMS) of pixels from the mosaic that fits them best, allowing for JPEG errors."""
SAME_IOU = 0.3
"""Minimum IoU at which two detectors' boxes count as one region. A face's box may or may not include the hair."""

_GRID = 48  # maximum sampled pixels per side of a detection
_CONTEXT_CELLS = 8
_MARGIN = 0.5
_CUTOUT_MARGIN = 1.0  # larger than a picture's: only the area around the region is sharp
_LEAST_MARGIN = 48  # pixels

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class RemainingDetection(DetectedRegion):
    """A detection in a released image; its box covers everything that would be redacted for it.

    `redacted` is true if it is inside a redacted region. After `merge_found`, `found_by` lists all detectors that found
    it, and `missed_by` those of its kind that searched the image without finding it.
    """

    redacted: bool
    found_by: tuple[Sighting, ...] = ()
    missed_by: tuple[str, ...] = ()

    @property
    def sightings(self) -> tuple[Sighting, ...]:
        """Detectors that found it, with their scores."""
        return self.found_by or (Sighting(self.detector, self.score),)


def search_release(row: Row, image: Pixels, detectors: Sequence[Detector]) -> list[RemainingDetection]:
    """Return the detections in `image`, (H, W, 3) uint8 RGB, the released image of a row of `images`."""
    shape = image.shape[0], image.shape[1]
    regions = _regions(row)
    gray = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
    found = []
    for detector in detectors:
        for detection in detector.detect(image):
            patch = outline(detection, shape, band=False)  # `segmint redact` makes no band
            if patch is None:
                continue
            box = patch.x, patch.y, patch.width, patch.height
            redacted = _is_redacted(detection, gray, regions)
            found.append(
                RemainingDetection(row["id"], detection.kind, detection.source, detection.score, *box, redacted)
            )
    return found


def merge_found(found: Sequence[RemainingDetection], searched: Sequence[Detector]) -> list[RemainingDetection]:
    """Merge detections of several detectors at the same place of one image; redacted ones are not compared.

    Detections of one kind are merged if their boxes overlap with an IoU of at least `SAME_IOU`. The merged detection
    has the first one's detector and score, and a box around all. `searched` are the detectors that searched the image.
    """
    merged: list[list[RemainingDetection]] = []
    for each in found:
        if each.redacted:
            continue
        near = [
            (iou(_box(same[0]), _box(each)), index)
            for index, same in enumerate(merged)
            if same[0].kind == each.kind and all(other.detector != each.detector for other in same)
        ]
        best, index = max(near, default=(0.0, 0))
        if best >= SAME_IOU:
            merged[index].append(each)
        else:
            merged.append([each])
    return [_merged(same, searched) for same in merged] + [each for each in found if each.redacted]


def picture(image: Pixels, found: RemainingDetection) -> bytes:
    """Return a JPEG of `image` with a detection framed in red and the rest, beyond a margin, as a coarse mosaic."""
    height, width = image.shape[:2]
    margin = round(_MARGIN * max(found.w, found.h))
    rows = slice(max(found.y - margin, 0), min(found.y + found.h + margin, height))
    columns = slice(max(found.x - margin, 0), min(found.x + found.w + margin, width))
    shown = mosaic(image, _CONTEXT_CELLS)
    shown[rows, columns] = image[rows, columns]
    corners = (found.x, found.y), (found.x + found.w - 1, found.y + found.h - 1)
    cv2.rectangle(shown, *corners, (255, 0, 0), max(1, round(max(height, width) / 500)))
    return _encoded(shown)


def cutouts(image: Pixels, found: Sequence[RemainingDetection]) -> Iterator[bytes]:
    """Yield a JPEG of the part of `image` around each detection, framed in red; all detections are blurred in each."""
    height, width = image.shape[:2]
    patches = [rectangle(each.x, each.y, each.w, each.h, (height, width)) for each in found]
    blurred = redact_patches(image, [patch for patch in patches if patch is not None])
    for each in found:
        margin = max(round(_CUTOUT_MARGIN * max(each.w, each.h)), _LEAST_MARGIN)
        left, top = max(each.x - margin, 0), max(each.y - margin, 0)
        shown = blurred[top : each.y + each.h + margin, left : each.x + each.w + margin].copy()
        corners = (each.x - left, each.y - top), (each.x + each.w - 1 - left, each.y + each.h - 1 - top)
        cv2.rectangle(shown, *corners, (255, 0, 0), max(1, round(max(shown.shape[:2]) / 200)))
        yield _encoded(shown)


def _merged(same: Sequence[RemainingDetection], searched: Sequence[Detector]) -> RemainingDetection:
    first = same[0]
    x, y = min(each.x for each in same), min(each.y for each in same)
    names = {each.detector for each in same}
    return replace(
        first,
        x=x,
        y=y,
        w=max(each.x + each.w for each in same) - x,
        h=max(each.y + each.h for each in same) - y,
        found_by=tuple(Sighting(each.detector, each.score) for each in same),
        missed_by=tuple(each.name for each in searched if each.kind == first.kind and each.name not in names),
    )


def _box(found: RemainingDetection) -> Box:
    return found.x, found.y, found.x + found.w, found.y + found.h


def _encoded(shown: Pixels) -> bytes:
    encoded: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(shown), quality=90, colorspace="RGB", colorsubsampling="420"
    )
    return encoded


@dataclass(frozen=True)
class _Region:
    """A redacted region in pixels of the released image, and the cells of its mosaic.

    Its band, `band_x` wide at the left and right and `band_y` at the top and bottom, is not pure mosaic.
    """

    x: float
    y: float
    w: float
    h: float
    band_x: float
    band_y: float
    columns: int
    rows: int

    @classmethod
    def of(cls, region: Row, row: Row) -> "_Region":
        across, down = row["width"] / row["source_width"], row["height"] / row["source_height"]
        cells = mosaic_size(region["w"], region["h"])
        box = region["x"] * across, region["y"] * down, region["w"] * across, region["h"] * down
        band_x, band_y = band_widths(region)
        return cls(*box, band_x * across, band_y * down, *cells)

    def holds(self, x: Floats, y: Floats) -> Bools:
        """Return whether each position is inside the region but not in its band."""
        right, bottom = self.x + self.w - self.band_x, self.y + self.h - self.band_y
        return (x >= self.x + self.band_x) & (x <= right) & (y >= self.y + self.band_y) & (y <= bottom)

    def roughness(self, x: Floats, y: Floats, gray: Floats) -> float:
        """Return how far the pixels at (x, y) deviate from this region's best-fitting mosaic, in gray levels (RMS).

        The mosaic is linear between the centers of its cells, so the best-fitting cell values solve a least-squares
        problem. The result is infinite if there are too few pixels.
        """
        across = _hats((x - self.x) / self.w * self.columns - 0.5, self.columns)
        down = _hats((y - self.y) / self.h * self.rows - 0.5, self.rows)
        weights = (down[:, :, None] * across[:, None, :]).reshape(len(x), -1)
        cells, _, rank, _ = np.linalg.lstsq(weights, gray, rcond=None)
        if len(x) < 2 * rank:
            return float("inf")
        return float(np.sqrt(np.square(gray - weights @ cells).sum() / (len(x) - rank)))


def _regions(row: Row) -> list[_Region]:
    """Return the regions of a row that can be located in its released image."""
    if not row["source_width"] or not row["source_height"]:
        return []
    known = (region for region in row["regions"] or () if region and all(region[side] is not None for side in "xywh"))
    return [_Region.of(region, row) for region in known if region["w"] > 0 and region["h"] > 0]


def _hats(places: Floats, cells: int) -> Floats:
    """Return linear interpolation weights, (N, cells), at positions in cells; constant beyond the outermost cells."""
    inside = np.clip(places, 0, cells - 1)
    weights: Floats = np.clip(1 - np.abs(inside[:, None] - np.arange(cells)), 0, None)
    return weights


def _is_redacted(detection: Detection, gray: Pixels, regions: Sequence[_Region]) -> bool:
    x, y = _pixels_of(detection, gray.shape[0], gray.shape[1])
    if not len(x):
        return False
    values = gray[y, x].astype(np.float64)
    across, down = (side.astype(np.float64) + 0.5 for side in (x, y))
    for index, region in enumerate(regions):
        held = region.holds(across, down)
        if held.mean() < COVERED:
            continue
        for later in regions[index + 1 :]:  # where regions overlap, the later one's mosaic is visible
            held &= ~later.holds(across, down)
        if held.mean() >= COVERED / 2 and region.roughness(across[held], down[held], values[held]) <= ROUGHNESS:
            return True
    return False


def _pixels_of(detection: Detection, height: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return evenly spaced pixels of a detection: in the ellipse inside a face's box, or in a plate's quad."""
    x0, y0, x1, y1 = detection.box
    left, right = max(int(np.floor(x0)), 0), min(int(np.ceil(x1)), width)
    top, bottom = max(int(np.floor(y0)), 0), min(int(np.ceil(y1)), height)
    if left >= right or top >= bottom:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    columns = np.unique(np.linspace(left, right - 1, _GRID).round().astype(np.int64))
    rows = np.unique(np.linspace(top, bottom - 1, _GRID).round().astype(np.int64))
    grid_x, grid_y = np.meshgrid(columns, rows)
    x, y = grid_x.ravel(), grid_y.ravel()
    center_x, center_y = x.astype(np.float64) + 0.5, y.astype(np.float64) + 0.5
    if detection.kind == "face":
        across = (center_x - (x0 + x1) / 2) / max((x1 - x0) / 2, 0.5)
        down = (center_y - (y0 + y1) / 2) / max((y1 - y0) / 2, 0.5)
        inside = across**2 + down**2 <= 1
    else:
        inside = _in_quad(center_x, center_y, detection)
    return x[inside], y[inside]


def _in_quad(x: Floats, y: Floats, detection: Detection) -> Bools:
    if detection.quad is None:
        return np.ones(len(x), bool)
    corners = np.array(detection.quad)
    sides = np.roll(corners, -1, axis=0) - corners
    turns = [dx * (y - cy) - dy * (x - cx) for (cx, cy), (dx, dy) in zip(corners, sides, strict=True)]
    return np.asarray(np.all(np.array(turns) >= 0, axis=0) | np.all(np.array(turns) <= 0, axis=0), bool)
