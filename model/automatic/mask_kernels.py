"""Triton kernels for `mask_tiles.py`, in which logits at the crop's resolution only exist in registers.

Each program processes a tile of one mask. It computes the logit of each pixel from nine low-resolution logits, which
are in the first-level cache, and compares it with the thresholds. `measure` accumulates counts and extremes, and writes
seven numbers per tile. It doesn't compute pixels whose low-resolution logits are all on one side of the thresholds.
`draw` writes the pixels inside a mask's box. Tiles outside `taps.reached` are skipped. The kernels sum in the same
order as `taps.interpolate` and don't fuse multiplications with additions, so all bits match torch's operations.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from segmint.model.automatic.mask_tiles import Strip, Taps
from segmint.model.device import launching_on, upload

# Tile of a program in pixels. With four warps, each thread processes eight pixels. The longer side is in the direction
# of the writes or reductions.
SHORT = 8
LONG = 128

# Numbers of rows of low-resolution logits, and of tile results, that a program reads at once.
_LOW_ROWS = 16
_TILES = 128

# Low-resolution logits that a program compares with the thresholds at once. In a photograph of 1500 pixels, a tile uses
# 4 rows and 24 columns.
BORDER = {"LOW_ROWS": 4, "LOW_COLUMNS": 32}

# Sizes differ from photograph to photograph. By default, Triton would compile the kernels again for sizes that are
# multiples of 16, and a photograph would have to wait.
_SIZES = ["height", "width", "tiles"]


def measure(low: Tensor, rows: Taps, columns: Taps, offset: float, wanted: Tensor | None = None) -> Tensor:
    """See `mask_tiles.measure`."""
    tiles = triton.cdiv(rows.pixels, SHORT)
    found = torch.empty((len(low), tiles, 7), dtype=torch.int32, device=low.device)
    numbers = torch.empty((len(low), 7), dtype=torch.int64, device=low.device)
    if len(low):
        bounds = torch.empty((len(low), 4), dtype=torch.int32, device=low.device)
        wanted = torch.ones(len(low), dtype=torch.bool, device=low.device) if wanted is None else wanted
        with launching_on(low.device):
            reach_kernel[(len(low),)](
                low.contiguous(),
                wanted.view(torch.uint8),
                columns.starts,
                rows.starts,
                columns.stops,
                rows.stops,
                bounds,
                float(offset),
                SIDE=low.shape[2],
                ACROSS=triton.next_power_of_2(low.shape[2]),
                ROWS=_LOW_ROWS,
            )
            measure_kernel[(len(low), tiles)](
                low.contiguous(),
                bounds,
                *_taps(rows, columns),
                found,
                float(offset),
                rows.pixels,
                columns.pixels,
                tiles,
                ROWS=SHORT,
                COLUMNS=LONG,
                enable_fp_fusion=False,
                **BORDER,
                **_sizes(low, rows, columns),
            )
            total_kernel[(len(low),)](found, numbers, tiles, BLOCK=_TILES)
    return numbers


def draw(flat: Tensor, low: Tensor, rows: Taps, columns: Taps, strips: Sequence[Strip]) -> None:
    """See `mask_tiles.draw`."""
    tiles = triton.cdiv(max(strip.columns for strip in strips), SHORT)
    table = upload(torch.tensor(strips, dtype=torch.int64), low.device)
    with launching_on(low.device):
        draw_kernel[(len(strips), tiles)](
            low.contiguous(),
            table,
            *_taps(rows, columns),
            flat,
            rows.pixels,
            columns.pixels,
            ROWS=LONG,
            COLUMNS=SHORT,
            enable_fp_fusion=False,
            **_sizes(low, rows, columns),
        )


def _taps(rows: Taps, columns: Taps) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return rows.first, rows.weights, columns.first, columns.weights


def _sizes(low: Tensor, rows: Taps, columns: Taps) -> dict[str, int]:
    return {"SIDE": low.shape[2], "ROW_TAPS": len(rows.weights), "COLUMN_TAPS": len(columns.weights)}


@triton.jit
def logits_of_tile(
    low,
    row_first,
    row_weights,
    column_first,
    column_weights,
    y,
    y_inside,
    x,
    x_inside,
    height,
    width,
    SIDE: tl.constexpr,
    ROW_TAPS: tl.constexpr,
    COLUMN_TAPS: tl.constexpr,
):
    """Compute the logits (rows, columns) of pixels y (rows,) and x (columns,) of one mask, arbitrary outside it."""
    i = tl.load(row_first + y, mask=y_inside, other=0)
    j = tl.load(column_first + x, mask=x_inside, other=0)
    across = tl.zeros((y.shape[0], x.shape[0]), tl.float32)
    for b in tl.static_range(COLUMN_TAPS):
        down = tl.zeros((y.shape[0], x.shape[0]), tl.float32)
        for a in tl.static_range(ROW_TAPS):
            weight = tl.load(row_weights + a * height + y, mask=y_inside, other=0.0)
            down += tl.load(low + (i[:, None] + a) * SIDE + (j[None, :] + b)) * weight[:, None]
        weight = tl.load(column_weights + b * width + x, mask=x_inside, other=0.0)
        across += down * weight[None, :]
    return across


@triton.jit
def reach_kernel(
    low,
    wanted,
    column_starts,
    row_starts,
    column_stops,
    row_stops,
    bounds,
    offset,
    SIDE: tl.constexpr,
    ACROSS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Compute the bounds of `taps.reached`, with one program per mask.

    If the mask is empty or not wanted, its box is empty.
    """
    mask = tl.program_id(0).to(tl.int64)
    x = tl.arange(0, ACROSS)
    in_columns = tl.zeros((ACROSS,), tl.int32)
    y0 = tl.zeros((ROWS,), tl.int32) + SIDE
    y1 = tl.zeros((ROWS,), tl.int32) - 1
    end = tl.where(tl.load(wanted + mask) > 0, SIDE, 0)
    for top in range(0, end, ROWS):
        y = top + tl.arange(0, ROWS)
        inside = (y < SIDE)[:, None] & (x < SIDE)[None, :]
        logits = tl.load(low + mask * (SIDE * SIDE) + y[:, None] * SIDE + x[None, :], mask=inside, other=0.0)
        over = (inside & (logits > -offset)).to(tl.int32)
        in_columns = tl.maximum(in_columns, tl.max(over, axis=0))
        in_rows = tl.max(over, axis=1) > 0
        y0 = tl.minimum(y0, tl.where(in_rows, y, SIDE))
        y1 = tl.maximum(y1, tl.where(in_rows, y, -1))
    top, bottom = tl.min(y0, axis=0), tl.max(y1, axis=0)
    left = tl.min(tl.where(in_columns > 0, x, SIDE), axis=0)
    right = tl.max(tl.where(in_columns > 0, x, -1), axis=0)
    some = bottom >= 0
    bounds += mask * 4
    tl.store(bounds, tl.load(column_starts + left, mask=some, other=0))
    tl.store(bounds + 1, tl.load(row_starts + top, mask=some, other=0))
    tl.store(bounds + 2, tl.load(column_stops + right, mask=some, other=0))
    tl.store(bounds + 3, tl.load(row_stops + bottom, mask=some, other=0))


