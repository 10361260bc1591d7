"""Matching of two sets of masks of one image by their overlap."""

from collections.abc import Mapping, Sequence
from typing import Any

from pycocotools import mask as coco

Rles = Sequence[Mapping[str, Any]]
"""Compressed masks of the same size, in pycocotools' format."""

LEAST_IOU = 0.1
"""Minimum IoU of two masks that `best_matches` pairs."""


def best_matches(rows: Rles, columns: Rles) -> list[tuple[int, int, float]]:
    """Pair masks greedily by IoU, which must be at least `LEAST_IOU`. Return (row, column, IoU), best first.

    No mask is in more than one pair.
    """
    matrix = iou(rows, columns)
    candidates = sorted(
        (-float(matrix[row][column]), row, column)
        for row in range(len(rows))
        for column in range(len(columns))
        if matrix[row][column] >= LEAST_IOU
    )
    matches: list[tuple[int, int, float]] = []
    used_rows: set[int] = set()
    used_columns: set[int] = set()
    for value, row, column in candidates:
        if row not in used_rows and column not in used_columns:
            matches.append((row, column, -value))
            used_rows.add(row)
            used_columns.add(column)
    return matches


def iou(rows: Rles, columns: Rles) -> Any:
    """Return the IoU of all pairs, (rows, columns) float64, or an empty result if either input is empty."""
    return coco.iou(list(rows), list(columns), [0] * len(columns))
