"""Counts, boxes, and pixels of masks at the crop's resolution, by torch operations on tiles of the crop.

Full-size masks are never stored: each tile of logits is reduced to counts and extremes before the next one is computed,
and only the pixels inside a mask's box are drawn. `mask_kernels.py` computes the same bits without tiles.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from segmint.model.automatic.boxes import occupied_boxes
from segmint.model.automatic.taps import Taps, interpolate

# Logits per tile: 128 MB in float32, far below the 2^31 elements that kernels can index, for any image size and any
# number of masks in a chunk. A pixel's bits don't depend on its tile.
_TILE_ELEMENTS = 1 << 25


class Strip(NamedTuple):
    """Columns of one mask inside its box, and the position at which they are drawn.

    Drawn columns are concatenated, each followed by one background pixel, so the strip takes `columns * (height + 1)`
    pixels from `start`.
    """

    mask: int
    x: int
    y: int
    columns: int
    height: int
    start: int


def measure(low: Tensor, rows: Taps, columns: Taps, offset: float, wanted: Tensor | None = None) -> Tensor:
    """Return counts and boxes of the masks of logits (N, S, S) float32, without storing the masks.

    The result is (N, 7) int64: the pixels above +offset, 0, and -offset, and the box x0, y0, x1, y1 of those above 0,
    ends inclusive. It is all zeros for empty masks and masks not `wanted` (N,) bool, whose logits may be arbitrary.
    """
    step = _TILE_ELEMENTS // max(columns.pixels, low.shape[2])
    parts = [_measure(low[start:stop], rows, columns, offset) for start, stop in _spans(len(low), step)]
    found = torch.cat([torch.zeros((0, 7), dtype=torch.int64, device=low.device), *parts])
    return found if wanted is None else found * wanted[:, None]


def _measure(low: Tensor, rows: Taps, columns: Taps, offset: float) -> Tensor:
    counts = torch.zeros((len(low), 3), dtype=torch.int64, device=low.device)
    in_rows: list[Tensor] = []
    in_columns = torch.zeros((len(low), columns.pixels), dtype=torch.bool, device=low.device)
    for start, stop in _spans(rows.pixels, _TILE_ELEMENTS // (len(low) * max(columns.pixels, low.shape[2]))):
        logits = interpolate(low, rows.part(start, stop), columns)
        over = logits > 0
        masks = (logits > offset, over, logits > -offset)
        counts += torch.stack([torch.count_nonzero(mask, dim=(1, 2)) for mask in masks], dim=1)
        in_rows.append(over.any(dim=2))
        in_columns |= over.any(dim=1)
    return torch.cat([counts, occupied_boxes(torch.cat(in_rows, dim=1), in_columns)], dim=1)


def draw(flat: Tensor, low: Tensor, rows: Taps, columns: Taps, strips: Sequence[Strip]) -> None:
    """Draw strips of the masks of logits (N, S, S) float32 into `flat` (uint8), which they fill completely."""
    for strip in strips:
        x = columns.part(strip.x, strip.x + strip.columns)
        y = rows.part(strip.y, strip.y + strip.height)
        logits = interpolate(low[strip.mask : strip.mask + 1], y, x)[0]
        drawn = flat[strip.start : strip.start + strip.columns * (strip.height + 1)].view(strip.columns, -1)
        drawn[:, :-1] = logits.T > 0
        drawn[:, -1] = 0


def _spans(length: int, step: int) -> Iterator[tuple[int, int]]:
    for start in range(0, length, max(1, step)):
        yield start, min(length, start + max(1, step))