@triton.jit(do_not_specialize=["tiles"])
def total_kernel(found, numbers, tiles, BLOCK: tl.constexpr):
    """Combine the numbers of a mask's tiles, with one program per mask. The box of an empty mask is all zeros."""
    mask = tl.program_id(0).to(tl.int64)
    found += mask * tiles * 7
    numbers += mask * 7
    inner = tl.zeros((BLOCK,), tl.int32)
    area = tl.zeros((BLOCK,), tl.int32)
    outer = tl.zeros((BLOCK,), tl.int32)
    x0 = tl.zeros((BLOCK,), tl.int32) + 0x7FFFFFFF
    y0 = tl.zeros((BLOCK,), tl.int32) + 0x7FFFFFFF
    x1 = tl.zeros((BLOCK,), tl.int32) - 1
    y1 = tl.zeros((BLOCK,), tl.int32) - 1
    for first in range(0, tiles, BLOCK):
        tile = first + tl.arange(0, BLOCK)
        inside = tile < tiles
        place = found + tile * 7
        inner += tl.load(place, mask=inside, other=0)
        area += tl.load(place + 1, mask=inside, other=0)
        outer += tl.load(place + 2, mask=inside, other=0)
        x0 = tl.minimum(x0, tl.load(place + 3, mask=inside, other=0x7FFFFFFF))
        y0 = tl.minimum(y0, tl.load(place + 4, mask=inside, other=0x7FFFFFFF))
        x1 = tl.maximum(x1, tl.load(place + 5, mask=inside, other=-1))
        y1 = tl.maximum(y1, tl.load(place + 6, mask=inside, other=-1))
    total = tl.sum(area, axis=0)
    some = (total > 0).to(tl.int64)
    tl.store(numbers, tl.sum(inner, axis=0).to(tl.int64))
    tl.store(numbers + 1, total.to(tl.int64))
    tl.store(numbers + 2, tl.sum(outer, axis=0).to(tl.int64))
    tl.store(numbers + 3, tl.min(x0, axis=0).to(tl.int64) * some)
    tl.store(numbers + 4, tl.min(y0, axis=0).to(tl.int64) * some)
    tl.store(numbers + 5, tl.max(x1, axis=0).to(tl.int64) * some)
    tl.store(numbers + 6, tl.max(y1, axis=0).to(tl.int64) * some)


