"""Pairs of views with similar hashes, stored as a table of hash values and their entries."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from segmint.infra.arrays import Bools
from segmint.infra.scratch import ScratchFolder
from segmint.operators.similar.near import (
    MIRROR,
    NO_HASH,
    VIEWS,
    Hashes,
    Partitions,
    Positions,
    append,
    borders,
    mapped,
    mapped_zeros,
    near_pairs,
    sampled,
)

MANY = 64
"""Maximum number of pairs that a value's entries may form with entries of near values and still be listed."""

MOST_WAITING = 1 << 24  # maximum number of pairs of near values that wait to be sorted into listed pairs and crowds
LEAST_LISTED = 1 << 24  # number of pairs of entries that may always be listed, even if there are few values
_JOINED = 1 << 20  # number of pairs of values that are joined to crowds at a time
_LISTED = 1 << 20  # number of pairs of entries in one chunk
CHUNK_ROWS = 1 << 19  # number of rows or values in one chunk
_TABLE = {"values": np.uint64, "entries": np.int64, "starts": np.int64}
NO_CROWD = -1


@dataclass(frozen=True)
class SimilarHashes:
    """Hash values that several rows share or that are near another row's value, and the pairs that are near each other.

    An entry is a view of a row, numbered `row * VIEWS + view`. The entries `entries[starts[i] : starts[i + 1]]` have
    the hash `values[i]`.

    `pairs` (n, 2) lists pairs of near values by their indices, in the order of their rows. A pair may contain the same
    index twice. Each listed pair represents only a few pairs of entries. A value with many pairs belongs to a crowd
    instead. The members of a crowd are near each other, directly or through other members. `crowds[i]` is the number of
    the value's crowd, or `NO_CROWD`.
    """

    values: Hashes
    entries: Positions
    starts: Positions
    pairs: Positions
    crowds: Positions

    def listed(self) -> Iterator[tuple[Positions, Positions]]:
        """Yield the pairs of entries that `pairs` represents, in chunks. Their entries are in different rows."""
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


