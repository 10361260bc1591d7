"""Three weights a pixel and side are the whole matrix; a pixel has the same bits whatever is computed beside it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segmint.model.automatic.interpolation import interpolation
from segmint.model.automatic.taps import interpolate, reached, taps_of
from segmint.model.sam.load import build_sam
from segmint.model.sam.predictor import Predictor
from segmint.model.sam.preprocess import resized_size
from tests.support.whole_masks import blobs, embedding_of

CPU = torch.device("cpu")
SIZES = [(1200, 1800), (534, 800), (97, 211), (1, 3), (40, 3000), (300, 300)]


def both_taps(height: int, width: int) -> tuple:
    filled_height, filled_width = resized_size(height, width, 1024)
    return taps_of(256, 1024, filled_height, height, CPU), taps_of(256, 1024, filled_width, width, CPU)


@pytest.mark.parametrize("size", SIZES)
def test_taps_are_the_matrix_without_its_zeros(size: tuple[int, int]) -> None:
    for taps, filled, pixels in zip(both_taps(*size), resized_size(*size, 1024), size, strict=True):
        matrix = torch.zeros(pixels, 256)
        for tap, weights in enumerate(taps.weights):
            matrix[torch.arange(pixels), taps.first + tap] += weights

        assert torch.equal(matrix, interpolation(256, 1024, filled, pixels).weights)
        assert len(taps.weights) <= 3


@pytest.mark.parametrize("size", SIZES)
def test_logits_are_those_of_both_interpolations(size: tuple[int, int]) -> None:
    low = 10 * torch.randn(2, 256, 256)

    found = interpolate(low, *both_taps(*size))

    plain = Predictor(build_sam("mobile_sam")).upscale(low[None], embedding_of(*size))[0]
    torch.testing.assert_close(found, plain, atol=2e-5, rtol=0)


@given(st.integers(1, 300), st.integers(1, 300), st.data())
@settings(max_examples=30)
def test_a_pixel_has_the_same_bits_in_any_part(height: int, width: int, data: st.DataObject) -> None:
    rows, columns = both_taps(height, width)
    low = blobs(height + width, 3, 5)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom, right = data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width))

    part = interpolate(low[1:2], rows.part(top, bottom), columns.part(left, right))

    assert torch.equal(part, interpolate(low, rows, columns)[1:2, top:bottom, left:right])


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**20), st.integers(1, 30))
@settings(max_examples=40)
def test_nothing_is_over_the_threshold_beyond_what_is_reached(height: int, width: int, seed: int, spread: int) -> None:
    rows, columns = both_taps(height, width)
    low = blobs(seed, 4, spread)
    low[3] = -12
    low[3, 250:] = 12  # over the padding of all but tall images

    bounds = reached(low, 1.0, rows, columns)

    assert bounds.dtype == torch.int32
    for over, (x0, y0, x1, y1) in zip(interpolate(low, rows, columns) > -1.0, bounds.tolist(), strict=True):
        assert over.sum() == over[y0 : max(y0, y1), x0 : max(x0, x1)].sum()


def test_bounds_are_no_wider_than_a_logits_reach() -> None:
    low = torch.full((1, 256, 256), -12.0)
    low[0, 50:90, 60:100] = 12.0

    # In a frame of 150 x 200 a logit is 0.78 pixels wide and reaches one more on either side.
    assert reached(low, 1.0, *both_taps(150, 200))[0].tolist() == pytest.approx([46, 38, 79, 71], abs=1)
