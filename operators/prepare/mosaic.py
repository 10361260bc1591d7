"""Redact parts of a photograph irreversibly: a coarse mosaic, smoothed, inside an outline."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

CELLS = 5
"""Mosaic cells along a region's longer side.

Of 3 to 8 cells, square or not, smoothed by interpolation or by a Gaussian, this is where neither MTCNN nor OpenCV's
Haar cascade found a face again at any of several sizes.
"""
FACE_EXPANSION = 1.6
"""Size of a face's ellipse relative to its box.

More than sqrt(2), so that the box's corners lie inside; 2.01 times the box's area.
"""
PLATE_MARGIN = 0.25
"""Margin around a plate's corners, as a share of the plate's height."""

_FAR = 1 << 20  # pixels; OpenCV draws with 32 bits, and a detector's file may return any number


@dataclass(frozen=True)
class Patch:
    """A part of an image: the pixels of `mask` (h, w) bool in the window whose top left corner is (x, y).

    The window is the tightest one around the mask, and lies inside the image.
    """

    x: int
    y: int
    mask: NDArray[np.bool_]

    @property
    def width(self) -> int:
        """Width of the window in pixels."""
        return int(self.mask.shape[1])

    @property
    def height(self) -> int:
        """Height of the window in pixels."""
        return int(self.mask.shape[0])


def _tight(x: int, y: int, mask: NDArray[np.bool_]) -> Patch | None:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    y0, y1, x0, x1 = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    return Patch(x + int(x0), y + int(y0), mask[y0:y1, x0:x1])


def ellipse(box: Sequence[float], shape: tuple[int, int], expansion: float = FACE_EXPANSION) -> Patch | None:
    """Return the ellipse around `box` (x0, y0, x1, y1), `expansion` times its size, clipped to `shape` (h, w).

    The box is rounded to whole pixels first, so that a detector's last bits do not move the border. None if it lies
    outside the image.
    """
    x0, y0, x1, y1 = (round(v) for v in box)
    center_x, center_y = (x0 + x1) / 2, (y0 + y1) / 2
    half_w, half_h = max(x1 - x0, 1) * expansion / 2, max(y1 - y0, 1) * expansion / 2
    left, top = max(math.floor(center_x - half_w), 0), max(math.floor(center_y - half_h), 0)
    right = min(math.ceil(center_x + half_w), shape[1])
    bottom = min(math.ceil(center_y + half_h), shape[0])
    if left >= right or top >= bottom:
        return None
    dx = (np.arange(left, right) + 0.5 - center_x) / half_w
    dy = (np.arange(top, bottom) + 0.5 - center_y) / half_h
    return _tight(left, top, dx[None, :] ** 2 + dy[:, None] ** 2 <= 1)


def polygon(
    points: Sequence[tuple[float, float]], shape: tuple[int, int], margin: float = PLATE_MARGIN
) -> Patch | None:
    """Return the convex hull of `points` (x, y), grown on every side by `margin` times its shorter side, clipped.

    Points are rounded to whole pixels first; none is taken to be farther away than any image is wide. None if it lies
    outside the image of `shape` (h, w).
    """
    corners = np.array([[round(min(max(v, -_FAR), _FAR)) for v in point] for point in points], np.int32)
    (_, sides, _) = cv2.minAreaRect(corners)
    grow = math.ceil(margin * min(sides))
    squares = [corners + np.array((dx, dy)) for dx in (-grow, grow) for dy in (-grow, grow)]
    hull = cv2.convexHull(np.concatenate(squares).astype(np.int32)).reshape(-1, 2)
    left, top = (int(v) for v in np.maximum(hull.min(axis=0), 0))
    right = min(int(hull[:, 0].max()) + 1, shape[1])
    bottom = min(int(hull[:, 1].max()) + 1, shape[0])
    if left >= right or top >= bottom:
        return None
    canvas = np.zeros((bottom - top, right - left), np.uint8)
    cv2.fillConvexPoly(canvas, hull - (left, top), 1)
    return _tight(left, top, canvas.astype(bool))


def rectangle(x: int, y: int, width: int, height: int, shape: tuple[int, int]) -> Patch | None:
    """Return the rectangle clipped to the image of `shape` (h, w); None if it lies outside."""
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + width, shape[1]), min(y + height, shape[0])
    if left >= right or top >= bottom:
        return None
    return Patch(left, top, np.ones((bottom - top, right - left), bool))


def mosaic_size(width: int, height: int, cells: int = CELLS) -> tuple[int, int]:
    """Return the columns and rows of cells in the mosaic of a window of `width` x `height` pixels."""
    longest = max(height, width)
    columns, rows = (min(max(round(cells * side / longest), 1), max(side // 2, 1)) for side in (width, height))
    return columns, rows


def mosaic(window: Pixels, cells: int = CELLS) -> Pixels:
    """Reduce `window`, (h, w, 3) uint8, to at most `cells` x `cells` mean colors, then interpolate to its size.

    The result depends on those means alone. A cell has at least two pixels a side if the window does.
    """
    height, width = window.shape[:2]
    means = cv2.resize(window, mosaic_size(width, height, cells), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(means, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def redact_patches(image: Pixels, patches: Iterable[Patch]) -> Pixels:
    """Return a copy of `image` (H, W, 3) uint8 with a smoothed mosaic in every patch; other pixels are unchanged.

    Each mosaic is made from the image as given, not from an earlier patch's result. Where patches overlap, the last one
    wins.
    """
    result = image.copy()
    for patch in patches:
        rows, columns = slice(patch.y, patch.y + patch.height), slice(patch.x, patch.x + patch.width)
        result[rows, columns][patch.mask] = mosaic(image[rows, columns])[patch.mask]
    return result
