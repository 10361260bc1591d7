"""Clean-up of masks: small holes are filled, small islands removed (8-connected components)."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Cleaned:
    """What clean-up made of a mask.

    Attributes:
        mask: (h, w) bool, or None when no island was large enough and the largest was not to be kept.
        changed: whether any hole or island was under the limit; the mask may be the same all the same.
    """

    mask: NDArray[np.bool_] | None
    changed: bool


def clean(mask: NDArray[np.bool_], min_area: int, keep_largest: bool) -> Cleaned:
    """Fills holes of fewer than `min_area` pixels, then removes islands of fewer.

    A piece of background cut off against the image's border is a hole. When every island is small,
    `keep_largest` leaves the largest (the first in OpenCV's label order), and otherwise the mask is dropped,
    as SA-1B's were (SAM paper, Appendix B); without it an empty mask is dropped too.
    """
    filled, holes = fill_holes(mask, min_area)
    kept, islands = _remove_islands(filled, min_area, keep_largest)
    return Cleaned(kept, holes or islands)


def fill_holes(mask: NDArray[np.bool_], min_area: int) -> tuple[NDArray[np.bool_], bool]:
    """The mask without its small holes, and whether there were any."""
    labels, areas = _components(~mask)
    small = areas < min_area
    small[0] = False
    if not small.any():
        return mask, False
    return mask | small[labels], True


def _remove_islands(
    mask: NDArray[np.bool_], min_area: int, keep_largest: bool
) -> tuple[NDArray[np.bool_] | None, bool]:
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
    """Labels of the 8-connected components, (h, w) with 0 for background, and areas by label, (N + 1,)."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return labels.astype(np.int32, copy=False), stats[:, cv2.CC_STAT_AREA].astype(np.int32)
