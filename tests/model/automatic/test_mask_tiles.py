"""Counts, boxes and pixels by tiles, against the plain upscaling of whole masks."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from segmint.model.automatic import mask_tiles
from segmint.model.automatic.boxes import mask_boxes
from segmint.model.automatic.mask_tiles import Strip, draw, measure
from segmint.model.automatic.taps import Taps, interpolate, taps_of
from segmint.model.sam.preprocess import resized_size
from tests.support.whole_masks import blobs

CPU = torch.device("cpu")


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
    rows, columns = both_taps(500, 700)
    low = blobs(7, 6, 4)
    at_once = measure(low, rows, columns, 1.0)
    for budget in (1, 5_000, 300_000):
        monkeypatch.setattr(mask_tiles, "_TILE_ELEMENTS", budget)
        with LargestStrip() as largest:
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
