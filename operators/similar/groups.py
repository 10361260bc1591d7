"""Groups of images that show the same: chains of similar ones."""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from segmint.operators.similar.candidates import find_candidates
from segmint.operators.similar.clusters import DISTANCE
from segmint.operators.similar.confirm import Confirmer, Thumbnails
from segmint.operators.similar.near import Hashes, Positions
from segmint.operators.similar.stars import Stars


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
    stars = Stars(find_candidates(hashes, alone, distance), rank, distance, Confirmer(thumbnails), apart)
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
