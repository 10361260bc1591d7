"""Search for all pairs of 64-bit hashes within a few bits of each other, by multi-index hashing."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, combinations, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segmint.operators.similar import partitions
from segmint.operators.similar.partitions import Partitions, borders, sampled

MOST_BITS = 4
"""Maximum supported distance. A larger distance would need more bands, and so shorter keys and more rounds."""

_BITS = 64
CHUNK = 1 << 20  # number of sorted hashes that are compared at a time
SHORT = 64  # maximum number of hashes with one key that are compared in steps over the chunk
FEW = 2048  # maximum number of hashes that are compared all with all instead of being cut into bands
_BLOCK = 1 << 22  # number of comparisons at a time when all hashes are compared with all
DEPTH = 3  # maximum number of times that hashes of one key are cut into bands again

Hashes = NDArray[np.uint64]
Positions = NDArray[np.int64]
Pairs = Iterator[tuple[Hashes, Hashes]]
Band = tuple[int, int]  # the lowest bit, and the one after the highest


def near_pairs(distinct: Hashes, distance: int, folder: Path | None = None) -> Iterator[tuple[Positions, Positions]]:
    """Yield each pair of hashes within `distance` bits of each other once, in chunks of positions (lower, higher).

    `distinct` must be ascending and without repetitions.

    This is multi-index hashing (Manku et al. 2007, "Detecting near-duplicates for web crawling"). The 64 bits are cut
    into `distance + 2` bands. Two hashes that differ in at most `distance` bits agree in at least two bands. So for
    each choice of two bands, the hashes are sorted by the bits of these bands, which form the key, and hashes with
    equal keys are compared. If many hashes share a key, they are cut into bands again, using the bits in which they
    vary. Otherwise, a large block of near hashes would take quadratic time.

    Memory holds only a copy of `distinct` and one chunk. With a `folder`, the copy is in files in that folder, and
    memory holds only a part of it. `distinct` may then be mapped into memory from a file. Raises ValueError if the
    distance isn't 0 to `MOST_BITS`, or if the hashes aren't ascending.
    """
    if not 0 <= distance <= MOST_BITS:
        raise ValueError(f"hashes at most {distance} bits apart: expected a distance of 0 to {MOST_BITS}")
    chunks = (distinct[start : start + CHUNK + 1] for start in range(0, len(distinct), CHUNK))
    if not all(np.all(chunk[1:] > chunk[:-1]) for chunk in chunks):
        raise ValueError("hashes are repeated or not ascending: expected each once, in ascending order")
    for one, other in _near_values(distinct, distance, DEPTH, folder) if distance else ():
        places = _places_of(one, distinct), _places_of(other, distinct)
        yield np.minimum(*places), np.maximum(*places)


def _places_of(values: Hashes, distinct: Hashes) -> Positions:
    order = np.argsort(values)  # ascending values are in nearby pages of a mapped file
    found = np.empty(len(values), np.int64)
    found[order] = np.searchsorted(distinct, values[order])
    return found


def _near_values(values: Hashes, distance: int, depth: int, folder: Path | None = None) -> Pairs:
    """Yield each pair of different hashes that are near each other once, in chunks."""
    if len(values) <= FEW or not depth:
        yield from _all_with_all(values, distance)
        return
    bands = _cut(values, distance + 2)
    for first, second in combinations(range(len(bands)), 2):
        key = bands[first], bands[second]
        order = [*key, *(band for band in bands if band not in key)]
        # A pair may agree in more than two bands. Yield it only for the first two of these bands.
        places = dict(zip(order, _places(order), strict=True))
        earlier = [_mask(places[band]) for place, band in enumerate(bands[:second]) if place != first]
        shift = _BITS - sum(high - low for low, high in key)
        for keyed in _sorted(values, order, shift, folder):
            for one, other in _of_one_key(keyed, shift, distance, depth, earlier):
                differ = one ^ other
                here = np.ones(len(one), bool)
                for mask in earlier:
                    here &= (differ & mask) != 0
                yield _restored(one[here], order), _restored(other[here], order)


def _sorted(values: Hashes, order: Sequence[Band], shift: int, folder: Path | None) -> Iterator[Hashes]:
    """Yield the reordered hashes in ascending parts. Hashes with equal bits from `shift` on are in the same part."""
    if folder is None or len(values) <= partitions.PART_ROWS:
        keyed = _reordered(values, order)
        keyed.sort()
        yield keyed
        return
    lowest = borders(_reordered(sampled(values), order), len(values))
    parts = Partitions(folder, np.unique(lowest >> np.uint64(shift) << np.uint64(shift)), [np.uint64])
    for start in range(0, len(values), CHUNK):
        parts.add(_reordered(values[start : start + CHUNK], order))
    for (keyed,) in parts.drain():
        keyed.sort()
        yield keyed


def _of_one_key(keyed: Hashes, shift: int, distance: int, depth: int, differ: Sequence[np.uint64]) -> Pairs:
    """Yield near pairs of sorted hashes that agree in the bits from `shift` on.

    A large group with the same key is skipped if, for some mask in `differ`, its hashes don't vary in the mask's bits.
    """
    start = 0
    while start < len(keyed):
        end = min(start + CHUNK, len(keyed))
        after = ((int(keyed[end - 1]) >> shift) + 1) << shift  # the first hash that can have the next key
        end = len(keyed) if after >> _BITS else int(np.searchsorted(keyed, np.uint64(after)))
        chunk = keyed[start:end]
        start = end
        keys = chunk >> np.uint64(shift)
        begins = np.concatenate([[0], np.flatnonzero(keys[1:] != keys[:-1]) + 1])
        ends = np.append(begins[1:], len(chunk))
        long = ends - begins > SHORT
        for low, high in zip(begins[long].tolist(), ends[long].tolist(), strict=True):
            block = chunk[low:high]
            varying = np.bitwise_or.reduce(block ^ block[0])
            if all(varying & mask for mask in differ):
                yield from _near_values(block, distance, depth - 1)
        last = np.repeat(np.where(long, 0, ends), ends - begins)  # end of each hash's group; 0: compared above
        places = np.arange(len(chunk))
        for step in range(1, SHORT):
            places = places[places + step < last[places]]
            if not len(places):
                break
            one, other = chunk[places], chunk[places + step]
            near = np.bitwise_count(one ^ other) <= distance
            if near.any():
                yield one[near], other[near]


def _all_with_all(values: Hashes, distance: int) -> Pairs:
    rows = max(1, _BLOCK // max(1, len(values)))
    for low in range(0, len(values), rows):
        block, others = values[low : low + rows], values[low:]
        near = np.bitwise_count(block[:, None] ^ others[None]) <= distance
        one, other = np.divmod(np.flatnonzero(near), len(others))  # far faster than `nonzero` in two dimensions
        later = other > one
        if later.any():
            yield block[one[later]], others[other[later]]


def _cut(values: Hashes, number: int) -> list[Band]:
    """Cut 64 bits into `number` bands. Each band contains the same number of bits in which the hashes vary."""
    chunks = (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))
    varying = int(np.bitwise_or.reduce([np.bitwise_or.reduce(chunk ^ values[0]) for chunk in chunks]))
    bits = [bit for bit in range(_BITS) if varying >> bit & 1]
    cuts = [0, *(bits[len(bits) * band // number] for band in range(1, number)), _BITS]
    return list(pairwise(cuts))


def _mask(band: Band) -> np.uint64:
    low, high = band
    return np.uint64(((1 << (high - low)) - 1) << low)


def _reordered(values: Hashes, order: Sequence[Band]) -> Hashes:
    """Return copies of the hashes with the bands in the order of `order`, starting at the highest bits."""
    return _moved(values, zip(order, _places(order), strict=True))


def _restored(values: Hashes, order: Sequence[Band]) -> Hashes:
    """Reverse `_reordered`."""
    return _moved(values, zip(_places(order), order, strict=True))


def _places(order: Sequence[Band]) -> list[Band]:
    """Return the position that each band of `order` has in the hashes from `_reordered`."""
    ends = accumulate((low - high for low, high in order), initial=_BITS)
    return [(low, high) for high, low in pairwise(ends)]


def _moved(values: Hashes, moves: Iterable[tuple[Band, Band]]) -> Hashes:
    """Return copies of the hashes in which the bits of each pair's second band are moved to the first band."""
    found = np.zeros_like(values)
    shifts = [(_mask(band), target[0] - band[0]) for band, target in moves]
    for start in range(0, len(values), CHUNK):
        chunk = slice(start, start + CHUNK)
        for mask, by in shifts:
            part = values[chunk] & mask
            found[chunk] |= part << np.uint64(by) if by >= 0 else part >> np.uint64(-by)
    return found
