"""Run lengths agree with pycocotools, character by character."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco

from segmint.model.automatic.rle import Rle, area, compress, decode, decompress, decompress_many, encode, encode_patch

MASKS = arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40))


def coco_counts(mask: np.ndarray) -> str:
    return coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode("ascii")


def smooth_mask(seed: int, height: int, width: int) -> np.ndarray:
    """A few rectangles and holes: long runs, as masks of real images have."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), dtype=bool)
    for value in rng.integers(0, 2, 12):
        y, x = rng.integers(0, height), rng.integers(0, width)
        mask[y : y + rng.integers(1, height), x : x + rng.integers(1, width)] = value
    return mask


@given(MASKS)
@settings(max_examples=300)
def test_encoding_is_that_of_pycocotools(mask: np.ndarray) -> None:
    rle = encode(mask)

    assert rle == Rle(mask.shape, coco_counts(mask))
    assert np.array_equal(decode(rle), mask)
    assert area(rle) == mask.sum()


@pytest.mark.parametrize("seed", range(4))
def test_long_runs_of_large_masks(seed: int) -> None:
    mask = smooth_mask(seed, 1500, 2250)

    rle = encode(mask)

    assert rle.counts == coco_counts(mask)
    assert np.array_equal(decode(rle), mask)
    assert area(rle) == coco.area({"size": [1500, 2250], "counts": rle.counts.encode()}) == mask.sum()


@pytest.mark.parametrize("value", [False, True])
def test_masks_of_one_value(value: bool) -> None:
    mask = np.full((7, 5), value)

    assert encode(mask).counts == coco_counts(mask)
    assert np.array_equal(decode(encode(mask)), mask)


@given(MASKS, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
@settings(max_examples=200)
def test_a_patch_is_encoded_as_the_whole_mask_would_be(
    patch: np.ndarray, left: int, top: int, right: int, bottom: int
) -> None:
    mask = np.pad(patch, ((top, bottom), (left, right)))

    assert encode_patch(patch, (left, top), mask.shape) == Rle(mask.shape, coco_counts(mask))


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=30))
def test_counts_survive_compression(counts: list[int]) -> None:
    assert decompress(compress(np.array(counts))).tolist() == counts


def test_a_patch_outside_the_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="extends beyond the frame"):
        encode_patch(np.ones((3, 3), dtype=bool), (8, 0), (10, 10))


@pytest.mark.parametrize("counts", ["", "5", "5P", "5~", "5é", "\x00", "T5", "1é", "1\ud800"])
def test_damaged_counts_are_refused(counts: str) -> None:
    with pytest.raises(ValueError, match="RLE counts"):
        decode(Rle((4, 4), counts))
    with pytest.raises(ValueError, match="RLE counts"):
        area(Rle((4, 4), counts))


# --- many at once ---

ALPHABET = [chr(code) for code in range(48, 112)]
WRITTEN = st.lists(st.integers(0, 2**40), max_size=20).map(lambda counts: compress(np.array(counts, dtype=np.int64)))
"""What `compress` writes, the empty text among it."""
IN_ALPHABET = st.text(ALPHABET, max_size=40)
"""Mostly cut ends, negative counts and sums that wrap; some numbers of 60 bits and more."""
LONG = st.integers(10, 15).map(lambda groups: "o" * groups)
LONG_NUMBERS = st.builds("{}{}{}".format, IN_ALPHABET, LONG, IN_ALPHABET)
ANYTHING = st.text(max_size=10)


@given(st.lists(WRITTEN | IN_ALPHABET | LONG_NUMBERS | ANYTHING, max_size=12))
@settings(max_examples=300)
def test_many_texts_are_read_as_each_by_itself(texts: list[str]) -> None:
    data = [text.encode("utf-8", errors="surrogatepass") for text in texts]
    ends = np.cumsum([len(each) for each in data], dtype=np.int64)
    many = decompress_many(np.frombuffer(b"".join(data), dtype=np.uint8), ends)
    assert many.ends.shape == many.damaged.shape == (len(texts),)
    for text, start, end, damaged in zip(texts, [0, *many.ends], many.ends, many.damaged, strict=False):
        try:
            expected = decompress(text).tolist()
        except ValueError:
            assert damaged
            expected = []
        else:
            assert not damaged
        assert many.counts[start:end].tolist() == expected
    assert many.counts.size == (many.ends[-1] if texts else 0)


def test_many_real_masks_are_read_as_each_by_itself() -> None:
    texts = [encode(smooth_mask(seed, 300, 200)).counts for seed in range(40)]
    ends = np.cumsum([len(text) for text in texts])
    many = decompress_many(np.frombuffer("".join(texts).encode(), dtype=np.uint8), ends)
    assert not many.damaged.any()
    assert np.array_equal(many.counts, np.concatenate([decompress(text) for text in texts]))


def test_run_lengths_whose_sum_wraps_around_are_refused() -> None:
    """Their sum in 64 bits is the number of pixels; pycocotools would write far outside of the mask."""
    counts = np.array([0, *[1 << 58] * 63, (1 << 58) + 1200])
    assert counts.sum() == 1200
    with pytest.raises(ValueError, match="RLE counts"):
        area(Rle((30, 40), compress(counts)))
