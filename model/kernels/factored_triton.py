"""Triton kernels for the steps of `factored_image.py`, in which each program processes a tile of a prompt's positions.

The kernels read tensors in their existing layout, and sum in float32. Intermediate values of a tile exist only in
registers and shared memory. The last tile may be shorter than the others.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from segmint.model.device import launching_on
from segmint.model.kernels.factored_plainly import CONSTANT, ROWS

# Options of the kernels: positions per program, warps, and pipeline stages for prefetching. With these values, a thread
# uses at most 512 bytes of stack, and a program uses at most 99 KiB of shared memory, on compute capabilities 8.0, 8.6,
# 8.9, and 9.0.
HALF = {
    "answer": {"TILE": 64, "num_warps": 8, "num_stages": 2},
    "look": {"TILE": 64, "num_warps": 4, "num_stages": 3},
    "draw": {"TILE": 64, "num_warps": 8, "num_stages": 1},
}
# Tensor cores don't multiply float32 numbers exactly, so each thread has to keep factors in its registers.
FLOAT32 = {
    "answer": {"TILE": 32, "num_warps": 8, "num_stages": 2},
    "look": {"TILE": 32, "num_warps": 8, "num_stages": 2},
    "draw": {"TILE": 32, "num_warps": 8, "num_stages": 1},
}


def options(step: str, dtype: torch.dtype) -> dict[str, int]:
    """Return the constant TILE and the launch options of a step's kernel for tensors of this dtype."""
    return (FLOAT32 if dtype == torch.float32 else HALF)[step]


