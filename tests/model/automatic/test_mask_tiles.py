"""Counts, boxes and pixels by tiles, against the plain upscaling of whole masks."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: PLC2701 - torch documents it under this name

from segmint.model.automatic import mask_tiles
from segmint.model.automatic.crops import mask_boxes
from segmint.model.automatic.mask_tiles import Strip, Taps, draw, interpolate, measure, taps_of
from segmint.model.automatic.proposals import interpolation
from segmint.model.sam.load import build_sam
from segmint.model.sam.predictor import Predictor
from segmint.model.sam.preprocess import resized_size
from tests.support.whole_masks import blobs, embedding_of, reached

CPU = torch.device("cpu")
SIZES = [(1200, 1800), (534, 800), (97, 211), (1, 3), (40, 3000), (300, 300)]


def both_taps(height: int, width: int) -> tuple[Taps, Taps]:
    filled_height, filled_width = resized_size(height, width, 1024)
    return taps_of(256, 1024, filled_height, height, CPU), taps_of(256, 1024, filled_width, width, CPU)


class LargestStrip(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@given(
    st.integers(1, 250), st.integers(1, 250), st.integers(0, 2**20), st.integers(1, 9), st.sampled_from([0.0, 0.5, 1.0])
)
@settings(max_examples=40)
def test_counts_and_boxes_are_those_of_whole_masks(
    height: int, width: int, seed: int, spread: int, offset: float
) -> None:
    rows, columns = both_taps(height, width)
    low = blobs(seed, 3, spread)
    low[2] = -12
    whole = interpolate(low, rows, columns)

    found = measure(low, rows, columns, offset)

    for column, threshold in enumerate((offset, 0, -offset)):
        assert torch.equal(found[:, column], (whole > threshold).sum(dim=(1, 2)))
    assert torch.equal(found[:, 3:], mask_boxes(whole > 0))


def test_tiles_of_any_size_find_the_same_and_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    low = blobs(7, 6, 4)
    for budget, height in ((1, 60), (5_000, 500), (300_000, 500)):
        rows, columns = both_taps(height, 700)
        at_once = measure(low, rows, columns, 1.0)
        with monkeypatch.context() as patched, LargestStrip() as largest:
            patched.setattr(mask_tiles, "TILE_ELEMENTS", budget)
            found = measure(low[:, :, :], rows, columns, 1.0)

        assert torch.equal(found, at_once)
        # The logits themselves, and rows by columns of one bool a mask, are not tiles.
        assert largest.elements <= max(budget, low.numel(), 700)


def test_no_masks_have_no_counts() -> None:
    assert measure(torch.zeros(0, 256, 256), *both_taps(20, 30), 1.0).shape == (0, 7)


def test_strips_are_drawn_column_by_column_with_background_between() -> None:
    rows, columns = both_taps(90, 120)
    low = blobs(1, 2, 3)
    whole = interpolate(low, rows, columns) > 0
    strips = [
        Strip(1, 20, 10, 30, 50, 0),
        Strip(0, 0, 0, 120, 90, 30 * 51),
        Strip(1, 119, 89, 1, 1, 30 * 51 + 120 * 91),
    ]
    flat = torch.full((30 * 51 + 120 * 91 + 2,), 9, dtype=torch.uint8)

    draw(flat, low, rows, columns, strips)

    for strip in strips:
        drawn = flat[strip.start :][: strip.columns * (strip.height + 1)].view(strip.columns, strip.height + 1)
        pixels = whole[strip.mask, strip.y : strip.y + strip.height, strip.x : strip.x + strip.columns]
        assert torch.equal(drawn[:, :-1], pixels.T.to(torch.uint8))
        assert not drawn[:, -1].any()


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
