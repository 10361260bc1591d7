"""Bounding boxes of masks as inclusive pixel extremes (x0, y0, x1, y1), as in the reference code."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Box = tuple[int, int, int, int]


def mask_boxes(masks: Tensor) -> Tensor:
    """Return the boxes of masks (N, h, w) bool as x0, y0, x1, y1, both ends inclusive, (N, 4) int64 on their device.

    The box of an empty mask is all zeros.
    """
    return occupied_boxes(masks.any(dim=2), masks.any(dim=1))


def occupied_boxes(rows: Tensor, columns: Tensor) -> Tensor:
    """Compute `mask_boxes` from the rows (N, h) and columns (N, w) bool that contain pixels of each mask."""
    x0, x1 = _extremes(columns)
    y0, y1 = _extremes(rows)
    return torch.stack([x0, y0, x1, y1], dim=1) * rows.any(dim=1, keepdim=True)


def box_of(mask: NDArray[np.bool_]) -> Box:
    """Return the box of a single mask (h, w) bool, as in `mask_boxes`."""
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return 0, 0, 0, 0
    columns = np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def xyxy_to_xywh(box: Box) -> Box:
    """Convert an inclusive box to (x, y, x1 - x0, y1 - y0), so a box one pixel wide has width 0 (reference code)."""
    x0, y0, x1, y1 = box
    return x0, y0, x1 - x0, y1 - y0


def _extremes(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positions of the first and last True in each row of (N, L) bool.

    A row without True gets (0, L - 1).
    """
    marks = occupied.to(torch.uint8)
    first = marks.argmax(dim=1)
    last = marks.shape[1] - 1 - marks.flip(1).argmax(dim=1)
    return first, last