def comparable(one: Positions, other: Positions) -> Bools:
    """Return whether two entries belong to different rows and aren't both mirrored.

    If two mirrored views are near, their frames are near as well, so pairs of mirrored views are redundant.
    """
    mirrored: Bools = (one % VIEWS == MIRROR) & (other % VIEWS == MIRROR)
    between: Bools = (one // VIEWS != other // VIEWS) & ~mirrored
    return between


def find_candidates(hashes: Hashes, wanted: Bools, distance: int) -> SimilarHashes:
    """Find near hashes among the hashes, (N, 6) uint64, of the `wanted` rows, (N,) bool.

    The table of all hashes is in temporary files. Memory depends only on the number of near hashes, not on the number
    of pairs that they form. Raises the same errors as `near_pairs`.
    """
    with ScratchFolder() as name:
        folder = Path(name)
        _write_table(hashes, wanted, folder)
        values, entries, starts = (mapped(folder / name, dtype) for name, dtype in _TABLE.items())
        sorter = _Sorter(starts)
        for low in range(0, len(values), CHUNK_ROWS):
            several = low + np.flatnonzero(np.diff(starts[low : low + CHUNK_ROWS + 1]) > 1)
            sorter.add(several, several)
        for one, other in near_pairs(values, distance, folder):
            ones, others = starts[one], starts[other]
            alone = (starts[one + 1] == ones + 1) & (starts[other + 1] == others + 1)
            between = ~(alone & (entries[ones] // VIEWS == entries[others] // VIEWS))
            sorter.add(one[between], other[between])
        return sorter.candidates(values, entries)


def _write_table(hashes: Hashes, wanted: Bools, folder: Path) -> None:
    """Write the distinct hashes in ascending order, their entries in the same order, and the bounds of the entries."""
    parts = Partitions(folder, borders(sampled(hashes).reshape(-1), hashes.size), [np.uint64, np.int64])
    for low in range(0, len(hashes), CHUNK_ROWS):
        chunk = np.where(wanted[low : low + CHUNK_ROWS, None], hashes[low : low + CHUNK_ROWS], np.uint64(NO_HASH))
        for later in range(1, VIEWS):  # a row's equal hashes count once
            for earlier in range(later):
                chunk[chunk[:, later] == chunk[:, earlier], later] = NO_HASH
        places = np.flatnonzero(chunk)
        parts.add(chunk.reshape(-1)[places], low * VIEWS + places)
    files = [folder / column for column in _TABLE]
    total = 0
    for values, entries in parts.drain():
        order = np.argsort(values, kind="stable")
        values, entries = values[order], entries[order]
        starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
        for file, column in zip(files, (values[starts], entries, total + starts), strict=True):
            append(file, column)
        total += len(values)
    append(files[-1], np.array([total]))


class _Sorter:
    """Sorter that divides pairs of near values, as they arrive, into listed pairs and crowds.

    A pair is listed if both values have at most `MANY` pairs of entries with their near values. For any other pair,
    the sorter only stores that the two values belong to the same crowd. If the list would contain more than two pairs
    of entries per value, the limit is halved. The limit doesn't affect the result.
    """

    def __init__(self, starts: Positions) -> None:
        values = len(starts) - 1
        self._starts = starts
        self._many = MANY
        self._most_listed = max(LEAST_LISTED, 2 * values)
        self._waiting: list[Positions] = [np.empty((0, 2), np.int64)]
        self._number = 0  # number of waiting pairs
        self._listed: list[Positions] = []
        # Number of pairs that each value's entries form with entries of near values.
        self._weights = mapped_zeros(values, np.int32)
        self._crowded = mapped_zeros(values, np.bool_)
        # A forest. For each value in a crowd, this is the distance back to its parent in the crowd, or 0 for a root.
        self._steps = mapped_zeros(values, np.int32 if values < 1 << 31 else np.int64)

    def add(self, one: Positions, other: Positions) -> None:
        """Add pairs of near values by their indices. Both indices of a pair may be equal. Add each pair only once."""
        self._waiting.append(np.stack([one, other], axis=1))
        self._number += len(one)
        if self._number > MOST_WAITING:
            self._sort()

    def candidates(self, values: Hashes, entries: Positions) -> SimilarHashes:
        """Return the added pairs without values that occur in no pair."""
        self._sort()
        pairs = np.concatenate(self._listed)
        used = self._crowded.copy()
        used[pairs] = True
        places = np.flatnonzero(used)
        pairs = np.searchsorted(places, pairs)
        counts = self._starts[places + 1] - self._starts[places]
        ends = np.cumsum(counts)
        begins = ends - counts
        kept = entries[np.repeat(self._starts[places] - begins, counts) + np.arange(counts.sum())]
        crowds = np.full(len(places), NO_CROWD)
        inside = self._crowded[places]
        crowds[inside] = np.unique(self._roots(places[inside]), return_inverse=True)[1]
        if len(pairs):
            owners = (kept[begins] // VIEWS)[pairs]
            pairs = pairs[np.lexsort((owners.max(axis=1), owners.min(axis=1)))]
        return SimilarHashes(values[places], kept, np.append(begins, len(kept)), pairs, crowds)

    def _sort(self) -> None:
        new = np.concatenate(self._waiting)
        self._waiting, self._number = self._waiting[:1], 0
        numbers = np.minimum(self._numbers(new), MANY + 1).astype(np.int32)
        for side in (0, 1):
            np.add.at(self._weights, new[:, side], numbers)
        self._listed.append(new)
        del new, numbers
        self._move()
        while self._many and sum(int(self._numbers(pairs).sum()) for pairs in self._listed) > self._most_listed:
            self._many //= 2
            self._move()

    def _move(self) -> None:
        """Move the pairs of values with more than `_many` pairs of entries from the list to crowds."""
        for place, pairs in enumerate(self._listed):
            crowded = (self._weights[pairs] > self._many).any(axis=1)
            self._listed[place] = pairs[~crowded]
            joined = pairs[crowded]
            for start in range(0, len(joined), _JOINED):
                self._join(joined[start : start + _JOINED])

    def _join(self, pairs: Positions) -> None:
        self._crowded[pairs] = True
        pairs = self._roots(pairs)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        if not len(pairs):
            return
        roots, places = np.unique(pairs, return_inverse=True)
        graph = coo_array((np.ones(len(pairs), bool), tuple(places.reshape(-1, 2).T)), shape=(len(roots), len(roots)))
        number, crowds = connected_components(graph, directed=False)
        lowest = np.full(number, roots[-1])
        np.minimum.at(lowest, crowds, roots)
        self._steps[roots] = lowest[crowds] - roots

    def _roots(self, places: Positions) -> Positions:
        while (steps := self._steps[places]).any():
            places = places + steps
        return places

    def _numbers(self, pairs: Positions) -> Positions:
        """Return the number of pairs of entries that each pair of values represents."""
        one, other = pairs.T
        found: Positions = (self._starts[one + 1] - self._starts[one]) * (self._starts[other + 1] - self._starts[other])
        return found
