"""The rows that are similar to a row, found when they are asked for where there may be very many."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from segmint.operators.similar.candidates import NO_CROWD, Candidates, comparable
from segmint.operators.similar.confirm import Confirmer
from segmint.operators.similar.hashes import VIEWS
from segmint.operators.similar.near import Positions

_ROUNDING = 0.002  # of products of float16 vectors of length 1
_MOST_CENTERS = 64
_TARGETS = 1 << 11  # entries that are compared with the centers at a time
_DENSE = 0.02  # share of near hashes from which on all sketches are multiplied

Mask = NDArray[np.bool_]


class Stars:
    """For a row the rows after it, by `rank`, that are similar to it: a view of each is near, and confirmed.

    Rows that are `apart`, (N,) bool, have stars, but are in no other's. Where few rows share a hash, all pairs are
    confirmed at the start; see `Crowds` for the others.
    """

    def __init__(
        self, candidates: Candidates, rank: Positions, distance: int, confirmer: Confirmer, apart: Mask
    ) -> None:
        self._rank = rank
        self._confirmer = confirmer
        self._apart = apart
        self._centers, self._others = self._confirmed(candidates)
        self._crowds = Crowds(candidates, rank, distance, confirmer, apart)

    def rows(self) -> Iterator[int]:
        """Rows that others may be similar to, by rank."""
        rows = np.unique(np.concatenate([self._centers, self._crowds.rows()]))
        yield from rows[np.argsort(self._rank[rows])].tolist()

    def after(self, row: int, free: Mask) -> Positions:
        """The rows of later rank that are similar to a row, of those that are `free`, (N,) bool."""
        low, high = np.searchsorted(self._centers, (row, row + 1))
        listed = self._others[low:high]
        found = listed[free[listed]]
        crowd = self._crowds.after(row, free, found)
        return np.concatenate([found, crowd]) if len(crowd) else found

    def _confirmed(self, candidates: Candidates) -> tuple[Positions, Positions]:
        """Similar rows, the earlier by rank and the later one, in the order of the former's numbers."""
        found: list[Positions] = [np.empty((0, 2), np.int64)]
        for one, other in candidates.listed():
            swapped = self._rank[one // VIEWS] > self._rank[other // VIEWS]
            one, other = np.where(swapped, other, one), np.where(swapped, one, other)
            within = ~self._apart[other // VIEWS]
            one, other = one[within], other[within]
            pairs = np.stack([one // VIEWS, other // VIEWS], axis=1)
            while len(pairs):  # one pair of views of each two rows at a time
                _, first, which = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
                similar = self._confirmer.similar(one[first], other[first])
                found.append(pairs[first[similar]])
                left = ~similar[which.reshape(-1)]
                left[first] = False
                one, other, pairs = one[left], other[left], pairs[left]
        rows = np.unique(np.concatenate(found), axis=0)
        return rows[:, 0], rows[:, 1]


class Crowds:
    """Rows with a hash that very many others have, or are near to.

    A row is compared with its crowds when it is asked for: those that are another's copies by then are left out, so
    that time is in proportion to the rows and those that are kept. In memory are about 200 bytes for each view.
    `apart` is as in `Stars`.
    """

    def __init__(
        self, candidates: Candidates, rank: Positions, distance: int, confirmer: Confirmer, apart: Mask
    ) -> None:
        self._rank = rank
        self._apart = apart
        self._distance = distance
        self._confirmer = confirmer
        counts = np.diff(candidates.starts)
        crowds = np.repeat(candidates.crowds, counts)
        places = np.flatnonzero(crowds != NO_CROWD)
        places = places[np.argsort(candidates.entries[places])]
        self._entries = candidates.entries[places]
        self._rows = self._entries // VIEWS
        self._hashes = np.repeat(candidates.values, counts)[places]
        self._crowds = crowds[places]
        self._sketches = confirmer.sketches(self._entries)
        order = np.lexsort((rank[self._rows], self._crowds))
        begins = np.flatnonzero(np.diff(self._crowds[order], prepend=NO_CROWD))
        members = np.split(order, begins)[1:]  # places of each crowd's entries, by rank
        self._members = dict(zip(self._crowds[order][begins].tolist(), members, strict=True))
        self._centers = dict.fromkeys(self._members, 1)  # how many rows are compared the next time
        self._found: dict[tuple[int, int], Positions] = {}  # what is similar, by crowd and row

    def rows(self) -> Positions:
        """The rows in crowds, ascending."""
        return np.unique(self._rows)

    def after(self, row: int, free: Mask, known: Positions) -> Positions:
        """The rows of later rank that are similar to a row, of those that are `free`, without those that are `known`.

        Rows are asked for by rank, and one that is no longer free is never so again.
        """
        low, high = np.searchsorted(self._rows, (row, row + 1))
        if low == high:
            return np.empty(0, np.int64)
        found = known
        for crowd in np.unique(self._crowds[low:high]).tolist():
            if (crowd, row) not in self._found:
                self._compare(crowd, row, free, found)
            rows = self._found.pop((crowd, row))
            found = np.union1d(found, rows[free[rows]])
        return np.setdiff1d(found, known)

    def _compare(self, crowd: int, row: int, free: Mask, known: Positions) -> None:
        """Find what is similar to a row, and to the next ones of its crowd, leaving out the `known` rows."""
        members = self._members[crowd]
        rows = self._rows[members]
        members = members[free[rows] & (self._rank[rows] >= self._rank[row])]  # the others are never asked for again
        self._members[crowd] = members
        ranks = self._rank[self._rows[members]]
        last = np.unique(ranks)[: self._centers[crowd]][-1]
        self._centers[crowd] = min(4 * self._centers[crowd], _MOST_CENTERS)
        centers = members[ranks <= last]
        targets = members[~self._apart[self._rows[members]] & ~np.isin(self._rows[members], known)]
        pairs: list[Positions] = [np.empty((0, 2), np.int64)]
        for low in range(0, len(targets), _TARGETS):
            one, other = self._candidates(centers, targets[low : low + _TARGETS])
            similar = self._confirmer.similar(self._entries[one], self._entries[other])
            pairs.append(np.stack([self._rows[one[similar]], self._rows[other[similar]]], axis=1))
        all_pairs = np.concatenate(pairs)
        for center in np.unique(self._rows[centers]).tolist():
            self._found[crowd, center] = np.unique(all_pairs[all_pairs[:, 0] == center, 1])

    def _candidates(self, centers: Positions, targets: Positions) -> tuple[Positions, Positions]:
        """Pairs of centers and later targets with near hashes that may be similar by their sketches."""
        near = np.bitwise_count(self._hashes[centers][:, None] ^ self._hashes[targets]) <= self._distance
        near &= self._rank[self._rows[centers]][:, None] < self._rank[self._rows[targets]]
        least = self._confirmer.thresholds.whole - _ROUNDING
        if near.sum() > _DENSE * near.size:
            near &= self._sketches[centers].astype(np.float32) @ self._sketches[targets].astype(np.float32).T >= least
            one, other = (part[each] for part, each in zip((centers, targets), np.nonzero(near), strict=True))
        else:
            one, other = (part[each] for part, each in zip((centers, targets), np.nonzero(near), strict=True))
            products = np.einsum("ij,ij->i", self._sketches[one], self._sketches[other], dtype=np.float32)
            one, other = one[products >= least], other[products >= least]
        keep = comparable(self._entries[one], self._entries[other])
        return one[keep], other[keep]