def answer(
    queries: Tensor,
    own: Tensor,
    places: Tensor,
    prior: Tensor,
    scale: Tensor,
    coefficients: Tensor,
    vectors: Tensor,
    shared: Tensor,
    tokens: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """See `factored_plainly.answer`."""
    positions, rows = own.shape[1], coefficients.shape[1]
    scales = torch.empty_like(scale)
    found = queries.new_empty(len(queries), ROWS + rows, positions)
    tensors = _contiguous(queries, own, places, prior, scale, coefficients, vectors, shared)
    chosen = options("answer", queries.dtype)
    with launching_on(queries.device):
        answer_kernel[(-(-positions // chosen["TILE"]), len(queries))](
            *tensors,
            scales,
            found,
            eps,
            positions,
            TOKENS=tokens,
            MORE=rows,
            CONSTANT=CONSTANT,
            **chosen,
        )
    return scales, found


def look(
    queries: Tensor,
    own: Tensor,
    places: Tensor,
    prior: Tensor,
    scale: Tensor,
    coefficients: Tensor,
    values: Tensor,
) -> tuple[Tensor, Tensor]:
    """See `factored_plainly.look`."""
    attended, mixed = torch.empty_like(queries), torch.empty_like(prior)
    tensors = _contiguous(queries, own, places, prior, scale, coefficients, values)
    parts = {True: (attended, 1), False: (mixed, prior.shape[2] // ROWS)}
    with launching_on(queries.device):
        for shared, (found, programs) in parts.items():
            look_kernel[(programs, len(queries))](
                *tensors,
                found,
                own.shape[1],
                MORE=prior.shape[2],
                SHARED=shared,
                **options("look", queries.dtype),
            )
    return attended, mixed


def draw(
    scale: Tensor,
    coefficients: Tensor,
    vectors: Tensor,
    shared: Tensor,
    norm: Tensor,
    weight: Tensor,
    bias: Tensor,
    filters: Tensor,
    wanted: Tensor,
    eps: float,
) -> Tensor:
    """See `factored_plainly.draw`."""
    positions = len(shared)
    side = round(positions**0.5)
    logits = scale.new_empty(len(scale), 3, 4 * side, 4 * side)
    tensors = _contiguous(scale, coefficients, vectors, shared, norm, weight, bias, filters, wanted.to(torch.uint8))
    chosen = options("draw", coefficients.dtype)
    with launching_on(scale.device):
        draw_kernel[(-(-positions // chosen["TILE"]), len(scale))](
            *tensors, logits, eps, side, MORE=coefficients.shape[1], **chosen
        )
    return logits


def _contiguous(*tensors: Tensor) -> Sequence[Tensor]:
    return [tensor.contiguous() for tensor in tensors]


@triton.jit
def scores_of(
    queries,
    own,
    places,
    prior,
    coefficients,
    s,
    position,
    inside,
    positions,
    MORE: tl.constexpr,
):
    """Compute scores (64, tile) between the tokens and the image of one prompt. If MORE is 0, `places` is ignored."""
    row = tl.arange(0, 64)
    scores = tl.zeros((64, position.shape[0]), tl.float32)
    of_places = tl.zeros((64, position.shape[0]), tl.float32)
    for first in range(0, 128, 64):
        channel = first + tl.arange(0, 64)
        of_head = (row // 8)[:, None] == (channel // 16)[None, :]
        q = tl.load(queries + row[:, None] * 16 + (channel % 16)[None, :], mask=of_head, other=0.0)
        there = channel[:, None] * positions + position[None, :]
        k = tl.load(own + there, mask=inside[None, :], other=0.0)
        scores = tl.dot(q, k, scores, input_precision="ieee")
        if MORE > 0:
            k = tl.load(places + there, mask=inside[None, :], other=0.0)
            of_places = tl.dot(q, k, of_places, input_precision="ieee")
    scores = scores * s[None, :] + of_places
    STEP: tl.constexpr = 32 if MORE == 64 else 64  # see `draw_kernel`
    few = tl.arange(0, STEP)
    for first in range(0, MORE, STEP):
        m = tl.load(prior + row[:, None] * MORE + first + few[None, :])
        d = tl.load(
            coefficients + (first + few)[:, None] * positions + position[None, :], mask=inside[None, :], other=0.0
        )
        scores = tl.dot(m, d, scores, input_precision="ieee")
    return scores


@triton.jit
def answer_kernel(
    queries,
    own,
    places,
    prior,
    scale,
    coefficients,
    vectors,
    shared,
    new_scale,
    new_coefficients,
    eps,
    positions,
    TOKENS: tl.constexpr,
    MORE: tl.constexpr,
    CONSTANT: tl.constexpr,
    TILE: tl.constexpr,
):
    """Run `answer`, with one program per (tile, prompt). MORE is R, the number of rows of the previous image."""
    ALL: tl.constexpr = 64 + MORE
    # See `draw_kernel`. In float32, which tensor cores don't multiply, two steps would spill registers.
    STEP: tl.constexpr = 32 if MORE == 64 and shared.dtype.element_ty.primitive_bitwidth == 16 else 64
    prompt = tl.program_id(1).to(tl.int64)
    position = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = position < positions
    row = tl.arange(0, 64)
    few = tl.arange(0, STEP)
    s = tl.load(scale + prompt * positions + position, mask=inside, other=0.0)
    image = coefficients + prompt * MORE * positions
    q, m = queries + prompt * 64 * 16, prior + prompt * 64 * MORE
    scores = scores_of(q, own, places, m, image, s, position, inside, positions, MORE)
    scores = tl.reshape(scores, (8, 8, TILE))
    token = tl.arange(0, 8)
    scores = tl.where((token < TOKENS)[None, :, None], scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, axis=1)[:, None, :])
    weights = weights / tl.sum(weights, axis=1)[:, None, :]
    weights = tl.reshape(weights, (64, TILE)).to(shared.dtype.element_ty)
    across = tl.trans(weights)

    squares = tl.zeros((TILE,), tl.float32)
    for part in range(0, 256, 64):
        channel = part + row
        y = tl.load(shared + position[:, None] * 256 + channel[None, :], mask=inside[:, None], other=0.0)
        y = y.to(tl.float32) * s[:, None]
        u = tl.load(vectors + prompt * ALL * 256 + row[:, None] * 256 + channel[None, :])
        y = tl.dot(across, u, y, input_precision="ieee")
        for first in range(0, MORE, STEP):
            d = tl.load(image + (first + few)[None, :] * positions + position[:, None], mask=inside[:, None], other=0.0)
            v = tl.load(vectors + prompt * ALL * 256 + (64 + first + few)[:, None] * 256 + channel[None, :])
            y = tl.dot(d, v, y, input_precision="ieee")
        squares += tl.sum(y * y, axis=1)
    shrink = tl.rsqrt(squares / 256 + eps)

    tl.store(new_scale + prompt * positions + position, s * shrink, mask=inside)
    there = row[:, None] * positions + position[None, :]
    out = new_coefficients + prompt * ALL * positions
    normalized = weights.to(tl.float32) * shrink[None, :]
    normalized = tl.where((row == CONSTANT)[:, None], 1.0, normalized)
    tl.store(out + there, normalized.to(weights.dtype), mask=inside[None, :])
    there = few[:, None] * positions + position[None, :]
    for first in range(0, MORE, STEP):
        d = tl.load(image + first * positions + there, mask=inside[None, :], other=0.0)
        shrunk = d.to(tl.float32) * shrink[None, :]
        tl.store(out + (64 + first) * positions + there, shrunk.to(d.dtype), mask=inside[None, :])


@triton.jit
def look_kernel(
    queries,
    own,
    places,
    prior,
    scale,
    coefficients,
    values,
    found,
    positions,
    MORE: tl.constexpr,
    SHARED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Run `look` for the 64 rows of a prompt, with one program per (part, prompt).

    Each program computes the sums of the shared values, or part n of the sums of coefficients. The softmax is computed
    online (FlashAttention, arXiv 2205.14135). The sums of all parts don't fit into registers, so each part computes all
    scores again.
    """
    LOG2_E: tl.constexpr = 1.4426950408889634
    first = tl.program_id(0) * 64
    prompt = tl.program_id(1).to(tl.int64)
    row = tl.arange(0, 64)
    column = tl.arange(0, 128 if SHARED else 64)
    kind = values.dtype.element_ty
    image = coefficients + prompt * MORE * positions
    q, m = queries + prompt * 64 * 16, prior + prompt * 64 * MORE
    top = tl.full((64,), float("-inf"), tl.float32)
    total = tl.zeros((64,), tl.float32)
    sums = tl.zeros((64, 128 if SHARED else 64), tl.float32)
    for start in range(0, positions, TILE):
        position = start + tl.arange(0, TILE)
        inside = position < positions
        s = tl.load(scale + prompt * positions + position, mask=inside, other=0.0)
        scores = scores_of(q, own, places, m, image, s, position, inside, positions, MORE)
        scores = tl.where(inside[None, :], scores * LOG2_E, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(top - higher)
        total = total * fade + tl.sum(weights, 1)
        top = higher
        if SHARED:
            weights = weights * s[None, :]
            terms = values + position[:, None] * 128 + column[None, :]
        else:
            terms = image + (first + column)[None, :] * positions + position[:, None]
        summed = tl.load(terms, mask=inside[:, None], other=0.0)
        sums = tl.dot(weights.to(kind), summed, sums * fade[:, None], input_precision="ieee")
    sums = (sums / total[:, None]).to(kind)
    if SHARED:
        # The sums contain the shared values of all heads. Select each head's own values.
        place = found + prompt * 64 * 16 + row[:, None] * 16 + (column % 16)[None, :]
        tl.store(place, sums, mask=(row // 8)[:, None] == (column // 16)[None, :])
    else:
        tl.store(found + prompt * 64 * MORE + row[:, None] * MORE + (first + column)[None, :], sums)


@triton.jit
def gelu(x):
    """Compute the exact GELU."""
    return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))


@triton.jit
def draw_kernel(
    scale,
    coefficients,
    vectors,
    shared,
    norm,
    weight,
    bias,
    filters,
    wanted,
    logits,
    eps,
    side,
    MORE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Run `draw`, with one program per (tile, prompt). Prompts without wanted masks are skipped.

    The loop over rows has at least two steps, because on an H200, Triton 3.6 miscompiled some loops of one step.
    """
    STEP: tl.constexpr = 32 if MORE == 64 else 64
    prompt = tl.program_id(1).to(tl.int64)
    asked = tl.load(wanted + prompt * 3) + tl.load(wanted + prompt * 3 + 1) + tl.load(wanted + prompt * 3 + 2)
    if asked > 0:
        positions = side * side
        position = tl.program_id(0) * TILE + tl.arange(0, TILE)
        inside = position < positions
        row = tl.arange(0, 64)
        few = tl.arange(0, 32)
        mask = tl.arange(0, 16)
        s = tl.load(scale + prompt * positions + position, mask=inside, other=0.0)
        gain = tl.load(norm + row).to(tl.float32)
        offset = tl.load(norm + 64 + row).to(tl.float32)
        f = tl.load(filters + prompt * 96 + mask[None, :] * 32 + few[:, None], mask=(mask < 3)[None, :], other=0.0)
        out = logits + prompt * 48 * positions + mask[None, :] * 16 * positions
        out += ((position // side) * 16 * side + (position % side) * 4)[:, None]
        # Pixels (a, b) of the first step, and for each the pixels (c, d) of the second.
        for ab in range(4):
            channel = ab * 64 + row
            first = tl.load(shared + position[:, None] * 256 + channel[None, :], mask=inside[:, None], other=0.0)
            first = first.to(tl.float32) * s[:, None]
            for start in range(0, MORE, STEP):
                place = prompt * MORE + start + tl.arange(0, STEP)
                d = tl.load(
                    coefficients + place[None, :] * positions + position[:, None], mask=inside[:, None], other=0.0
                )
                u = tl.load(vectors + place[:, None] * 256 + channel[None, :])
                first = tl.dot(d, u, first, input_precision="ieee")
            first = first - (tl.sum(first, axis=1) / 64)[:, None]
            variance = tl.sum(first * first, axis=1) / 64
            first = gelu(first * tl.rsqrt(variance + eps)[:, None] * gain[None, :] + offset[None, :])
            first = first.to(f.dtype)
            for cd in range(4):
                w = tl.load(weight + row[:, None] * 128 + (cd * 32 + few)[None, :])
                second = tl.dot(first, w, input_precision="ieee")
                second = gelu(second + tl.load(bias + cd * 32 + few).to(tl.float32)[None, :])
                pixels = tl.dot(second.to(f.dtype), f, input_precision="ieee")
                shift = (2 * (ab // 2) + cd // 2) * 4 * side + 2 * (ab % 2) + cd % 2
                tl.store(out + shift, pixels, mask=inside[:, None] & (mask < 3)[None, :])
