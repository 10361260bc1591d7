"""Perceptual hashes of real photographs, and near pairs against a comparison of all with all."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segmint.operators.audit.masks import DISTANCE, SimilarImage, find_alike
from segmint.operators.similar.near import FRAME, jpeg_hashes
from tests.support.builds import photograph

NAMES = ("astronaut", "coffee", "chelsea", "rocket", "camera", "hubble_deep_field", "immunohistochemistry", "brick")


def jpeg(pixels: np.ndarray, size: tuple[int, int] | None = None, quality: int = 95) -> bytes:
    image = Image.fromarray(pixels)
    sink = io.BytesIO()
    (image if size is None else image.resize(size, Image.Resampling.LANCZOS)).save(sink, "JPEG", quality=quality)
    return sink.getvalue()


def frame_hash(data: bytes) -> int:
    return int(jpeg_hashes(data)[FRAME])


def bits(one: int, other: int) -> int:
    return (one ^ other).bit_count()


@pytest.mark.parametrize("name", NAMES)
def test_an_image_that_is_scaled_and_encoded_again_keeps_its_hash(name: str) -> None:
    pixels = photograph(name)
    before = frame_hash(jpeg(pixels))
    half = pixels.shape[1] // 2, pixels.shape[0] // 2
    assert bits(before, frame_hash(jpeg(pixels, quality=60))) <= DISTANCE
    assert bits(before, frame_hash(jpeg(pixels, half, quality=75))) <= DISTANCE


def test_different_photographs_have_hashes_far_apart() -> None:
    hashes = [frame_hash(jpeg(photograph(name))) for name in NAMES]
    assert find_alike(np.array(hashes, np.uint64)) == []
    assert min(bits(a, b) for i, a in enumerate(hashes) for b in hashes[:i]) > 10


def test_a_picture_that_ends_early_has_no_hash() -> None:
    data = jpeg(photograph("coffee"))
    with pytest.raises(ValueError):
        frame_hash(data[: len(data) // 2] + data[-2:])


def nearest_by_brute_force(hashes: list[int]) -> list[SimilarImage]:
    """The nearest earlier hash of each, compared with all; of those that are as near the first."""
    found = []
    for index, value in enumerate(hashes):
        near = [(bits(value, earlier), at) for at, earlier in enumerate(hashes[:index])]
        if near and min(near)[0] <= DISTANCE:
            found.append(SimilarImage(index, min(near)[1], min(near)[0]))
    return found


@given(st.lists(st.tuples(st.integers(0, 3), st.sets(st.integers(0, 63), max_size=3)), max_size=40), st.integers(0, 9))
def test_near_pairs_are_those_that_comparing_all_finds(flips: list[tuple[int, set[int]]], seed: int) -> None:
    centers = [int(value) for value in np.random.default_rng(seed).integers(0, 2**64, 4, np.uint64)]
    hashes = [centers[center] ^ sum(1 << bit for bit in turned) for center, turned in flips]
    assert find_alike(np.array(hashes, np.uint64)) == nearest_by_brute_force(hashes)


def test_images_without_a_hash_look_like_no_other() -> None:
    assert find_alike(np.array([0, 12345, 0, 12345], np.uint64)) == [SimilarImage(3, 1, 0)]


def test_the_nearest_is_found_among_very_many_neighbors() -> None:
    flipped = [1 << one | 1 << other for one in range(40) for other in range(one)]
    hashes = [int(value) for value in np.random.default_rng(0).permutation(np.array(flipped, np.uint64))]
    assert find_alike(np.array(hashes, np.uint64)) == nearest_by_brute_force(hashes)


def test_very_many_equal_ones_take_no_longer_than_others() -> None:
    hashes = np.full(200_000, 12345, np.uint64)
    hashes[7] = 0xFFFF_FFFF_0000_0000
    found = find_alike(hashes)
    assert len(found) == 199_998
    assert {alike.earlier for alike in found} == {0}
