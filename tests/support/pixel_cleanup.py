"""Cleanup of masks by their pixels, with OpenCV's components: the plain formula beside `candidates.clean_patch`."""

from dataclasses import dataclass

import cv2
import numpy as np

from segmint.model.automatic.candidates import CleanedPatch, MaskPatch
from segmint.model.automatic.crops import box_of


@dataclass(frozen=True)
class CleanedMask:
    """Result of cleaning one mask (h, w) bool. `CleanedPatch` explains the fields."""

    mask: np.ndarray | None
    holes: bool
    islands: bool

    @property
    def changed(self) -> bool:
        """True if any hole or island was smaller than the limit, even if the mask didn't change."""
        return self.holes or self.islands


def clean(mask: np.ndarray, min_area: int, keep_largest: bool) -> CleanedMask:
    """Fill the holes of a mask (h, w) bool, and then remove its islands, as `clean_patch` explains."""
    filled, holes = fill_holes(mask, min_area)
    kept, islands = remove_islands(filled, min_area, keep_largest)
    return CleanedMask(kept, holes, islands)


def clean_in_window(patch: MaskPatch, frame_size: tuple[int, int], min_area: int, keep_largest: bool) -> CleanedPatch:
    """Clean a mask as `clean_patch` did before it labeled runs: all pixels of a window with a margin around the patch.

    The window starts at even pixels, because OpenCV orders its labels by squares of 2x2.
    """
    (x, y), (height, width) = patch.corner, patch.shape
    across, down = -(-min_area // height), -(-min_area // width)
    x0, y0 = max(0, x - across) // 2 * 2, max(0, y - down) // 2 * 2
    x1, y1 = min(frame_size[1], x + width + across), min(frame_size[0], y + height + down)
    mask = np.zeros((y1 - y0, x1 - x0), dtype=np.bool_)
    mask[y - y0 : y - y0 + height, x - x0 : x - x0 + width] = patch.window()
    cleaned = clean(mask, min_area, keep_largest)
    if cleaned.mask is None or not cleaned.changed:
        return CleanedPatch(None if cleaned.mask is None else patch, cleaned.holes, cleaned.islands)
    return CleanedPatch(MaskPatch.pack(cleaned.mask, box_of(cleaned.mask), (x0, y0)), cleaned.holes, cleaned.islands)


def fill_holes(mask: np.ndarray, min_area: int) -> tuple[np.ndarray, bool]:
    """Fill the small holes of a mask. Also return whether there were any."""
    labels, areas = pixel_components(~mask)
    small = areas < min_area
    small[0] = False
    if not small.any():
        return mask, False
    return mask | small[labels], True


def remove_islands(mask: np.ndarray, min_area: int, keep_largest: bool) -> tuple[np.ndarray | None, bool]:
    """Remove the small islands of a mask, as described in `clean_patch`. Also return whether there were any."""
    labels, areas = pixel_components(mask)
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


def pixel_components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label the 8-connected components, (h, w) with 0 for background, and return the area of each label, (N + 1,)."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return labels.astype(np.int32, copy=False), stats[:, cv2.CC_STAT_AREA].astype(np.int32)
