"""Simulated annotator's clicks for the SAM paper's interactive evaluation (Appendix D).

Regions are (H, W) bool. Image borders count as borders of a region. docs/decisions/0020-clicks.md explains why.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from segmint.model.training.noise import draw_keys, highest_pixels

Bools = NDArray[np.bool_]


class Click(NamedTuple):
    """A click on a pixel, with coordinates counted from 0. `label` is 1 for foreground and 0 for background."""

    x: int
    y: int
    label: int


class DeepestPixel(NamedTuple):
    """The pixel of a region that is farthest from its boundary, and its distance from the boundary in pixels."""

    x: int
    y: int
    distance: float


def deepest_pixel(region: Bools, without: Sequence[Click] = ()) -> DeepestPixel | None:
    """Return the pixel farthest from the region's boundary. If there are several, return the topmost, then leftmost.

    The distance is the Euclidean distance to the nearest pixel outside the region or the image. Pixels in `without`
    belong to the region but are never returned. Returns None if no pixel remains.
    """
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    if not rows.size:
        return None
    top, left = int(rows[0]), int(columns[0])
    # No pixel around a region's bounding box belongs to it, so pixels farther out can't be nearer.
    part = np.pad(region[top : rows[-1] + 1, left : columns[-1] + 1].astype(np.uint8), 1)
    distances = cv2.distanceTransform(part, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    for click in without:
        x, y = click.x - left, click.y - top
        if 0 <= y < distances.shape[0] and 0 <= x < distances.shape[1]:
            distances[y, x] = 0
    place = int(distances.argmax())
    y, x = divmod(place, distances.shape[1])
    distance = float(distances[y, x])
    return DeepestPixel(left + x, top + y, distance) if distance > 0 else None


def center_click(mask: Bools) -> Click:
    """Return the first click, on the pixel farthest from the mask's boundary. Raise ValueError for an empty mask."""
    found = deepest_pixel(mask)
    if found is None:
        raise ValueError("the mask has no pixels: expected one or more")
    return Click(found.x, found.y, 1)


def random_click(mask: Bools, seed: int, number: int) -> Click:
    """Return a click on a random pixel of the mask. `seed` and the mask's `number`, each 0 to 2^63 - 1, determine it.

    Raises ValueError for an empty mask.
    """
    place = int(highest_pixels(torch.from_numpy(mask[None]), draw_keys(seed, 0, [number], 0))[0])
    if place < 0:
        raise ValueError("the mask has no pixels: expected one or more")
    y, x = divmod(place, mask.shape[1])
    return Click(x, y, 1)


def next_click(predicted: Bools, truth: Bools, before: Sequence[Click]) -> Click | None:
    """Return the next click, on the deepest pixel that the prediction gets wrong, or None if there is no such pixel.

    There are two kinds of errors: pixels that the prediction misses, and pixels that it adds. The click goes to the
    kind whose deepest pixel is farther from the boundary. If both are equally far, it goes to the added pixels. Pixels
    that were clicked `before` are excluded.
    """
    missing = deepest_pixel(truth & ~predicted, before)
    too_much = deepest_pixel(predicted & ~truth, before)
    if missing is not None and (too_much is None or missing.distance > too_much.distance):
        return Click(missing.x, missing.y, 1)
    return None if too_much is None else Click(too_much.x, too_much.y, 0)
