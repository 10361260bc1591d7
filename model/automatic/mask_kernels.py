"""Triton kernels for `mask_tiles.py`, in which logits at the crop's resolution only exist in registers.

Each program processes a tile of one mask. It computes a pixel's logit from nine low-resolution logits, which stay in
the first-level cache, compares it with the thresholds, and keeps counts and extremes. It writes seven numbers per tile
(`measure`) or the pixels inside a mask's box (`draw`), and skips tiles outside `taps.reached`. Sums are in the order of
`taps.interpolate`, and multiplications are not fused with additions, so all bits match torch's operations.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from segmint.model.automatic.mask_tiles import Strip
from segmint.model.automatic.taps import Taps, reached
from segmint.model.device import launching_on, upload

# Tile of a program in pixels, eight per thread with four warps. The longer side lies along the writes or reductions.
_SHORT = 8
_LONG = 128

# Sizes differ between photographs. By default, Triton would recompile the kernels for multiples of 16 while a
# photograph waits.
_SIZES = ["height", "width", "tiles"]


def measure(low: Tensor, rows: Taps, columns: Taps, offset: float, wanted: Tensor | None = None) -> Tensor:
    """See `mask_tiles.measure`."""
    tiles = triton.cdiv(rows.pixels, _SHORT)
    found = torch.empty((len(low), tiles, 7), dtype=torch.int32, device=low.device)
    if len(low):
        bounds = reached(low, offset, rows, columns)
        if wanted is not None:  # an empty box is not computed
            bounds = bounds * wanted[:, None]
        with launching_on(low.device):
            measure_kernel[(len(low), tiles)](
                low.contiguous(),
                bounds,
                *_taps(rows, columns),
                found,
                float(offset),
                rows.pixels,
                columns.pixels,
                tiles,
                ROWS=_SHORT,
                COLUMNS=_LONG,
                enable_fp_fusion=False,
                **_sizes(low, rows, columns),
            )
    counts = found[:, :, :3].sum(dim=1)
    boxes = torch.cat([found[:, :, 3:5].amin(dim=1), found[:, :, 5:].amax(dim=1)], dim=1)
    return torch.cat([counts, boxes * (counts[:, 1:2] > 0)], dim=1)


def draw(flat: Tensor, low: Tensor, rows: Taps, columns: Taps, strips: Sequence[Strip]) -> None:
    """See `mask_tiles.draw`."""
    tiles = triton.cdiv(max(strip.columns for strip in strips), _SHORT)
    table = upload(torch.tensor(strips, dtype=torch.int64), low.device)
    with launching_on(low.device):
        draw_kernel[(len(strips), tiles)](
            low.contiguous(),
            table,
            *_taps(rows, columns),
            flat,
            rows.pixels,
            columns.pixels,
            ROWS=_LONG,
            COLUMNS=_SHORT,
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
    """Return logits (rows, columns) of pixels y (rows,) and x (columns,) of one mask, arbitrary outside the mask."""
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
):
    """Compute, as program (mask, tile), the counts and box of ROWS rows of the mask inside its bounds."""
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
        inside = y_inside[:, None] & x_inside[None, :]
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
    """Draw, as program (strip, tile), COLUMNS columns of the strip, each followed by one background pixel."""
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
