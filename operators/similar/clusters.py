"""Copies among the images of a catalog: those of the same bytes, and those that look like one that is kept."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from segmint.operators.similar.candidates import find_candidates
from segmint.operators.similar.confirm import THRESHOLDS, Confirmer, Thresholds, Thumbnails
from segmint.operators.similar.hashes import VIEWS
from segmint.operators.similar.near import Hashes, Positions
from segmint.operators.similar.stars import SimilarRows

DISTANCE = 3
"""Bits of 64 in which hashes of similar views may differ."""

NONE = -1


@dataclass(frozen=True)
class ImageRows:
    """What is known of the images of N rows.

    `sources`: (N, 2) uint64, the first 16 bytes of the SHA-256 of each one's bytes; both 0 where it is unknown.
    `hashes`: (N, 6) uint64, from `ImageHashes.views`; all 0 for an image without. `pixels`: (N,) int64, of the source.
    `allowed`: (N,) bool, whether its license is. `opted_out`: (N,) bool, whether its owner refuses its use.
    """

    sources: NDArray[np.uint64]
    hashes: Hashes
    pixels: NDArray[np.int64]
    allowed: NDArray[np.bool_]
    opted_out: NDArray[np.bool_]

    def __post_init__(self) -> None:
        """Raise ValueError if the arrays are not of the same rows."""
        count = len(self.pixels)
        shapes = {"sources": (count, 2), "hashes": (count, VIEWS), "allowed": (count,), "opted_out": (count,)}
        for name, expected in shapes.items():
            if getattr(self, name).shape != expected:
                raise ValueError(f"{name} are of shape {getattr(self, name).shape}: expected {expected}, as pixels are")


@dataclass(frozen=True)
class DuplicateMap:
    """For each of N rows the kept row that it is a copy of, -1 if it is no copy; and whether it has the same bytes.

    A copy of other bytes looks like the kept row.
    """

    kept: Positions
    exact: NDArray[np.bool_]


def find_copies(
    rows: ImageRows, thumbnails: Thumbnails, distance: int = DISTANCE, thresholds: Thresholds = THRESHOLDS
) -> DuplicateMap:
    """Find the rows that are copies of others.

    Rows of equal bytes are one image, which opted out if one of them did. Images are taken in this order: first those
    that opted out, then those with an allowed license, those with more pixels, the lowest row. Each that is no copy yet
    is kept, and those after it that are similar to it become its copies: every copy is similar to the kept image
    itself, and none only to another copy. Images are similar if hashes of two views differ in at most `distance` bits
    and the views' thumbnails correlate by `thresholds`.

    An image that opted out is kept even if it is similar to another one: so each row that has the bytes of one, or is
    similar to one, is a copy of one that opted out, or opted out itself. To refuse all copies of opted-out rows, refuse
    the rows whose kept row opted out.

    The result depends on the rows alone. `thumbnails` is asked for rows with near hashes only. Raises ValueError for a
    distance that `near_pairs` refuses.
    """
    count = len(rows.pixels)
    order = np.lexsort((-rows.pixels, ~rows.allowed, ~rows.opted_out))  # stable: of equal ones the lowest row
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(count)
    first = first_of_equal_bytes(rows.sources, order)
    alone = first == np.arange(count)
    kept = np.full(count, NONE, np.int64)
    free = np.ones(count, bool)
    confirmer = Confirmer(thumbnails, thresholds)
    stars = SimilarRows(find_candidates(rows.hashes, alone, distance), rank, distance, confirmer, rows.opted_out)
    for row in stars.rows():
        if free[row]:
            copies = stars.after(row, free)
            kept[copies], free[copies] = row, False
    ours = np.where(kept[first] == NONE, first, kept[first])
    return DuplicateMap(np.where(ours == np.arange(count), NONE, ours), (ours == first) & ~alone)


def first_of_equal_bytes(sources: NDArray[np.uint64], order: Positions) -> Positions:
    """For each row the first by `order` of those with its bytes, itself if these are unknown."""
    by_source = order[np.lexsort((sources[order, 1], sources[order, 0]))]  # stable
    sorted_sources = sources[by_source]
    new = np.ones(len(order), bool)
    new[1:] = np.any(sorted_sources[1:] != sorted_sources[:-1], axis=1)
    new |= ~sorted_sources.any(axis=1)
    first = np.empty(len(order), np.int64)
    first[by_source] = by_source[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
    return first


def find_groups(hashes: Hashes, thumbnails: Thumbnails, same: Positions, distance: int = DISTANCE) -> Positions:
    """Number the groups of N images: (N,) int64, equal for images that are linked by a chain of similar ones.

    `hashes` (N, 6) uint64 are `ImageHashes.views`, 0 where there are none; `same` (N,) int64 is equal for images that
    are known to be the same, such as those of the same bytes. Two images are similar as for `find_copies`, whose
    copies are all similar to one image: here any two that are similar are in one group, so that groups have nothing
    in common.
    """
    count = len(hashes)
    _, first, known = np.unique(same, return_index=True, return_inverse=True)
    alone = np.zeros(count, bool)
    alone[first] = True  # of those that are known to be the same one is compared
    apart: NDArray[np.bool_] = np.zeros(count, bool)
    rank = np.arange(count)
    stars = SimilarRows(find_candidates(hashes, alone, distance), rank, distance, Confirmer(thumbnails), apart)
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
