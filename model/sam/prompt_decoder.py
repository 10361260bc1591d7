"""Mask decoder for prompts with few tokens on a CPU: the sums of `MaskDecoder` in a different order.

A click in the annotator has 7 to 15 tokens, but the image has 4096 positions. With so few tokens, projecting the
tokens' queries to the image's 256 channels takes less work than projecting the image to the 128 channels of each
attention. This module doesn't approximate anything. It reorders three computations:

1. *Scores.* A token's query times a position's key is q (K x) = (K^T q) x. So instead of a map of keys, each head needs
   only T vectors. The queries of the image work the same way. The keys' bias is the same for all positions, so the
   softmax over the positions cancels it.
2. *Values.* The mean of the projected values equals the projected mean, so the decoder averages the positions before it
   projects. In the other direction, the decoder first applies the output projection to the tokens' values. Each
   position then adds the projected values with its weights.
3. *Layout.* The image stays in channels-last layout, so upscaling takes two products and no transposition.

With CPU kernels, prompts are decoded like the points of a grid (`point_decoder`). A mask prompt fits into that scheme
because it adds a weighted sum of 17 vectors to the image. These vectors are the same for all masks, because the last
step of a mask's embedding is a 1x1 convolution of 16 channels. So even with a mask, each prompt's image is the shared
image plus a few vectors.

Shapes: T tokens, C = 256 channels, H = 8 heads of D = 16 channels, P = 4096 positions, R = H * T.
"""

import math
from typing import cast

import torch
from torch import Tensor

from segmint.model.sam.common import split_rows
from segmint.model.sam.mask_decoder import MaskDecoder
from segmint.model.sam.point_decoder import (
    BAND,
    KernelPlan,
    PointPlan,
    as_linear,
    as_parts,
    decode_with_kernels,
    draw_with_kernels,
    finish_band,
    unfold_parts,
)
from segmint.model.sam.products import linear, product
from segmint.model.sam.prompt_encoder import PromptEmbedding
from segmint.model.sam.transformer import Attention, TwoWayBlock

MOST_TOKENS = 16
"""Maximum number of tokens. Beyond it, projecting the image takes less work."""


def suits(decoder: MaskDecoder, features: Tensor, sparse: Tensor) -> bool:
    """Return whether this module can decode the prompts: on a CPU, in float32, without gradients, and with few tokens.

    `sparse` (B, T, C) contains the prompts' tokens.
    """
    plain = features.device.type == "cpu" and features.dtype == torch.float32 and not torch.is_grad_enabled()
    return plain and len(decoder.own_tokens) + sparse.shape[1] <= MOST_TOKENS


def decode_with_plan(
    decoder: MaskDecoder, plan: PointPlan, sparse: Tensor, mask: tuple[Tensor, Tensor], chosen: range
) -> tuple[Tensor, Tensor]:
    """Return mask logits and predicted IoUs like `decode_prompts`, but use the CPU kernels and their plan.

    `sparse` (B, T, C) contains the prompts' tokens. `mask` contains the prompts' masks as coefficients (B or 1, K, P)
    and vectors (K, C). Create the plan with the same vectors.
    """
    kernels = cast(KernelPlan, plan.kernels)
    own = decoder.own_tokens
    coefficients, vectors = mask
    first, side = as_linear(decoder.upscaling_steps[0]), kernels.upscaler.low_res_size
    threads = max(1, torch.get_num_threads() - 1)  # torch's threads still spin, at least on one core
    logits = sparse.new_empty(len(sparse), len(chosen), side, side)
    ious = sparse.new_empty(len(sparse), len(chosen))
    for number, prompt in enumerate(sparse):
        of_mask = coefficients[number if len(coefficients) > 1 else 0][None]
        tokens, images = decode_with_kernels(decoder, plan, torch.cat([own, prompt])[None], chosen, (of_mask, vectors))
        ious[number] = decoder.predicted_ious(tokens[:, 0])[0, chosen.start : chosen.stop]
        filters = [decoder.hypernetworks[index](tokens[:, 1 + n]) for n, index in enumerate(chosen)]
        draw_with_kernels(first, kernels.upscaler, images, 0, torch.cat(filters), logits[number], threads)
    return logits, ious


