"""Triton kernels of the image encoder: attention with relative positions, and resizing of its input.

The kernels for attention compute the same as `image_encoder_vit.RelativeAttention`. They read queries, keys, and values
directly from the qkv product, in the output layout of the linear layer. They don't divide it into windows, pad it, copy
it by head, or concatenate anything. The logit of a query at (y, x) for a key at (j, i) of its square is

    q·k / sqrt(D) + q·rows[y - j + S - 1] + q·columns[x - i + S - 1]

(SAM paper, Appendix A; MViTv2, arXiv 2112.01526, eq. 4). Before the kernel runs, a single matrix product multiplies q
by both tables, and the kernel reads the entries that it needs. The softmax is computed online (FlashAttention, arXiv
2205.14135), in float32 for any dtype. Sums have a fixed order, so results are bit-for-bit reproducible.

Triton kernel that resizes an image in both directions at once, with the integer sums of `preprocess.py`.

Pillow rounds the results of its first pass to 8 bits. A program computes these results again for each tap of the second
pass, and keeps them in registers. In return, there is a single kernel that reads and writes each image once.
"""

from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from segmint.model.device import launching_on

HEAD_DIMENSIONS = (64, 80)
"""Supported numbers of channels per head: 64 for ViT-B and ViT-L, and 80 for ViT-H. 80 is split into 64 + 16."""

# Options of the kernels: queries per program, warps, and pipeline stages for prefetching keys. With these values, a
# thread uses at most 512 bytes of stack, and a program uses at most 99 KiB of shared memory, on compute capabilities
# 8.0, 8.6, 8.9, and 9.0.
HALF = {
    "map": {"BLOCK": 128, "num_warps": 8, "num_stages": 3},
    "window": {"PITCH": 16, "KEY_ROWS": 2, "BLOCK": 64, "num_warps": 4, "num_stages": 2},
}
# Tensor cores don't multiply float32 numbers exactly, so each thread has to keep factors in its registers.
FLOAT32 = {
    "map": {"BLOCK": 64, "num_warps": 8, "num_stages": 2},
    "window": {"PITCH": 16, "KEY_ROWS": 2, "BLOCK": 64, "num_warps": 8, "num_stages": 2},
}

_CORE = 64


def options(kernel: str, dtype: torch.dtype) -> dict[str, int]:
    """Return the constants and launch options of the kernel `map` or `window` for tensors of this dtype."""
    return (FLOAT32 if dtype == torch.float32 else HALF)[kernel]


def supports(heads: int, channels: int, side: int, grid: tuple[int, int]) -> bool:
    """Return whether the kernels support `heads` heads over `channels`, in squares of `side` on a map of `grid`.

    If a square is the whole map, its side must be a power of two and at least 16. Otherwise, it's a window, and its
    side must be at most 16.
    """
    if channels % heads or channels // heads not in HEAD_DIMENSIONS:
        return False
    return side <= 16 or _is_map(side, grid)


def _is_map(side: int, grid: tuple[int, int]) -> bool:
    """Return whether squares of `side` are the whole map. The map kernel processes one row of keys per step."""
    return grid == (side, side) and side >= 16 and side & (side - 1) == 0


