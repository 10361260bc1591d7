"""Pairs of views with near hashes, as a table of values and the entries that have them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from segmint.operators.similar.hashes import MIRROR, NO_HASH, VIEWS
from segmint.operators.similar.near import Hashes, Positions, near_pairs

_MANY = 64
"""Pairs of entries of a value and those near it, above which they are not listed one by one."""

_LISTED = 1 << 20  # pairs of entries in one chunk
NO_CROWD = -1


@dataclass(frozen=True)
class Candidates:
    """Hashes that several rows have, or that are near another row's, and which of them are near each other.

    An entry is `row * VIEWS + view`. `entries[starts[i] : starts[i + 1]]` have the hash `values[i]`. `pairs` are
    (n, 2) places of near values, or of one value twice, which have few pairs of entries; in the order of their rows.
    Values with many are in crowds: `crowds[i]` is the number of the crowd, whose values are near each other by others
    of it, or `NO_CROWD`.
    """

    values: Hashes
    entries: Positions
    starts: Positions
    pairs: Positions
    crowds: Positions

    def listed(self) -> Iterator[tuple[Positions, Positions]]:
        """Chunks of pairs of entries of different rows, of the values in `pairs`."""
        counts = np.diff(self.starts)
        numbers = counts[self.pairs].prod(axis=1)
        ends = np.cumsum(numbers)
        low = 0
        while low < len(ends):
            high = max(low + 1, int(np.searchsorted(ends, ends[low] - numbers[low] + _LISTED, "right")))
            yield self._expanded(self.pairs[low:high], counts, numbers[low:high])
            low = high

    def _expanded(self, values: Positions, counts: Positions, numbers: Positions) -> tuple[Positions, Positions]:
        which = np.repeat(np.arange(len(numbers)), numbers)
        number = np.arange(len(which)) - np.repeat(np.cumsum(numbers) - numbers, numbers)
        width = counts[values[which, 1]]
        one = self.entries[self.starts[values[which, 0]] + number // width]
        other = self.entries[self.starts[values[which, 1]] + number % width]
        twice = (values[which, 0] == values[which, 1]) & (one >= other)
        keep = comparable(one, other) & ~twice
        return one[keep], other[keep]


def comparable(one: Positions, other: Positions) -> NDArray[np.bool_]:
    """Whether entries are of different rows, and not both mirrored: the frames are near, too, then."""
    mirrored: NDArray[np.bool_] = (one % VIEWS == MIRROR) & (other % VIEWS == MIRROR)
    between: NDArray[np.bool_] = (one // VIEWS != other // VIEWS) & ~mirrored
    return between


def find_candidates(hashes: Hashes, wanted: NDArray[np.bool_], distance: int) -> Candidates:
    """Find the near ones among the hashes, (N, 6) uint64, of the views of the rows that are `wanted`, (N,) bool.

    Raises what `near_pairs` does. In memory at most are ten times that of `hashes`, and
    about 120 bytes for each pair of near values.
    """
    hashes = np.where(wanted[:, None], hashes, np.uint64(NO_HASH))
    for later in range(1, VIEWS):  # a row's equal hashes count once
        for earlier in range(later):
            hashes[hashes[:, later] == hashes[:, earlier], later] = NO_HASH
    flat = hashes.reshape(-1)
    entries = np.flatnonzero(flat)
    values = flat[entries]
    del hashes, flat
    order = np.argsort(values)
    entries, values = entries[order], values[order]
    del order
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])) if len(values) else np.empty(0, int)
    values = values[starts]
    starts = np.append(starts, len(entries))
    several = np.flatnonzero(np.diff(starts) > 1)
    found = [np.stack([several, several], axis=1)]
    for one, other in near_pairs(values, distance):
        ones, others = starts[one], starts[other]
        alone = (starts[one + 1] == ones + 1) & (starts[other + 1] == others + 1)
        between = ~(alone & (entries[ones] // VIEWS == entries[others] // VIEWS))
        found.append(np.stack([one[between], other[between]], axis=1))
    return _compact(values, entries, starts, np.concatenate(found))


def _compact(values: Hashes, entries: Positions, starts: Positions, pairs: Positions) -> Candidates:
    """The candidates, with only the values that are in pairs."""
    used, places = np.unique(pairs, return_inverse=True)
    pairs = places.reshape(-1, 2)
    counts = starts[used + 1] - starts[used]
    ends = np.cumsum(counts)
    begins = ends - counts
    kept = entries[np.repeat(starts[used] - begins, counts) + np.arange(counts.sum())]
    numbers = counts[pairs].prod(axis=1)
    one, other = (np.bincount(pairs[:, side], numbers, len(used)) for side in (0, 1))
    many = np.any((one + other)[pairs] > _MANY, axis=1) if len(pairs) else np.zeros(0, bool)
    graph = coo_array((np.ones(many.sum(), bool), tuple(pairs[many].T)), shape=(len(used), len(used)))
    _, crowds = connected_components(graph, directed=False)
    crowds = crowds.astype(np.int64)
    crowds[np.isin(np.arange(len(used)), pairs[many], invert=True)] = NO_CROWD
    few = pairs[~many]
    owners = (kept[begins] // VIEWS)[few]
    few = few[np.lexsort((owners.max(axis=1), owners.min(axis=1)))] if len(few) else few
    return Candidates(values[used], kept, np.append(begins, len(kept)), few, crowds)
