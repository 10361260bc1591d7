"""Copies among the images of a catalog: images with the same bytes, and near-duplicates of a kept image."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from segmint.infra.arrays import Bools, Ints
from segmint.infra.scratch import ScratchFolder
from segmint.operators.similar.candidates import NO_CROWD, SimilarHashes, comparable, find_candidates
from segmint.operators.similar.near import (
    THRESHOLDS,
    VIEWS,
    Confirmer,
    Hashes,
    Partitions,
    Positions,
    Thresholds,
    Thumbnails,
    borders,
    sampled,
)

CHUNK_ROWS = 1 << 20  # number of rows in one chunk
_ROUNDING = 0.002  # maximum rounding error of products of float16 unit vectors
_MOST_CENTERS = 512
COMPARED = 1 << 22  # number of pairs of entries that are compared at a time
DENSE = 0.02  # if the share of near hashes exceeds this, all sketches are multiplied
_IN_CACHE = 1 << 17  # number of pairs of hashes that fit in the processor's cache
SKETCHES = 1 << 16  # number of pairs of sketches that are multiplied at a time
_SAMPLE = 256  # number of entries of each side that are sampled to estimate that share
_COVERED = 8  # if more than one in this many targets is similar, the next row is compared alone

Mask = Bools


class SimilarRows:
    """Finder of each row's similar rows with a later `rank`.

    Two rows are similar if some view of one row and some view of the other have near hashes, and a comparison confirms
    that the views show the same content. A row that is `apart`, (N,) bool, can have similar rows but never appears in
    the result for another row. If few rows share a hash, the constructor confirms all of their pairs. For crowded
    hashes, see `CrowdedHashes`.
    """

    def __init__(
        self, candidates: SimilarHashes, rank: Positions, distance: int, confirmer: Confirmer, apart: Mask
    ) -> None:
        self._rank = rank
        self._confirmer = confirmer
        self._apart = apart
        self._centers, self._others = self._confirmed(candidates)
        self._crowds = CrowdedHashes(candidates, rank, distance, confirmer, apart)

    def rows(self) -> Iterator[int]:
        """Yield the rows that may have similar rows, by rank."""
        rows = np.unique(np.concatenate([self._centers, self._crowds.rows()]))
        yield from rows[np.argsort(self._rank[rows])].tolist()

    def after(self, row: int, free: Mask) -> Positions:
        """Return the rows that are similar to `row`, have a later rank, and are `free`, (N,) bool."""
        low, high = np.searchsorted(self._centers, (row, row + 1))
        listed = self._others[low:high]
        found = listed[free[listed]]
        crowd = self._crowds.after(row, free, found)
        return np.concatenate([found, crowd]) if len(crowd) else found

    def _confirmed(self, candidates: SimilarHashes) -> tuple[Positions, Positions]:
        """Return pairs of similar rows as (earlier by rank, later by rank), sorted by the number of the earlier row."""
        count = len(self._rank)
        found: list[Positions] = [np.empty(0, np.int64)]  # earlier row * count + later row
        for one, other in candidates.listed():
            swapped = self._rank[one // VIEWS] > self._rank[other // VIEWS]
            one, other = np.where(swapped, other, one), np.where(swapped, one, other)
            within = ~self._apart[other // VIEWS]
            one, other = one[within], other[within]
            pairs = one // VIEWS * count + other // VIEWS
            while len(pairs):  # one pair of views per pair of rows at a time
                _, first, which = np.unique(pairs, return_index=True, return_inverse=True)
                similar = self._confirmer.similar(one[first], other[first])
                found.append(pairs[first[similar]])
                left = ~similar[which]
                left[first] = False
                one, other, pairs = one[left], other[left], pairs[left]
        ones, others = np.divmod(np.unique(np.concatenate(found)), max(1, count))
        return ones, others


class CrowdedHashes:
    """Rows with a hash that is equal or near to the hashes of very many other rows. Such a group is called a crowd.

    Comparing all pairs within a crowd would take quadratic time. Instead, a row is compared with its crowds only on
    request, and only with rows that aren't copies yet. The time therefore grows with the number of rows and the number
    of kept rows. Each view takes about 200 bytes of memory. `apart` has the same meaning as in `SimilarRows`.
    """

    def __init__(
        self, candidates: SimilarHashes, rank: Positions, distance: int, confirmer: Confirmer, apart: Mask
    ) -> None:
        self._rank = rank
        self._apart = apart
        self._distance = distance
        self._confirmer = confirmer
        self._least = confirmer.thresholds.whole - _ROUNDING
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
        members = np.split(order, begins)[1:]  # indices of each crowd's entries, by rank
        self._members = dict(zip(self._crowds[order][begins].tolist(), members, strict=True))
        self._centers = dict.fromkeys(self._members, 1)  # number of rows to compare the next time
        # Results of each crowd's last comparison, keyed by row. Earlier rows are never requested again.
        self._found: dict[int, dict[int, Positions]] = {crowd: {} for crowd in self._members}

    def rows(self) -> Positions:
        """Return the rows that belong to a crowd, ascending."""
        return np.unique(self._rows)

    def after(self, row: int, free: Mask, known: Positions) -> Positions:
        """Return the rows that are similar to `row`, have a later rank, and are `free`, without the `known` rows.

        Call this with rows in order of rank. A row that is no longer free must not become free again.
        """
        low, high = np.searchsorted(self._rows, (row, row + 1))
        if low == high:
            return np.empty(0, np.int64)
        found = known
        for crowd in np.unique(self._crowds[low:high]).tolist():
            if row not in self._found[crowd]:
                self._compare(crowd, row, free, found)
            rows = self._found[crowd][row]
            rows = rows[free[rows]]
            found = np.union1d(found, rows) if len(rows) else found
        return np.setdiff1d(found, known)

    def _compare(self, crowd: int, row: int, free: Mask, known: Positions) -> None:
        """Find the rows that are similar to `row` or to the next rows of its crowd, without the `known` rows."""
        members = self._members[crowd]
        rows = self._rows[members]
        members = members[free[rows] & (self._rank[rows] >= self._rank[row])]  # the others are never requested again
        self._members[crowd] = members
        ranks = self._rank[self._rows[members]]
        ends = np.flatnonzero(np.diff(ranks, append=-1)) + 1  # ends of each row's members, which are sorted by rank
        number = min(self._centers[crowd], len(ends))
        centers = members[: ends[number - 1]]
        targets = members[~self._apart[self._rows[members]] & ~np.isin(self._rows[members], known)]
        count = len(self._rank)
        pairs: list[Positions] = [np.empty(0, np.int64)]  # as in `SimilarRows`
        step = max(1, COMPARED // len(centers))
        for low in range(0, len(targets), step):
            one, other = self._candidates(centers, targets[low : low + step])
            similar = self._confirmer.similar(self._entries[one], self._entries[other])
            pairs.append(self._rows[one[similar]] * count + self._rows[other[similar]])
        ones, others = np.divmod(np.unique(np.concatenate(pairs)), count)
        rows = np.unique(self._rows[centers])
        borders = zip(np.searchsorted(ones, rows).tolist(), np.searchsorted(ones, rows + 1).tolist(), strict=True)
        self._found[crowd] = {row: others[low:high] for row, (low, high) in zip(rows.tolist(), borders, strict=True)}
        self._centers[crowd] = 1 if len(ones) * _COVERED > len(targets) else min(4 * number, _MOST_CENTERS)

    def _candidates(self, centers: Positions, targets: Positions) -> tuple[Positions, Positions]:
        """Return pairs of centers and later targets with near hashes, except if their sketches prove a difference."""
        sample = (each[:: len(each) // _SAMPLE + 1] for each in (centers, targets))
        if self._near(*np.ix_(*sample)).mean() > DENSE:
            products = self._sketches[centers].astype(np.float32) @ self._sketches[targets].astype(np.float32).T
            may_be, check = products >= self._least, self._near
        else:
            parts = np.array_split(centers, len(centers) * len(targets) // _IN_CACHE + 1)
            may_be = np.concatenate([self._near(*np.ix_(part, targets)) for part in parts])
            check = self._may_be_similar
        one, other = np.divmod(np.flatnonzero(may_be), len(targets))  # far faster than `nonzero` in two dimensions
        one, other = centers[one], targets[other]
        keep = check(one, other)
        one, other = one[keep], other[keep]
        keep = comparable(self._entries[one], self._entries[other])
        keep &= self._rank[self._rows[one]] < self._rank[self._rows[other]]
        return one[keep], other[keep]

    def _near(self, one: Positions, other: Positions) -> Mask:
        near: Mask = np.bitwise_count(self._hashes[one] ^ self._hashes[other]) <= self._distance
        return near

    def _may_be_similar(self, one: Positions, other: Positions) -> Mask:
        found = np.empty(len(one), bool)
        for low in range(0, len(one), SKETCHES):
            part = slice(low, low + SKETCHES)
            sketches = self._sketches[one[part]], self._sketches[other[part]]
            found[part] = np.einsum("ij,ij->i", *sketches, dtype=np.float32) >= self._least
        return found


DISTANCE = 3
"""Maximum distance between hashes of similar views, in bits of 64."""

NONE = -1


@dataclass(frozen=True)
class ImageRows:
    """Data about the images of N rows.

    - `sources` (N, 2) uint64: the first 16 bytes of each image's SHA-256, or 0 if unknown.
    - `hashes` (N, 6) uint64: each image's `ImageHashes.views`, or 0 if missing.
    - `pixels` (N,) int64: the number of pixels in each source.
    - `allowed` (N,) bool: whether the license is allowed.
    - `opted_out` (N,) bool: whether the owner forbids the use of the image.
    """

    sources: NDArray[np.uint64]
    hashes: Hashes
    pixels: Ints
    allowed: Bools
    opted_out: Bools

    def __post_init__(self) -> None:
        """Raise ValueError if the arrays have different numbers of rows."""
        count = len(self.pixels)
        shapes = {"sources": (count, 2), "hashes": (count, VIEWS), "allowed": (count,), "opted_out": (count,)}
        for name, expected in shapes.items():
            if getattr(self, name).shape != expected:
                raise ValueError(f"{name} are of shape {getattr(self, name).shape}: expected {expected}, as pixels are")


@dataclass(frozen=True)
class DuplicateMap:
    """Copies among N rows.

    For each row, `kept` contains the kept row that it is a copy of, or -1 if it isn't a copy. `exact` is true if a row
    has the same bytes as its kept row. A copy with different bytes is a near-duplicate of the kept row.
    """

    kept: Positions
    exact: Bools


def find_copies(
    rows: ImageRows, thumbnails: Thumbnails, distance: int = DISTANCE, thresholds: Thresholds = THRESHOLDS
) -> DuplicateMap:
    """Find the rows that are copies of other rows.

    Rows with equal bytes count as one image, which is opted out if any of them is. Images are processed in this order:
    opted-out images first, then images with an allowed license, then larger images, then lower rows. If an image isn't
    a copy yet when its turn comes, it is kept, and later images that are similar to it become its copies. As a result,
    every copy is similar to the kept image itself, never just to another copy.

    Two images are similar if the hashes of two of their views differ in at most `distance` bits and the correlation of
    these views' thumbnails meets `thresholds`.

    An opted-out image is always kept, even if it is similar to another image. So if a row has the bytes of an opted-out
    image or is similar to one, it is either a copy of an opted-out row or opted out itself. To reject all copies of
    opted-out rows, reject the rows whose kept row is opted out.

    The result depends only on the rows. `thumbnails` is called only for rows with near hashes. Raises ValueError for a
    distance that `near_pairs` doesn't support.
    """
    count = len(rows.pixels)
    index: Any = np.int32 if count < 1 << 31 else np.int64
    order = np.lexsort((-rows.pixels, ~rows.allowed, ~rows.opted_out)).astype(index)  # stable, so ties go to lower rows
    rank = np.empty(count, index)
    rank[order] = np.arange(count, dtype=index)
    first = first_of_equal_bytes(rows.sources, order)
    del order
    alone = first == np.arange(count, dtype=index)
    kept = np.full(count, NONE, index)
    free = np.ones(count, bool)
    confirmer = Confirmer(thumbnails, thresholds)
    stars = SimilarRows(find_candidates(rows.hashes, alone, distance), rank, distance, confirmer, rows.opted_out)
    for row in stars.rows():
        if free[row]:
            copies = stars.after(row, free)
            kept[copies], free[copies] = row, False
    ours = np.where(kept[first] == NONE, first, kept[first])
    return DuplicateMap(np.where(ours == np.arange(count, dtype=index), NONE, ours), (ours == first) & ~alone)


def first_of_equal_bytes(sources: NDArray[np.uint64], order: Positions) -> Positions:
    """Return, for each row, the first row in `order` with the same bytes, or the row itself if they are unknown."""
    first = np.empty_like(order)
    with ScratchFolder() as folder:
        lowest = borders(sampled(sources)[:, 0], 2 * len(order))
        parts = Partitions(Path(folder), lowest, [np.uint64, np.uint64, order.dtype])
        for low in range(0, len(order), CHUNK_ROWS):
            rows = order[low : low + CHUNK_ROWS]
            those = sources[rows]
            known = those.any(axis=1)
            first[rows[~known]] = rows[~known]
            parts.add(those[known, 0], those[known, 1], rows[known])
        for one, other, rows in parts.drain():
            by_source = np.lexsort((other, one))  # stable
            one, other, rows = one[by_source], other[by_source], rows[by_source]
            new = np.ones(len(rows), bool)
            new[1:] = (one[1:] != one[:-1]) | (other[1:] != other[:-1])
            first[rows] = rows[np.maximum.accumulate(np.where(new, np.arange(len(rows)), 0))]
    return first


def find_groups(hashes: Hashes, thumbnails: Thumbnails, same: Positions) -> Positions:
    """Number the groups of N images, (N,) int64. Two images share a number if a chain of similar images links them.

    `hashes` (N, 6) uint64 contains each image's `ImageHashes.views`, or 0 if missing. `same` (N,) int64 has equal
    values for images that are known to be the same, such as images with the same bytes. `find_copies` defines
    similarity. In contrast to copies, any two similar images belong to the same group, so groups are disjoint.
    """
    count = len(hashes)
    _, first, known = np.unique(same, return_index=True, return_inverse=True)
    alone = np.zeros(count, bool)
    alone[first] = True  # only one of the images that are known to be the same is compared
    apart: Bools = np.zeros(count, bool)
    rank = np.arange(count)
    stars = SimilarRows(find_candidates(hashes, alone, DISTANCE), rank, DISTANCE, Confirmer(thumbnails), apart)
    ones: list[Positions] = [first[known]]
    others: list[Positions] = [rank]
    for row in stars.rows():
        similar = stars.after(row, alone)
        ones.append(np.full(len(similar), row))
        others.append(similar)
    one, other = np.concatenate(ones), np.concatenate(others)
    links = coo_array((np.ones(len(one), bool), (one, other)), shape=(count, count))
    groups: Positions = connected_components(links, directed=False)[1].astype(np.int64)
    return groups