def decode_prompts(
    decoder: MaskDecoder,
    features: Tensor,
    places: Tensor,
    prompt: PromptEmbedding,
    chosen: range,
    high_res: tuple[Tensor, ...] = (),
) -> tuple[Tensor, Tensor]:
    """Return mask logits (B, N, 256, 256) and predicted IoUs (B, N), like `MaskDecoder.decode` for the `chosen` masks.

    `features` (1, C, 64, 64) is the image embedding, and `places` (P, C) is its positional encoding. Prompts are
    decoded one at a time, so the number of prompts doesn't affect the bits.
    """
    own, added = decoder.own_tokens, as_parts(high_res)
    found = []
    for number, sparse in enumerate(prompt.sparse):
        dense = prompt.dense[number if len(prompt.dense) > 1 else 0]
        image = (features[0] + dense).flatten(1).T.contiguous()
        found.append(_decode(decoder, image, places, torch.cat([own, sparse]), chosen, added))
    if not found:
        side = 4 * math.isqrt(len(places))
        return features.new_zeros(0, len(chosen), side, side), features.new_zeros(0, len(chosen))
    logits, ious = zip(*found, strict=True)
    return torch.stack(logits), torch.stack(ious)


def _decode(
    decoder: MaskDecoder,
    image: Tensor,
    places: Tensor,
    token_places: Tensor,
    chosen: range,
    added: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor]:
    """Decode one prompt's tokens (T, C) on its image (P, C): logits (N, 256, 256) and predicted IoUs (N,)."""
    transformer = decoder.transformer
    tokens = token_places
    for block in transformer.blocks:
        tokens = block.attend_among_tokens(tokens[None], token_places[None])[0]
        placed = image + places
        attended = _attend_to_image(block.cross_attn_token_to_image, tokens + token_places, placed, image)
        tokens = block.refine_tokens(tokens[None], attended[None])[0]
        image = _attend_from_image(block, image, placed, tokens + token_places, tokens)
    final = transformer.final_attn_token_to_image
    attended = _attend_to_image(final, tokens + token_places, image + places, image)
    tokens = transformer.norm_final_attn(tokens + attended)
    ious = decoder.predicted_ious(tokens[:1])[0, chosen.start : chosen.stop]
    filters = torch.cat([decoder.hypernetworks[index](tokens[1 + index : 2 + index]) for index in chosen])
    return _draw(decoder, image, filters, added), ious


def _attend_to_image(attention: Attention, queries: Tensor, placed: Tensor, image: Tensor) -> Tensor:
    """Attend from queries (T, C) to the image (P, C), with keys from `placed`, and return the output (T, C)."""
    heads, width = attention.heads, attention.head_width
    q = torch.unflatten(attention.q_proj(queries), 1, (heads, width)).transpose(0, 1)
    rows = (q @ split_rows(attention.k_proj.weight, heads)).flatten(0, 1) / math.sqrt(width)
    weights = linear(rows, placed).softmax(dim=1)
    means = split_rows(weights @ image, heads)
    values = means @ split_rows(attention.v_proj.weight, heads).transpose(1, 2)
    joined = values.transpose(0, 1).flatten(1) + attention.v_proj.bias
    out: Tensor = attention.out_proj(joined)
    return out


def _attend_from_image(block: TwoWayBlock, image: Tensor, placed: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return the image (P, C) after it has attended to the tokens (T, C) and was normalized."""
    attention = block.cross_attn_image_to_token
    heads, width = attention.heads, attention.head_width
    k = torch.unflatten(attention.k_proj(keys), 1, (heads, width)).transpose(0, 1) / math.sqrt(width)
    v = torch.unflatten(attention.v_proj(values), 1, (heads, width)).transpose(0, 1)
    rows = (k @ split_rows(attention.q_proj.weight, heads)).flatten(0, 1)
    offsets = (k * attention.q_proj.bias.view(heads, 1, width)).sum(dim=2).flatten()
    # The softmax over a few tokens is faster when positions are contiguous in memory.
    scores = split_rows(linear(rows, placed) + offsets[:, None], heads)
    weights = scores.softmax(dim=1).flatten(0, 1).T.contiguous()
    carried = v @ split_rows(attention.out_proj.weight.T, heads)
    carried[0] += attention.out_proj.bias  # the weights of a head add up to 1
    after: Tensor = block.norm4(product(weights, carried.flatten(0, 1), onto=image))
    return after


def _draw(decoder: MaskDecoder, image: Tensor, filters: Tensor, added: tuple[Tensor, ...]) -> Tensor:
    """Draw logits (N, side, side) from the image (P, C), the mask filters (N, 32), and the result of `as_parts`."""
    weight, bias = as_linear(decoder.upscaling_steps[0])
    drawn = []
    for start in range(0, len(image), BAND):
        band = slice(start, start + BAND)
        parts = tuple(part[band] for part in added)
        drawn.append(finish_band(decoder, linear(image[band], weight, bias), filters[None], parts)[0])
    return unfold_parts(torch.cat(drawn, dim=-1)[None], 4 * math.isqrt(len(image)))[0]
