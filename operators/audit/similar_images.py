"""Images that look alike: a perceptual hash of each JPEG, and the pairs of near hashes among any number of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import imagehash
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

DISTANCE = 2
"""Bits of 64 in which hashes of alike images may differ.

An image that is scaled to half its size or encoded again at quality 60 keeps its hash but for two bits. Half of a
hash's bits are set, so that of random ones a pair in 2 · 10^15 is as near: few among 100 million images.
"""

_SIDE = 64  # pixels at least that are decoded: twice what the hash looks at
_BANDS = 4
_BAND_BITS = 16
_NEIGHBORS = 64

Hashes = NDArray[np.uint64]


def perceptual_hash(jpeg: bytes) -> int:
    """The 64 bits of an image's perceptual hash (pHash, by its discrete cosine transform), from a scaled decoding.

    Raises ValueError where the picture does not decode to its end.
    """
    gray = simplejpeg.decode_jpeg(jpeg, colorspace="GRAY", min_height=_SIDE, min_width=_SIDE, min_factor=1)
    bits = imagehash.phash(Image.fromarray(gray[..., 0])).hash
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@dataclass(frozen=True)
class Alike:
    """Positions of an image and of the nearest earlier one that looks like it, and the bits in which they differ."""

    index: int
    earlier: int
    distance: int


def find_alike(hashes: Hashes) -> list[Alike]:
    """Each image whose hash is within `DISTANCE` bits of an earlier image's, in order, once.

    Equal hashes are found by sorting. Of others that differ in two bits at most, two of their four bands are the same:
    hashes are sorted by each choice of two bands and compared with their neighbors there (Manku et al. 2007, "Detecting
    near-duplicates for web crawling"), 64 at most, so that time stays in proportion to the number of images even where
    very many look alike.
    """
    distinct, first, kind = np.unique(hashes, return_index=True, return_inverse=True)
    nearest: dict[int, tuple[int, int]] = {}  # distance and position of the earlier one, by position
    for one, other in _near_pairs(distinct):
        earlier, later = sorted((int(first[one]), int(first[other])))
        distance = int(distinct[one] ^ distinct[other]).bit_count()
        nearest[later] = min(nearest.get(later, (distance, earlier)), (distance, earlier))
    for index in np.flatnonzero(first[kind] != np.arange(len(hashes))):
        nearest[int(index)] = (0, int(first[kind[index]]))
    return [Alike(index, earlier, distance) for index, (distance, earlier) in sorted(nearest.items())]


def _near_pairs(distinct: Hashes) -> Iterator[tuple[int, int]]:
    """Positions of different hashes that are at most `DISTANCE` bits apart; a pair may come more than once."""
    band = (1 << _BAND_BITS) - 1
    masks = [band << (number * _BAND_BITS) for number in range(_BANDS)]
    for chosen in combinations(masks, _BANDS - DISTANCE):
        keys = distinct & np.uint64(sum(chosen))
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        places: NDArray[np.intp] = np.arange(len(keys))
        for step in range(1, _NEIGHBORS + 1):
            places = places[places < len(keys) - step]
            places = places[keys[places] == keys[places + step]]
            if not len(places):
                break
            one, other = order[places], order[places + step]
            near = np.bitwise_count(distinct[one] ^ distinct[other]) <= DISTANCE
            yield from zip(one[near].tolist(), other[near].tolist(), strict=True)
