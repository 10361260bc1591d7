"""Cleanup of masks, which fills small holes and removes small islands (8-connected components)."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from segmint.model.automatic.candidates import MaskPatch

Ints = NDArray[np.int64]


class CleanedPatch(NamedTuple):
    """Result of cleaning one mask in the frame.

    Attributes:
        patch: the mask. None if all islands were too small and the largest one wasn't kept.
        holes: True if a hole was smaller than the limit and was filled.
        islands: True if an island was smaller than the limit, even if the mask didn't change.
    """

    patch: MaskPatch | None
    holes: bool
    islands: bool


class _Runs(NamedTuple):
    """Vertical runs of pixels in some columns of the frame, in column-major order.

    Pixel (x, y) is at position `(x - first column) * (frame height + 1) + y`, so runs of different columns never touch.

    Attributes:
        starts: (R,) position of the first pixel of each run.
        ends: (R,) position after the last pixel of each run.
    """

    starts: Ints
    ends: Ints


def clean_patch(patch: MaskPatch, frame_size: tuple[int, int], min_area: int, keep_largest: bool) -> CleanedPatch:
    """Fill holes and then remove islands that contain fewer than `min_area` pixels, in a frame of (height, width).

    Background that is enclosed by the mask and the frame's border counts as a hole, too. If all islands are small and
    `keep_largest` is set, the largest island stays (the first one in OpenCV's label order, which is that of the
    reference code). Without `keep_largest`, the mask is dropped, as in SA-1B (SAM paper, Appendix B). An empty mask is
    dropped unless `keep_largest` is set.

    Components are labeled on runs of pixels, and only in the columns of the patch and in a margin that contains at
    least `min_area` pixels on each side, unless it reaches the side of the frame. As a result, background that
    continues outside these columns never looks like a small hole.
    """
    height, width = frame_size
    margin = -(-min_area // height)
    first = max(0, patch.corner[0] - margin)
    columns = min(width, patch.corner[0] + patch.shape[1] + margin) - first
    places = patch.places(height + 1) - first * (height + 1)
    mask = _Runs(places[0::2], places[1::2])

    background = _inverted(mask, columns, height)
    labels, areas = _components(background, height)
    small = areas < min_area
    holes = bool(small.any())
    if holes:
        stays = ~small[labels]
        mask = _inverted(_Runs(background.starts[stays], background.ends[stays]), columns, height)

    labels, areas = _components(mask, height)
    keep = areas >= min_area
    islands = not bool(keep.all())
    if not keep.any():
        if not keep_largest:
            return CleanedPatch(None, holes, islands)
        if islands:
            keep[_first_largest(mask, labels, areas, first, frame_size)] = True
    if not (holes or islands):
        return CleanedPatch(patch, holes, islands)
    stays = keep[labels]
    return CleanedPatch(_packed(_Runs(mask.starts[stays], mask.ends[stays]), first, height), holes, islands)


def _inverted(runs: _Runs, columns: int, height: int) -> _Runs:
    """Return the runs of all other pixels of `columns` whole columns."""
    tops = np.arange(columns) * (height + 1)
    starts = np.sort(np.concatenate((tops, runs.ends)), kind="stable")  # fast, because both parts are sorted
    ends = np.sort(np.concatenate((runs.starts, tops + height)), kind="stable")
    filled = starts < ends
    return _Runs(starts[filled], ends[filled])


def _components(runs: _Runs, height: int) -> tuple[Ints, Ints]:
    """Label the 8-connected components, and return each run's label, (R,), and each component's area, (N,).

    Runs in neighboring columns are connected if they overlap or touch at a corner.
    """
    stride = height + 1
    before = np.searchsorted(runs.ends, runs.starts - stride, side="left")
    after = np.searchsorted(runs.starts, runs.ends - stride, side="right")
    touching = after - before  # number of runs in the column to the left that each run touches
    right = np.repeat(np.arange(touching.size), touching)
    left = np.arange(right.size) - np.repeat(np.cumsum(touching) - touching - before, touching)
    roots = _least_connected(touching.size, left, right)
    is_root = roots == np.arange(roots.size)
    labels = (np.cumsum(is_root) - 1)[roots]
    areas = np.bincount(labels, runs.ends - runs.starts, minlength=int(is_root.sum()))
    return labels, areas.astype(np.int64)


def _least_connected(count: int, one: Ints, other: Ints) -> Ints:
    """Return the smallest node of each node's component, (count,), in a graph with edges from `one` to `other`.

    Each round links the root of every tree to the smallest root that an edge leads to, and then makes all nodes point
    to their root.
    """
    roots = np.arange(count)
    while one.size:
        np.minimum.at(roots, np.maximum(one, other), np.minimum(one, other))
        farther = roots[roots]
        while not np.array_equal(farther, roots):
            roots, farther = farther, farther[farther]
        one, other = roots[one], roots[other]
        apart = one != other
        one, other = one[apart], other[apart]
    return roots


def _first_largest(runs: _Runs, labels: Ints, areas: Ints, first: int, frame_size: tuple[int, int]) -> int:
    """Return the label of the largest component. OpenCV orders components of equal area by squares of 2x2 pixels."""
    height, width = frame_size
    largest = np.flatnonzero(areas[labels] == areas.max())
    column, row = np.divmod(runs.starts[largest], height + 1)
    square = row // 2 * width + (column + first) // 2
    return int(labels[largest[square.argmin()]])


def _packed(runs: _Runs, first: int, height: int) -> MaskPatch:
    """Convert runs, of which there is at least one, to a mask in the smallest window that contains them."""
    column, row = np.divmod(runs.starts, height + 1)
    end = row + (runs.ends - runs.starts)
    x, y = int(column[0]), int(row.min())
    shape = int(end.max()) - y, int(column[-1]) - x + 1
    changes = np.repeat((column - x) * (shape[0] + 1) - y, 2)
    changes[0::2] += row
    changes[1::2] += end
    return MaskPatch((first + x, y), shape, changes)


def fill_holes(mask: NDArray[np.bool_], min_area: int) -> tuple[NDArray[np.bool_], bool]:
    """Fill the small holes of a mask. Also return whether there were any."""
    labels, areas = _pixel_components(~mask)
    small = areas < min_area
    small[0] = False
    if not small.any():
        return mask, False
    return mask | small[labels], True


def remove_islands(mask: NDArray[np.bool_], min_area: int, keep_largest: bool) -> tuple[NDArray[np.bool_] | None, bool]:
    """Remove the small islands of a mask, as described in `clean_patch`. Also return whether there were any."""
    labels, areas = _pixel_components(mask)
    keep = areas >= min_area
    keep[0] = False
    has_small = int(keep.sum()) < keep.size - 1
    if not keep.any():
        if not keep_largest:
            return None, has_small
        if not has_small:
            return mask, False
        keep[1 + int(areas[1:].argmax())] = True
    if not has_small:
        return mask, False
    return keep[labels], True


def _pixel_components(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Label the 8-connected components, (h, w) with 0 for background, and return the area of each label, (N + 1,)."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return labels.astype(np.int32, copy=False), stats[:, cv2.CC_STAT_AREA].astype(np.int32)