def attend(qkv: Tensor, padding: Tensor, rows: Tensor, columns: Tensor, heads: int, side: int) -> Tensor:
    """Launch the kernels of `relative_attention`, which has the arguments."""
    batch, height, width, channels = qkv.shape[0], qkv.shape[1], qkv.shape[2], qkv.shape[3] // 3
    dimensions = channels // heads
    if not supports(heads, channels, side, (height, width)):
        raise ValueError(
            f"attention in squares of {side} on {height}x{width}, {heads} heads of {dimensions}: no kernel"
        )
    qkv, padding = qkv.contiguous(), padding.contiguous()
    offset = triton.next_power_of_2(2 * side - 1)
    table = qkv.new_zeros(2 * offset, dimensions)
    table[: 2 * side - 1] = rows
    table[offset : offset + 2 * side - 1] = columns
    queries = qkv.view(batch * height * width, 3, heads, dimensions)[:, 0].transpose(0, 1)
    positions = torch.bmm(queries, table.T.expand(heads, -1, -1))
    attended = torch.empty((batch, height, width, channels), dtype=qkv.dtype, device=qkv.device)
    shape = {"HEADS": heads, "CORE": _CORE, "REST": dimensions - _CORE, "SIDE": side, "OFFSET": offset}
    if _is_map(side, (height, width)):
        chosen = options("map", qkv.dtype)
        _launch(map_kernel)[(side * side // chosen["BLOCK"], heads, batch)](
            qkv, positions, attended, dimensions**-0.5, **shape, **chosen
        )
    else:
        chosen = options("window", qkv.dtype)
        blocks = triton.cdiv(side * chosen["PITCH"], chosen["BLOCK"])
        windows = triton.cdiv(height, side) * triton.cdiv(width, side)
        _launch(window_kernel)[(blocks * windows, heads, batch)](
            qkv, padding, positions, attended, dimensions**-0.5, **shape, HEIGHT=height, WIDTH=width, **chosen
        )
    return attended


_operator = torch.library.triton_op("segmint::relative_attention", attend, mutates_args=())


def relative_attention(qkv: Tensor, padding: Tensor, rows: Tensor, columns: Tensor, heads: int, side: int) -> Tensor:
    """Compute self-attention in squares of `side` tokens, which are windows or the whole map, as (B, H, W, C).

    Args:
        qkv: (B, H, W, 3C), queries, keys, and values of all heads, including their bias.
        padding: (3C,), the bias. The tokens that pad the last windows use it as keys and values.
        rows: (2 * side - 1, C / heads), the position table of rows.
        columns: (2 * side - 1, C / heads), the position table of columns.
        heads: number of heads. Each has 64 or 80 channels.
        side: side of a square in tokens. If it equals H and W, every token attends to all others.

    This is a torch operator without gradients. Raises ValueError if `supports` returns False.
    """
    return cast(Tensor, _operator(qkv, padding, rows, columns, heads, side))


def _launch(kernel: Any) -> Any:
    """Wrap the kernel for torch's compiler. Triton's interpreter needs the unwrapped kernel."""
    return torch.library.wrap_triton(kernel) if isinstance(kernel, triton.JITFunction) else kernel


@triton.jit
def attend_to(q, q_rest, k, k_rest, v, v_rest, bias, top, total, sums, sums_rest, scale, REST: tl.constexpr):
    """Run one step of the online softmax over these keys. `bias` and the maxima are in units of log2."""
    logits = tl.dot(q, k, input_precision="ieee")
    if REST > 0:
        logits = tl.dot(q_rest, k_rest, logits, input_precision="ieee")
    logits = logits * scale + bias
    higher = tl.maximum(top, tl.max(logits, 1))
    weights = tl.exp2(logits - higher[:, None])
    fade = tl.exp2(top - higher)
    total = total * fade + tl.sum(weights, 1)
    weights = weights.to(q.dtype)
    sums = tl.dot(weights, v, sums * fade[:, None], input_precision="ieee")
    if REST > 0:
        sums_rest = tl.dot(weights, v_rest, sums_rest * fade[:, None], input_precision="ieee")
    return higher, total, sums, sums_rest


@triton.jit
def map_kernel(
    qkv,
    positions,
    attended,
    scale,
    HEADS: tl.constexpr,
    CORE: tl.constexpr,
    REST: tl.constexpr,
    SIDE: tl.constexpr,
    OFFSET: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Attend over the whole map, with one program per (block of queries, head, image).

    Each step processes one row of keys. The column terms are the same in all steps.
    """
    LOG2_E: tl.constexpr = 1.4426950408889634
    scale = tl.cast(scale, tl.float32)  # torch's compiler passes it as float64
    DIMENSIONS: tl.constexpr = CORE + REST
    TOKENS: tl.constexpr = SIDE * SIDE
    PITCH: tl.constexpr = 3 * HEADS * DIMENSIONS
    head = tl.program_id(1).to(tl.int64)
    image = tl.program_id(2).to(tl.int64)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, CORE)
    rest = CORE + tl.arange(0, REST if REST > 0 else 16)
    start = qkv + image * TOKENS * PITCH + head * DIMENSIONS
    q = tl.load(start + token[:, None] * PITCH + channel[None, :])
    q_rest = q
    if REST > 0:
        q_rest = tl.load(start + token[:, None] * PITCH + rest[None, :])
    i = tl.arange(0, SIDE)
    terms = positions + ((head * tl.num_programs(2) + image) * TOKENS + token) * (2 * OFFSET)
    y, x = token // SIDE, token % SIDE
    of_columns = tl.load(terms[:, None] + OFFSET + (x[:, None] - i[None, :] + SIDE - 1)).to(tl.float32) * LOG2_E
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    sums = tl.zeros((BLOCK, CORE), tl.float32)
    sums_rest = tl.zeros((BLOCK, REST if REST > 0 else 16), tl.float32)
    keys = start + HEADS * DIMENSIONS
    values = start + 2 * HEADS * DIMENSIONS
    for j in range(SIDE):
        key = j * SIDE + i
        k = tl.load(keys + key[None, :] * PITCH + channel[:, None])
        v = tl.load(values + key[:, None] * PITCH + channel[None, :])
        k_rest, v_rest = k, v
        if REST > 0:
            k_rest = tl.load(keys + key[None, :] * PITCH + rest[:, None])
            v_rest = tl.load(values + key[:, None] * PITCH + rest[None, :])
        of_row = tl.load(terms + (y - j + SIDE - 1)).to(tl.float32) * LOG2_E
        bias = of_columns + of_row[:, None]
        top, total, sums, sums_rest = attend_to(
            q, q_rest, k, k_rest, v, v_rest, bias, top, total, sums, sums_rest, scale * LOG2_E, REST
        )
    out = attended + (image * TOKENS + token[:, None]) * (HEADS * DIMENSIONS) + head * DIMENSIONS
    tl.store(out + channel[None, :], (sums / total[:, None]).to(q.dtype))
    if REST > 0:
        tl.store(out + rest[None, :], (sums_rest / total[:, None]).to(q.dtype))


@triton.jit
def window_kernel(
    qkv,
    padding,
    positions,
    attended,
    scale,
    HEADS: tl.constexpr,
    CORE: tl.constexpr,
    REST: tl.constexpr,
    SIDE: tl.constexpr,
    OFFSET: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    PITCH: tl.constexpr,
    KEY_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Attend within windows, with one program per (window and block of its queries, head, image).

    A window's rows are padded to PITCH. Queries also attend to keys outside the map, which come from the padding.
    Queries outside the map aren't computed.
    """
    LOG2_E: tl.constexpr = 1.4426950408889634
    scale = tl.cast(scale, tl.float32)  # torch's compiler passes it as float64
    DIMENSIONS: tl.constexpr = CORE + REST
    TOKENS: tl.constexpr = HEIGHT * WIDTH
    STEP: tl.constexpr = 3 * HEADS * DIMENSIONS
    ACROSS: tl.constexpr = (WIDTH + SIDE - 1) // SIDE
    BLOCKS: tl.constexpr = (SIDE * PITCH + BLOCK - 1) // BLOCK
    window = tl.program_id(0) // BLOCKS
    top_row, left = (window // ACROSS) * SIDE, (window % ACROSS) * SIDE
    head = tl.program_id(1).to(tl.int64)
    image = tl.program_id(2).to(tl.int64)
    channel = tl.arange(0, CORE)
    rest = CORE + tl.arange(0, REST if REST > 0 else 16)
    place = (tl.program_id(0) % BLOCKS) * BLOCK + tl.arange(0, BLOCK)
    y, x = place // PITCH, place % PITCH
    asked = (x < SIDE) & (y < SIDE) & (top_row + y < HEIGHT) & (left + x < WIDTH)
    token = tl.where(asked, (top_row + y) * WIDTH + left + x, 0)
    start = qkv + image * TOKENS * STEP + head * DIMENSIONS
    q = tl.load(start + token[:, None] * STEP + channel[None, :], mask=asked[:, None], other=0.0)
    q_rest = q
    if REST > 0:
        q_rest = tl.load(start + token[:, None] * STEP + rest[None, :], mask=asked[:, None], other=0.0)
    terms = positions + ((head * tl.num_programs(2) + image) * TOKENS + token) * (2 * OFFSET)
    key_place = tl.arange(0, KEY_ROWS * PITCH)
    i = key_place % PITCH
    near = (i < SIDE)[None, :] & asked[:, None]
    of_columns = tl.load(terms[:, None] + OFFSET + (x[:, None] - i[None, :] + SIDE - 1), mask=near, other=0.0)
    of_columns = of_columns.to(tl.float32) * LOG2_E
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    sums = tl.zeros((BLOCK, CORE), tl.float32)
    sums_rest = tl.zeros((BLOCK, REST if REST > 0 else 16), tl.float32)
    ALL: tl.constexpr = HEADS * DIMENSIONS
    for first in range(0, SIDE, KEY_ROWS):
        j = first + key_place // PITCH
        inside = (i < SIDE) & (j < SIDE)
        real = inside & (top_row + j < HEIGHT) & (left + i < WIDTH)
        key = tl.where(real, start + ((top_row + j) * WIDTH + left + i) * STEP, padding + head * DIMENSIONS)
        key = tl.multiple_of(key, 16)  # each head's channels are aligned to 32 bytes
        k = tl.load(key[None, :] + ALL + channel[:, None], mask=inside[None, :], other=0.0)
        v = tl.load(key[:, None] + 2 * ALL + channel[None, :], mask=inside[:, None], other=0.0)
        k_rest, v_rest = k, v
        if REST > 0:
            k_rest = tl.load(key[None, :] + ALL + rest[:, None], mask=inside[None, :], other=0.0)
            v_rest = tl.load(key[:, None] + 2 * ALL + rest[None, :], mask=inside[:, None], other=0.0)
        near_row = first + tl.arange(0, KEY_ROWS)
        known = (near_row < SIDE)[None, :] & asked[:, None]
        of_rows = tl.load(terms[:, None] + (y[:, None] - near_row[None, :] + SIDE - 1), mask=known, other=0.0)
        of_rows = tl.broadcast_to((of_rows.to(tl.float32) * LOG2_E)[:, :, None], (BLOCK, KEY_ROWS, PITCH))
        of_rows = tl.reshape(of_rows, (BLOCK, KEY_ROWS * PITCH))
        bias = tl.where(inside[None, :], of_columns + of_rows, float("-inf"))
        top, total, sums, sums_rest = attend_to(
            q, q_rest, k, k_rest, v, v_rest, bias, top, total, sums, sums_rest, scale * LOG2_E, REST
        )
    out = attended + (image * TOKENS + token[:, None]) * ALL + head * DIMENSIONS
    tl.store(out + channel[None, :], (sums / total[:, None]).to(q.dtype), mask=asked[:, None])
    if REST > 0:
        tl.store(out + rest[None, :], (sums_rest / total[:, None]).to(q.dtype), mask=asked[:, None])


Taps = tuple[Tensor, Tensor]
"""Source positions and weights along one axis, as in `preprocess.triangle_weights`, on the image's device."""

# Tile of a program: rows, and values of red, green, and blue in a row.
TILE = {"ROWS": 4, "COLUMNS": 128}

# Sizes differ from photograph to photograph. By default, Triton would compile the kernel again for some of them.
SIZES = ["outer_step", "inner_step", "channel_step", "height", "width", "outer_taps", "inner_taps"]


def resize(pixels: Tensor, rows: Taps, columns: Taps, columns_first: bool) -> Tensor:
    """Resize (H, W, 3) uint8 to (h, w, 3) with the taps of the h rows and of the w columns.

    With `columns_first`, the first pass goes along columns, otherwise along rows.
    """
    height, width = len(rows[0]), len(columns[0])
    outer, inner = rows, columns
    outer_step, inner_step, channel_step = pixels.stride()
    if columns_first:
        outer, inner = columns, rows
        outer_step, inner_step = inner_step, outer_step
    resized = torch.empty((height, width, 3), dtype=torch.uint8, device=pixels.device)
    with launching_on(pixels.device):
        resize_kernel[(triton.cdiv(3 * width, TILE["COLUMNS"]), triton.cdiv(height, TILE["ROWS"]))](
            pixels,
            *outer,
            *inner,
            resized,
            outer_step,
            inner_step,
            channel_step,
            height,
            width,
            outer[0].shape[1],
            inner[0].shape[1],
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
    outer_places,
    outer_weights,
    inner_places,
    inner_weights,
    resized,
    outer_step,
    inner_step,
    channel_step,
    height,
    width,
    outer_taps,
    inner_taps,
    COLUMNS_FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Compute ROWS rows of COLUMNS values of the resized image, with one program per tile.

    The first pass sums the inner taps, and the second pass sums the outer ones.
    """
    y = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    value = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    y_inside, x_inside = y < height, value < 3 * width
    inside = y_inside & x_inside
    x = value // 3
    start = pixels + (value % 3) * channel_step
    if COLUMNS_FIRST:
        outer, outer_inside, inner, inner_inside = x, x_inside, y, y_inside
    else:
        outer, outer_inside, inner, inner_inside = y, y_inside, x, x_inside
    total = tl.zeros((ROWS, COLUMNS), tl.int32)
    for a in range(outer_taps):
        far = tl.load(outer_places + outer * outer_taps + a, mask=outer_inside, other=0).to(tl.int64)
        sums = tl.zeros((ROWS, COLUMNS), tl.int32)
        for b in range(inner_taps):
            near = tl.load(inner_places + inner * inner_taps + b, mask=inner_inside, other=0).to(tl.int64)
            weight = tl.load(inner_weights + inner * inner_taps + b, mask=inner_inside, other=0)
            source = start + far * outer_step + near * inner_step
            sums += tl.load(source, mask=inside, other=0).to(tl.int32) * weight
        weight = tl.load(outer_weights + outer * outer_taps + a, mask=outer_inside, other=0)
        total += rounded(sums) * weight
    tl.store(resized + y * (3 * width) + value, rounded(total).to(tl.uint8), mask=inside)