@triton.jit(do_not_specialize=_SIZES)
def measure_kernel(
    low,
    bounds,
    row_first,
    row_weights,
    column_first,
    column_weights,
    found,
    offset,
    height,
    width,
    tiles,
    SIDE: tl.constexpr,
    ROW_TAPS: tl.constexpr,
    COLUMN_TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LOW_ROWS: tl.constexpr,
    LOW_COLUMNS: tl.constexpr,
):
    """Compute the counts and the box of ROWS rows of a mask inside its bounds, with one program per (mask, tile).

    Pixels are only computed where a tile's low-resolution logits, LOW_ROWS x LOW_COLUMNS at a time, are on both sides
    of a threshold.
    """
    MARGIN: tl.constexpr = 1.00001
    mask = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    left = tl.load(bounds + mask * 4)
    top = tl.load(bounds + mask * 4 + 1)
    right = tl.load(bounds + mask * 4 + 2)
    bottom = tl.load(bounds + mask * 4 + 3)
    y = tile * ROWS + tl.arange(0, ROWS)
    y_inside = (y >= top) & (y < bottom)
    right = tl.where((tile * ROWS < bottom) & (tile * ROWS + ROWS > top), right, left)
    inner = tl.zeros((ROWS, COLUMNS), tl.int32)
    area = tl.zeros((ROWS, COLUMNS), tl.int32)
    outer = tl.zeros((ROWS, COLUMNS), tl.int32)
    first = tl.zeros((ROWS, COLUMNS), tl.int32) + width
    last = tl.zeros((ROWS, COLUMNS), tl.int32) - 1
    for start in range(left, right, COLUMNS):
        x = start + tl.arange(0, COLUMNS)
        x_inside = x < right
        # The pixels are weighted means of these logits. If the logits are all above or all below the thresholds, so are
        # the pixels, and none is computed. The margin covers rounding. A weight of 0 makes the pixel of an infinite
        # logit not a number, which is below all thresholds.
        i0 = tl.load(row_first + tl.maximum(tile * ROWS, top))
        i1 = tl.load(row_first + tl.minimum(tile * ROWS + ROWS, bottom) - 1) + ROW_TAPS
        j0 = tl.load(column_first + start)
        j1 = tl.load(column_first + tl.minimum(start + COLUMNS, right) - 1) + COLUMN_TAPS
        least = tl.full((LOW_ROWS, LOW_COLUMNS), float("inf"), tl.float32)
        most = tl.full((LOW_ROWS, LOW_COLUMNS), float("-inf"), tl.float32)
        for i_start in range(i0, i1, LOW_ROWS):
            i = i_start + tl.arange(0, LOW_ROWS)
            for j_start in range(j0, j1, LOW_COLUMNS):
                j = j_start + tl.arange(0, LOW_COLUMNS)
                used = (i < i1)[:, None] & (j < j1)[None, :]
                logit = tl.load(low + mask * (SIDE * SIDE) + i[:, None] * SIDE + j[None, :], mask=used, other=0.0)
                is_number = logit == logit
                least = tl.minimum(least, tl.where(used, tl.where(is_number, logit, float("-inf")), float("inf")))
                most = tl.maximum(most, tl.where(used, tl.where(is_number, logit, float("inf")), float("-inf")))
        lowest, highest = tl.min(tl.min(least, axis=1), axis=0), tl.max(tl.max(most, axis=1), axis=0)
        all_in = (lowest > offset * MARGIN) & (highest < float("inf"))
        all_out = highest < -offset * MARGIN
        inside = y_inside[:, None] & x_inside[None, :]
        if all_in:
            inner += inside.to(tl.int32)
            area += inside.to(tl.int32)
            outer += inside.to(tl.int32)
            first = tl.minimum(first, tl.where(inside, x[None, :], width))
            last = tl.maximum(last, tl.where(inside, x[None, :], -1))
        elif not all_out:
            logits = logits_of_tile(
                low + mask * (SIDE * SIDE),
                row_first,
                row_weights,
                column_first,
                column_weights,
                y,
                y_inside,
                x,
                x_inside,
                height,
                width,
                SIDE,
                ROW_TAPS,
                COLUMN_TAPS,
            )
            over = inside & (logits > 0)
            inner += (inside & (logits > offset)).to(tl.int32)
            area += over.to(tl.int32)
            outer += (inside & (logits > -offset)).to(tl.int32)
            first = tl.minimum(first, tl.where(over, x[None, :], width))
            last = tl.maximum(last, tl.where(over, x[None, :], -1))
    in_rows = tl.max(area, axis=1) > 0
    found += (mask * tiles + tile) * 7
    tl.store(found, tl.sum(tl.sum(inner, axis=1), axis=0))
    tl.store(found + 1, tl.sum(tl.sum(area, axis=1), axis=0))
    tl.store(found + 2, tl.sum(tl.sum(outer, axis=1), axis=0))
    tl.store(found + 3, tl.min(tl.min(first, axis=1), axis=0))
    tl.store(found + 4, tl.min(tl.where(in_rows, y, height), axis=0))
    tl.store(found + 5, tl.max(tl.max(last, axis=1), axis=0))
    tl.store(found + 6, tl.max(tl.where(in_rows, y, -1), axis=0))


