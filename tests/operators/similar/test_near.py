"""Near pairs of hashes, against a comparison of all with all."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segmint.operators.similar import near
from segmint.operators.similar.near import MOST_BITS, near_pairs


def found(hashes: np.ndarray, distance: int) -> list[tuple[int, int]]:
    return sorted(pair for chunk in near_pairs(hashes, distance) for pair in zip(*map(list, chunk), strict=True))


def by_brute_force(hashes: np.ndarray, distance: int) -> list[tuple[int, int]]:
    pairs = np.argwhere(np.bitwise_count(hashes[:, None] ^ hashes) <= distance)
    return sorted((int(one), int(other)) for one, other in pairs if one < other)


def around(centers: np.ndarray, number: int, flips: int, seed: int) -> np.ndarray:
    """Hashes that differ from one of the centers in up to so many bits."""
    random = np.random.default_rng(seed)
    hashes = random.choice(centers, number)
    for _ in range(flips):
        hashes ^= np.uint64(1) << random.integers(0, 64, number).astype(np.uint64)
    return np.unique(hashes)


@pytest.mark.parametrize("few", [near.FEW, 4], ids=["compared at once", "in bands"])
@settings(max_examples=25)
@given(distance=st.integers(0, MOST_BITS), flips=st.integers(0, 5), seed=st.integers(0, 99))
def test_pairs_are_those_that_comparing_all_finds(few: int, distance: int, flips: int, seed: int) -> None:
    centers = np.random.default_rng(seed).integers(0, 2**64, 4, np.uint64)
    hashes = around(centers, 100, flips, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "FEW", few)
        patch.setattr(near, "SHORT", 8)
        patch.setattr(near, "DEPTH", 2)
        patch.setattr(near, "CHUNK", 32)
        assert found(hashes, distance) == by_brute_force(hashes, distance)


def test_a_large_block_of_near_hashes_is_compared_in_parts() -> None:
    low_bits = np.unique(np.random.default_rng(0).integers(0, 2**13, 4_000).astype(np.uint64)) << np.uint64(20)
    assert found(low_bits, 3) == by_brute_force(low_bits, 3)


def test_a_distance_or_hashes_that_cannot_be_searched_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a distance of 0 to 4"):
        next(near_pairs(np.array([1], np.uint64), 5))
    with pytest.raises(ValueError, match="in ascending order"):
        next(near_pairs(np.array([2, 1], np.uint64), 3))
