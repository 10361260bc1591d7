"""Label Studio's run lengths: the bytes of its SDK, what its decoder reads, and an error for everything damaged."""

from contextlib import suppress
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from label_studio_sdk.converter import brush

from segmint.operators.annotations.image import UnreadableMaskError
from segmint.operators.annotations.label_studio import decode_runs, encode_runs

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.booleans())
"""Small masks; `grown` gives them runs of all kinds."""


def grown(mask: np.ndarray, times: int) -> np.ndarray:
    return np.repeat(mask, times, axis=1)


class Stream(NamedTuple):
    """Run lengths with other settings than the SDK writes, and the values that they stand for."""

    runs: list[int]
    values: np.ndarray  # RGBA of a row of pixels, one after another
    value_bits: int

    @property
    def size(self) -> tuple[int, int]:
        return 1, self.values.size // 4

    @property
    def mask(self) -> np.ndarray:
        return self.values.reshape(1, -1, 4)[:, :, 3] > 0


@st.composite
def streams(draw: st.DrawFn, value_bits: st.SearchStrategy[int]) -> Stream:
    """Any records that fill an image: each a run or values in a row, of any kind of length that holds its length."""
    bits = draw(value_bits)
    kinds = draw(st.lists(st.integers(1, 16), min_size=4, max_size=4))
    left = 4 * draw(st.integers(1, 50))
    text = f"{left:032b}{bits - 1:05b}" + "".join(f"{kind - 1:04b}" for kind in kinds)
    values: list[int] = []
    value = st.sampled_from([0, 1, 2**bits - 1]) | st.integers(0, 2**bits - 1)
    while left:
        kind = draw(st.integers(0, 3))
        length = draw(st.integers(1, min(left, 2 ** kinds[kind])))
        is_run = draw(st.booleans())
        some = [draw(value)] if is_run else draw(st.lists(value, min_size=length, max_size=length))
        text += f"{int(is_run)}{kind:02b}{length - 1:0{kinds[kind]}b}" + "".join(f"{each:0{bits}b}" for each in some)
        values += some * length if is_run else some
        left -= length
    text += "0" * (-len(text) % 8)
    runs = [int(text[at : at + 8], 2) for at in range(0, len(text), 8)]
    return Stream(runs, np.array(values, np.uint32), bits)


@given(MASKS, st.sampled_from([1, 2, 3, 16, 63, 64, 65, 1000]))
def test_masks_become_the_bytes_of_the_sdk_and_come_back(mask: np.ndarray, times: int) -> None:
    mask = grown(mask, times)
    runs = encode_runs(mask)
    assert runs == brush.mask2rle(mask.astype(np.uint8) * 255)
    np.testing.assert_array_equal(decode_runs(runs, mask.shape), mask)


@pytest.mark.parametrize("pixels", [1, 2, 3, 4, 5, 64, 65, 16_384, 16_385, 32_768, 32_769, 49_153])
def test_runs_at_the_limits_of_their_lengths(pixels: int) -> None:
    for first in (False, True):
        mask = np.array([[first] * pixels + [not first] * (pixels + 1)])
        runs = encode_runs(mask)
        assert runs == brush.mask2rle(mask.astype(np.uint8) * 255)
        np.testing.assert_array_equal(decode_runs(runs, mask.shape), mask)


def test_the_end_of_the_bytes_is_that_of_the_sdk() -> None:
    """The SDK adds a byte of zeros where the bits fill their bytes."""
    for pixels in range(1, 400):
        mask = (np.arange(pixels) % 7 > 2)[None]
        assert encode_runs(mask) == brush.mask2rle(mask.astype(np.uint8) * 255)


@given(streams(st.integers(1, 8)))
def test_the_sdk_decodes_the_same(stream: Stream) -> None:
    np.testing.assert_array_equal(brush.decode_rle(stream.runs), stream.values)
    np.testing.assert_array_equal(decode_runs(stream.runs, stream.size), stream.mask)


@given(streams(st.integers(1, 32)))
def test_values_of_any_size_are_read(stream: Stream) -> None:
    np.testing.assert_array_equal(decode_runs(stream.runs, stream.size), stream.mask)


@given(arrays(np.uint8, st.integers(1, 60).map(lambda pixels: 4 * pixels), elements=st.sampled_from([0, 1, 90, 255])))
def test_what_the_sdk_encodes_of_any_pixels_is_read(values: np.ndarray) -> None:
    """Strokes with soft borders have values that differ from their neighbors'."""
    mask = values.reshape(1, -1, 4)[:, :, 3] > 0
    np.testing.assert_array_equal(decode_runs(brush.encode_rle(values), mask.shape), mask)


@given(streams(st.integers(1, 32)), st.data())
def test_what_is_cut_off_is_refused(stream: Stream, data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, len(stream.runs) - 1))
    with pytest.raises(UnreadableMaskError, match=r"cut off after \d+ of|have \d+ values: expected"):
        decode_runs(stream.runs[:kept], stream.size)


@given(streams(st.integers(1, 32)), st.data())
def test_damaged_bytes_are_read_or_refused(stream: Stream, data: st.DataObject) -> None:
    runs = list(stream.runs)
    for _ in range(data.draw(st.integers(1, 4))):
        runs[data.draw(st.integers(0, len(runs) - 1))] = data.draw(st.integers(0, 255))
    with suppress(UnreadableMaskError):
        assert decode_runs(runs, stream.size).shape == stream.size


@given(streams(st.integers(1, 32)))
def test_another_number_of_pixels_is_refused(stream: Stream) -> None:
    height, width = stream.size
    with pytest.raises(UnreadableMaskError, match=f"have {4 * width} values: expected 1 x {width + 1} x 4"):
        decode_runs(stream.runs, (height, width + 1))


def test_a_run_past_the_end_is_refused() -> None:
    runs = encode_runs(np.zeros((2, 5), bool))
    assert runs[3] == 40
    runs[3] = 4  # of one pixel, where a run of 40 values begins
    with pytest.raises(UnreadableMaskError, match="continue after their 4 values"):
        decode_runs(runs, (1, 1))


@pytest.mark.parametrize("runs", [None, "AAAA", 10**15, {"0": 1}, ["x"], [1.5], [256], [-1], [[0]]])
def test_what_are_no_bytes_is_refused(runs: object) -> None:
    with pytest.raises(UnreadableMaskError, match="not a list of numbers from 0 to 255"):
        decode_runs(runs, (1, 1))