@triton.jit(do_not_specialize=_SIZES[:2])
def draw_kernel(
    low,
    strips,
    row_first,
    row_weights,
    column_first,
    column_weights,
    flat,
    height,
    width,
    SIDE: tl.constexpr,
    ROW_TAPS: tl.constexpr,
    COLUMN_TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Draw COLUMNS columns of a strip, each followed by one background pixel, with one program per (strip, tile)."""
    strip = strips + tl.program_id(0).to(tl.int64) * 6
    mask = tl.load(strip)
    x0 = tl.load(strip + 1)
    y0 = tl.load(strip + 2)
    columns = tl.load(strip + 3)
    rows = tl.load(strip + 4)
    start = tl.load(strip + 5)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    x_inside = column < columns
    end = tl.where(tl.program_id(1) * COLUMNS < columns, rows + 1, 0)
    for top in range(0, end, ROWS):
        row = top + tl.arange(0, ROWS)
        y_inside = row < rows
        logits = logits_of_tile(
            low + mask * (SIDE * SIDE),
            row_first,
            row_weights,
            column_first,
            column_weights,
            y0 + row,
            y_inside,
            x0 + column,
            x_inside,
            height,
            width,
            SIDE,
            ROW_TAPS,
            COLUMN_TAPS,
        )
        pixels = (logits > 0) & y_inside[:, None]
        place = flat + start + column[None, :] * (rows + 1) + row[:, None]
        tl.store(place, pixels.to(tl.uint8), mask=(row <= rows)[:, None] & x_inside[None, :])
