"""Boundaries of label maps, edge thinning, and one-to-one matching of edge pixels within a tolerance.

The functions follow the BSDS benchmark (Martin, Fowlkes and Malik, PAMI 2004; Arbeláez et al., PAMI 2011).
"""

from collections.abc import Collection

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching, min_weight_full_bipartite_matching

Edges = NDArray[np.bool_]
"""Edge pixels, (height, width) bool."""

LabelMap = NDArray[np.int64]
"""A number for each pixel, (height, width) int64."""

_NEIGHBORS = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))
"""Offsets (dy, dx) of a pixel's neighbors in Guo and Hall's order: east first, then counterclockwise."""


def label_boundaries(labels: LabelMap) -> Edges:
    """Return the thinned boundaries between the numbers of a label map, (height, width).

    A pixel is on a boundary if its neighbor to the right, below, or diagonally below right has a different number.
    """
    edges = np.zeros(labels.shape, dtype=np.bool_)
    edges[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edges[:-1] |= labels[:-1] != labels[1:]
    edges[:-1, :-1] |= labels[:-1, :-1] != labels[1:, 1:]
    return thin(edges)


def near_numbers(labels: LabelMap, numbers: Collection[int], distance: float) -> Edges:
    """Return the pixels of a label map with one of these numbers, and the pixels within `distance` pixels of them."""
    there = np.isin(labels, list(numbers))
    if not there.any():
        return there
    return cv2.distanceTransform((~there).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= distance


def thin(edges: Edges) -> Edges:
    """Thin edges to lines of one pixel, keeping ends and connections (Guo and Hall, CACM 32(3), 1989, algorithm A1).

    The result equals MATLAB's `bwmorph(edges, "thin", inf)`, which the benchmark uses.
    """
    thinned = edges.astype(np.uint8)
    while True:
        before = thinned
        for removable in _REMOVABLE:
            codes = cv2.filter2D(thinned, cv2.CV_16U, _WEIGHTS, borderType=cv2.BORDER_CONSTANT)
            thinned = thinned & ~removable[codes]
        if np.array_equal(before, thinned):
            return thinned.view(np.bool_)


def match_edges(found: Edges, truth: Edges, tolerance: float) -> tuple[Edges, Edges]:
    """Match pixels of found edges one to one with pixels of true edges, at most `tolerance` pixels apart.

    The matching contains as many pairs as possible. Among all such matchings, it has the minimum total distance.
    Returns two masks, (height, width) bool: the found pixels and the true pixels that are matched.
    """
    count, others = int(np.count_nonzero(found)), int(np.count_nonzero(truth))
    if count > others:  # the run time grows with the first argument
        return match_edges(truth, found, tolerance)[::-1]
    rows, columns, distances = _pairs(found, truth, tolerance)
    # A pixel of the first side may remain unmatched, but this costs more than any possible saving in distance.
    alone = np.arange(count)
    costs = np.concatenate([distances + 1, np.full(count, count * (tolerance + 1) + 1)])
    graph = csr_array(
        (costs, (np.concatenate([rows, alone]), np.concatenate([columns, others + alone]))),
        shape=(count, others + count),
    )
    partner = min_weight_full_bipartite_matching(graph)[1] if count else alone
    return _marked(found, np.flatnonzero(partner < others)), _marked(truth, partner[partner < others])


def count_matches(found: Edges, truth: Edges, tolerance: float) -> int:
    """Return the number of pairs that `match_edges` finds. This is many times faster, because it ignores distances."""
    count, others = int(np.count_nonzero(found)), int(np.count_nonzero(truth))
    if count > others:
        return count_matches(truth, found, tolerance)
    rows, columns, _ = _pairs(found, truth, tolerance)
    graph = csr_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(count, others))
    return int(np.count_nonzero(maximum_bipartite_matching(graph, perm_type="column") >= 0))


def _pairs(
    found: Edges, truth: Edges, tolerance: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Find all pairs of a found pixel and a true pixel within the tolerance.

    Returns three arrays: the indices of the found pixels and of the true pixels, both in row order, and the distances.
    """
    height, width = found.shape
    reach = int(tolerance)
    numbers = np.full((height + 2 * reach, width + 2 * reach), -1, dtype=np.int64)
    inner = numbers[reach : reach + height, reach : reach + width]
    inner[truth] = np.arange(np.count_nonzero(truth))
    y, x = np.nonzero(found)
    rows: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    columns: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    distances: list[NDArray[np.float64]] = [np.zeros(0)]
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            distance = float(np.hypot(down, right))
            if distance <= tolerance:
                near = numbers[y + down + reach, x + right + reach]
                pairs = np.flatnonzero(near >= 0)
                rows.append(pairs)
                columns.append(near[pairs])
                distances.append(np.full(len(pairs), distance))
    return np.concatenate(rows), np.concatenate(columns), np.concatenate(distances)


def _marked(edges: Edges, chosen: NDArray[np.int64]) -> Edges:
    marked = np.zeros(edges.shape, dtype=np.bool_)
    y, x = np.nonzero(edges)
    marked[y[chosen], x[chosen]] = True
    return marked


def _removable() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return two lookup tables, (256,), one for each half of a thinning pass.

    A table states whether the pass removes a pixel, given the code of the pixel's neighbors.
    """
    codes = np.arange(256)
    x = [(codes >> bit & 1).astype(bool) for bit in range(8)]  # Guo and Hall's x1 to x8, indexed from 0
    around = [x[index % 8] for index in range(9)]
    crossings = sum((~around[i] & (around[i + 1] | around[i + 2])).astype(int) for i in range(0, 8, 2))
    first = sum((around[i] | around[i + 1]).astype(int) for i in range(0, 8, 2))
    second = sum((around[i + 1] | around[i + 2]).astype(int) for i in range(0, 8, 2))
    fewest = np.minimum(first, second)
    both = (crossings == 1) & (fewest >= 2) & (fewest <= 3)
    upper = ~((x[1] | x[2] | ~x[7]) & x[0])
    lower = ~((x[5] | x[6] | ~x[3]) & x[4])
    return (both & upper).astype(np.uint8), (both & lower).astype(np.uint8)


def _weights() -> NDArray[np.float32]:
    weights = np.zeros((3, 3), dtype=np.float32)
    for bit, (down, right) in enumerate(_NEIGHBORS):
        weights[1 + down, 1 + right] = 1 << bit
    return weights


_REMOVABLE = _removable()
_WEIGHTS = _weights()
