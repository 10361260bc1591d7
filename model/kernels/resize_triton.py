"""Triton kernel that resizes an image in both directions at once, with the integer sums of `preprocess.py`.

Pillow rounds the results of its first pass to 8 bits. A program computes these results again for each tap of the second
pass, and keeps them in registers. In return, there is a single kernel that reads and writes each image once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from segmint.model.device import launching_on

Taps = tuple[Tensor, Tensor]
"""Source positions and weights along one axis, as in `preprocess.triangle_weights`, on the image's device."""

# Tile of a program: rows, and values of red, green, and blue in a row.
TILE = {"ROWS": 4, "COLUMNS": 128}

# Sizes differ from photograph to photograph. By default, Triton would compile the kernel again for some of them.
SIZES = ["row_step", "column_step", "channel_step", "height", "width", "row_taps", "column_taps"]


def resize(pixels: Tensor, rows: Taps, columns: Taps, columns_first: bool) -> Tensor:
    """Resize (H, W, 3) uint8 to (h, w, 3) with the taps of the h rows and of the w columns.

    With `columns_first`, the first pass goes along columns, otherwise along rows.
    """
    height, width = len(rows[0]), len(columns[0])
    resized = torch.empty((height, width, 3), dtype=torch.uint8, device=pixels.device)
    with launching_on(pixels.device):
        resize_kernel[(triton.cdiv(3 * width, TILE["COLUMNS"]), triton.cdiv(height, TILE["ROWS"]))](
            pixels,
            *rows,
            *columns,
            resized,
            *pixels.stride(),
            height,
            width,
            rows[0].shape[1],
            columns[0].shape[1],
            COLUMNS_FIRST=columns_first,
            **TILE,
        )
    return resized


@triton.jit
def rounded(sums):
    """Convert sums with 22 fractional bits to pixels."""
    return tl.minimum(tl.maximum((sums + (1 << 21)) >> 22, 0), 255)


@triton.jit(do_not_specialize=SIZES)
def resize_kernel(
    pixels,
    row_places,
    row_weights,
    column_places,
    column_weights,
    resized,
    row_step,
    column_step,
    channel_step,
    height,
    width,
    row_taps,
    column_taps,
    COLUMNS_FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Compute ROWS rows of COLUMNS values of the resized image, with one program per tile."""
    y = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    value = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    y_inside, x_inside = y < height, value < 3 * width
    inside = y_inside[:, None] & x_inside[None, :]
    x = value // 3
    start = pixels + (value % 3)[None, :] * channel_step
    total = tl.zeros((ROWS, COLUMNS), tl.int32)
    if COLUMNS_FIRST:
        for b in range(column_taps):
            place = tl.load(column_places + x * column_taps + b, mask=x_inside, other=0).to(tl.int64)
            sums = tl.zeros((ROWS, COLUMNS), tl.int32)
            for a in range(row_taps):
                row = tl.load(row_places + y * row_taps + a, mask=y_inside, other=0).to(tl.int64)
                source = start + row[:, None] * row_step + place[None, :] * column_step
                weight = tl.load(row_weights + y * row_taps + a, mask=y_inside, other=0)
                sums += tl.load(source, mask=inside, other=0).to(tl.int32) * weight[:, None]
            weight = tl.load(column_weights + x * column_taps + b, mask=x_inside, other=0)
            total += rounded(sums) * weight[None, :]
    else:
        for a in range(row_taps):
            place = tl.load(row_places + y * row_taps + a, mask=y_inside, other=0).to(tl.int64)
            sums = tl.zeros((ROWS, COLUMNS), tl.int32)
            for b in range(column_taps):
                column = tl.load(column_places + x * column_taps + b, mask=x_inside, other=0).to(tl.int64)
                source = start + place[:, None] * row_step + column[None, :] * column_step
                weight = tl.load(column_weights + x * column_taps + b, mask=x_inside, other=0)
                sums += tl.load(source, mask=inside, other=0).to(tl.int32) * weight[None, :]
            weight = tl.load(row_weights + y * row_taps + a, mask=y_inside, other=0)
            total += rounded(sums) * weight[:, None]
    tl.store(resized + y[:, None] * (3 * width) + value[None, :], rounded(total).to(tl.uint8), mask=inside)
