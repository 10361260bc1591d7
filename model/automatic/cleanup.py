"""Cleanup of masks, which fills small holes and removes small islands (8-connected components)."""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from segmint.model.automatic.boxes import box_of
from segmint.model.automatic.candidates import MaskPatch


@dataclass(frozen=True)
class CleanedMask:
    """Result of cleaning one mask.

    Attributes:
        mask: (h, w) bool. None if all islands were too small and the largest one wasn't kept.
        holes: True if a hole was smaller than the limit and was filled.
        islands: True if an island was smaller than the limit, even if the mask didn't change.
    """

    mask: NDArray[np.bool_] | None
    holes: bool
    islands: bool

    @property
    def changed(self) -> bool:
        """True if any hole or island was smaller than the limit, even if the mask didn't change."""
        return self.holes or self.islands


class CleanedPatch(NamedTuple):
    """Result of cleaning one mask in the frame. `CleanedMask` explains the fields."""

    patch: MaskPatch | None
    holes: bool
    islands: bool


def clean_patch(patch: MaskPatch, frame_size: tuple[int, int], min_area: int, keep_largest: bool) -> CleanedPatch:
    """Clean a mask in a frame of (height, width) like `clean`.

    This processes only a window around the patch. On each side that isn't a side of the frame, the window includes a
    margin of background that forms one connected piece of at least `min_area` pixels. As a result, background that
    continues outside the window never looks like a small hole. The window starts at even pixels, because OpenCV orders
    its labels by squares of 2x2.
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


def clean(mask: NDArray[np.bool_], min_area: int, keep_largest: bool) -> CleanedMask:
    """Fill holes and then remove islands that contain fewer than `min_area` pixels.

    Background that is enclosed by the mask and the image's border counts as a hole, too. If all islands are small and
    `keep_largest` is set, the largest island stays (the first one in OpenCV's label order). Without `keep_largest`, the
    mask is dropped, as in SA-1B (SAM paper, Appendix B). Empty masks are always dropped.
    """
    filled, holes = fill_holes(mask, min_area)
    kept, islands = remove_islands(filled, min_area, keep_largest)
    return CleanedMask(kept, holes, islands)


def fill_holes(mask: NDArray[np.bool_], min_area: int) -> tuple[NDArray[np.bool_], bool]:
    """Fill the small holes of a mask. Also return whether there were any."""
    labels, areas = _components(~mask)
    small = areas < min_area
    small[0] = False
    if not small.any():
        return mask, False
    return mask | small[labels], True


def remove_islands(mask: NDArray[np.bool_], min_area: int, keep_largest: bool) -> tuple[NDArray[np.bool_] | None, bool]:
    """Remove the small islands of a mask, as described in `clean`. Also return whether there were any."""
    labels, areas = _components(mask)
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


def _components(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Label the 8-connected components, (h, w) with 0 for background, and return the area of each label, (N + 1,)."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return labels.astype(np.int32, copy=False), stats[:, cv2.CC_STAT_AREA].astype(np.int32)
