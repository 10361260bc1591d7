"""Greedy non-maximum suppression of boxes, with ties in input order."""

import numpy as np
from numpy.typing import NDArray


def nms(boxes: NDArray[np.int64], scores: NDArray[np.float32], threshold: float) -> NDArray[np.int64]:
    """Indices of the boxes that stay, by score descending, ties by input order.

    A box falls when its IoU with a better one that stays is strictly over the threshold. IoU is worked out
    in float32 on areas (x1 - x0)(y1 - y0): a box one pixel wide or high has none, and the 0/0 of two such
    boxes is over no threshold, so that not even its twin suppresses it.

    Args:
        boxes: (N, 4) as x0, y0, x1, y1.
        scores: (N,).
        threshold: compared in double precision.
    """
    order = np.argsort(-scores.astype(np.float32), kind="stable")
    ranked = boxes.astype(np.float32)[order]
    x0, y0, x1, y1 = ranked.T
    areas = (x1 - x0) * (y1 - y0)
    alive = np.ones(order.size, dtype=np.bool_)
    for index in range(order.size):
        if not alive[index]:
            continue
        rest = slice(index + 1, None)
        width = np.maximum(np.minimum(x1[index], x1[rest]) - np.maximum(x0[index], x0[rest]), np.float32(0))
        height = np.maximum(np.minimum(y1[index], y1[rest]) - np.maximum(y0[index], y0[rest]), np.float32(0))
        shared = width * height
        with np.errstate(invalid="ignore", divide="ignore"):
            overlap = shared / (areas[index] + areas[rest] - shared)
        alive[rest] &= ~(overlap.astype(np.float64) > threshold)
    return order[alive]
