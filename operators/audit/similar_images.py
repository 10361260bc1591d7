"""Search for images that look alike by their perceptual hashes: the nearest earlier image for each."""

from dataclasses import dataclass

import numpy as np

from segmint.operators.similar.hashes import NO_HASH
from segmint.operators.similar.near import Hashes, near_pairs

DISTANCE = 2
"""Maximum distance between hashes of images that look alike, in bits of 64.

Scaling an image to half its size or re-encoding it at quality 60 changes at most two bits of its hash. Half of a hash's
bits are set, so only one in 2 · 10^15 random pairs is this close. Among 100 million images, that is a few pairs.
"""

_BITS = 64


@dataclass(frozen=True)
class SimilarImage:
    """Positions of an image and of the most similar earlier image, and the distance between their hashes in bits."""

    index: int
    earlier: int
    distance: int


def find_alike(hashes: Hashes) -> list[SimilarImage]:
    """Return each image whose hash is within `DISTANCE` bits of an earlier image's hash, once, in order.

    Images without a hash (`NO_HASH`) aren't compared.
    """
    distinct, first, kind = np.unique(hashes, return_index=True, return_inverse=True)
    count = len(hashes)
    nearest = np.full(len(distinct), (_BITS + 1) * count)  # for each value's first image: distance * count + position
    for one, other in near_pairs(distinct, DISTANCE):
        distances = np.bitwise_count(distinct[one] ^ distinct[other]).astype(np.int64)
        later = np.where(first[one] > first[other], one, other)
        np.minimum.at(nearest, later, distances * count + np.minimum(first[one], first[other]))
    found = nearest[kind]
    again = (first[kind] != np.arange(count)) & (hashes != NO_HASH)
    found[again] = first[kind][again]  # at distance 0
    alike = np.flatnonzero(found < (_BITS + 1) * count)
    places = zip(alike.tolist(), *(each.tolist() for each in np.divmod(found[alike], count)), strict=True)
    return [SimilarImage(index, earlier, distance) for index, distance, earlier in places]


def find_copies(*parts: Hashes) -> dict[int, int]:
    """Map the position of each item that equals an earlier one to that of the first such item, in order.

    Two items are equal if they have the same values in all `parts`.
    """
    order = np.lexsort(parts)  # a stable sort, so equal items stay in order
    same = np.all([part[order][1:] == part[order][:-1] for part in parts], axis=0)
    found = {}
    first = 0
    for index in np.flatnonzero(same).tolist():
        if index == 0 or not same[index - 1]:
            first = int(order[index])
        found[int(order[index + 1])] = first
    return dict(sorted(found.items()))
