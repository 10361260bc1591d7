"""Search for images that look alike: a perceptual hash of each JPEG, and the nearest earlier image for each."""

from dataclasses import dataclass

import imagehash
import numpy as np
import simplejpeg
from PIL import Image

from segmint.operators.similar.near import Hashes, near_pairs

DISTANCE = 2
"""Maximum distance, in bits of 64, between hashes of images that look alike.

Scaling an image to half its size or re-encoding it at quality 60 changes at most two bits of its hash. Half of a hash's
bits are set, so one in 2 · 10^15 random pairs is as near: few among 100 million images.
"""

_SIDE = 64  # minimum decoded size in pixels: twice the size that the hash uses
_BITS = 64


def perceptual_hash(jpeg: bytes) -> int:
    """Decode an image at reduced scale, and return its 64-bit perceptual hash (pHash, a discrete cosine transform).

    Raises ValueError if the image does not decode to its end.
    """
    gray = simplejpeg.decode_jpeg(jpeg, colorspace="GRAY", min_height=_SIDE, min_width=_SIDE, min_factor=1)
    bits = imagehash.phash(Image.fromarray(gray[..., 0])).hash
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@dataclass(frozen=True)
class SimilarImage:
    """Positions of an image and of the nearest earlier image that looks like it, and their distance in bits."""

    index: int
    earlier: int
    distance: int


def find_alike(hashes: Hashes) -> list[SimilarImage]:
    """Return each image whose hash is within `DISTANCE` bits of an earlier image's, in order, once."""
    distinct, first, kind = np.unique(hashes, return_index=True, return_inverse=True)
    count = len(hashes)
    nearest = np.full(len(distinct), (_BITS + 1) * count)  # of each value's first image: distance * count + position
    for one, other in near_pairs(distinct, DISTANCE):
        distances = np.bitwise_count(distinct[one] ^ distinct[other]).astype(np.int64)
        later = np.where(first[one] > first[other], one, other)
        np.minimum.at(nearest, later, distances * count + np.minimum(first[one], first[other]))
    found = nearest[kind]
    again = first[kind] != np.arange(count)
    found[again] = first[kind][again]  # at distance 0
    alike = np.flatnonzero(found < (_BITS + 1) * count)
    places = zip(alike.tolist(), *(each.tolist() for each in np.divmod(found[alike], count)), strict=True)
    return [SimilarImage(index, earlier, distance) for index, distance, earlier in places]
