"""The mask decoder for single points: the sums of `MaskDecoder` in another order, with less to multiply.

A grid asks for hundreds of points on one image. Three facts make most of the plain formula's products
unnecessary, and none of them approximates anything:

1. *Shared image.* In the first block the image is the same for every point: what the block makes of it is
   computed once an image, by `plan_points`.
2. *Absorbed projections.* Later the image is each point's own, yet its 4096 positions need no projections: the few
   tokens absorb them (`absorbed_attention`).
3. *Scores first.* Predicted IoU comes from the tokens alone: `decode_points` gives it before any mask is drawn,
   and `draw_masks` draws those that are wanted.

In the shapes are B points, T = 7 tokens, C = 256 channels, H = 8 heads of D = 16 channels, P = 4096 positions.
All is in the weights' dtype except the predicted IoU and the logits, which are float32.
"""

import itertools
import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.sam.absorbed_attention import absorb_keys, attend_from_few, bands, project_keys, singly
from model.sam.common import join_heads, split_heads
from model.sam.mask_decoder import MASK_TOKENS, MaskDecoder
from model.sam.products import linear, product
from model.sam.transformer import Attention, TwoWayBlock

# Of the tokens (predicted IoU, single mask, three masks, prompt) those whose outcome is asked for.
_ASKED = [0, *range(2, 1 + MASK_TOKENS)]


@dataclass(frozen=True)
class PointPlan:
    """What all points on one image have in common.

    `image` (1, P, C) is the image embedding with the embedding of no mask, `places` (1, P, C) its positional encoding.
    The others belong to the first block: `keys` and `values` (1, H, P, D) of the attention from tokens to image,
    `queries` (1, P, H * D) of the attention from image to tokens.
    """

    image: Tensor
    places: Tensor
    keys: Tensor
    values: Tensor
    queries: Tensor


@dataclass(frozen=True)
class PointMasks:
    """Three masks for each of B points, decoded but not drawn.

    `predicted_iou` (B, 3) float32; `tokens` (B, 3, C) of the masks and `image` (B, P, C) are what
    `draw_masks` makes them from.
    """

    predicted_iou: Tensor
    tokens: Tensor
    image: Tensor


def plan_points(decoder: MaskDecoder, features: Tensor, positions: Tensor, no_mask: Tensor) -> PointPlan:
    """The plan for an image embedding (1, C, 64, 64) and its positional encoding (1, C, 64, 64).

    `no_mask` (1, C, 64, 64) is the dense embedding of prompts without a mask.
    """
    image = (features + no_mask).flatten(2).transpose(1, 2).contiguous()
    places = positions.flatten(2).transpose(1, 2).contiguous()
    first = decoder.transformer.blocks[0]
    look, answer = first.cross_attn_token_to_image, first.cross_attn_image_to_token
    return PointPlan(
        image,
        places,
        split_heads(look.k_proj(image + places), look.heads),
        split_heads(look.v_proj(image), look.heads),
        answer.q_proj(image + places),
    )


def decode_points(decoder: MaskDecoder, plan: PointPlan, sparse: Tensor) -> PointMasks:
    """Predicted IoUs of the three masks of B points, and what it takes to draw them.

    `sparse` (B, 2, C) embeds each point with the token of no point that follows it.
    """
    own_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    places = torch.cat([own_tokens.expand(sparse.shape[0], -1, -1), sparse], dim=1)
    tokens, image = places, plan.image
    for block in decoder.transformer.blocks:
        look = block.cross_attn_token_to_image
        tokens = block.attend_among_tokens(tokens, places)
        if block.first:
            seen = _look_at_shared_image(look, tokens + places, plan)
        else:
            seen = attend_from_few(look, tokens + places, image, plan.places)
        tokens = block.refine_tokens(tokens, seen)
        image = _answer(block, plan, image, tokens + places, tokens)
    final = decoder.transformer.final_attn_token_to_image
    seen = attend_from_few(final, (tokens + places)[:, _ASKED], image, plan.places)
    tokens = decoder.transformer.norm_final_attn(tokens[:, _ASKED] + seen)
    predicted_iou = decoder.iou_prediction_head(tokens[:, 0])[:, 1:]
    return PointMasks(predicted_iou.float(), tokens[:, 1:], image)


def _answer(block: TwoWayBlock, plan: PointPlan, image: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The block's last step: the image (B, P, C) that has attended to tokens k and v (B, T, C)."""
    attention = block.cross_attn_image_to_token
    few = (project_keys if block.first else absorb_keys)(attention, k, v)
    prompts, positions = len(k), image.shape[1]
    image, places, queries = (one.expand(prompts, -1, -1) for one in (image, plan.places, plan.queries))
    # Later blocks may write where they read: a band's outcome depends on that band alone.
    out = torch.empty_like(image, memory_format=torch.contiguous_format) if block.first else image
    for one in singly(prompts, image.device):
        for band in bands(positions, image.device):
            features = queries[one, band] if block.first else image[one, band] + places[one, band]
            out[one, band] = block.norm4(few.attend(one, features, onto=image[one, band]))
    return out


def draw_masks(decoder: MaskDecoder, masks: PointMasks, wanted: Tensor) -> Tensor:
    """Logits of the masks wanted, (N, 256, 256) float32, point-major; `wanted` is (B, 3) bool with N true."""
    filters = torch.stack([mlp(masks.tokens[:, n]) for n, mlp in enumerate(decoder.hypernetworks[1:])], dim=1)
    side = 4 * math.isqrt(masks.image.shape[1])
    drawn = [masks.predicted_iou.new_zeros(0, side, side)]
    for point in wanted.any(dim=1).nonzero().flatten().tolist():
        drawn.append(_draw(decoder, masks.image[point], filters[point], side)[wanted[point]].float())
    return torch.cat(drawn)


def _draw(decoder: MaskDecoder, image: Tensor, filters: Tensor, side: int) -> Tensor:
    """Logits (3, side, side) from one point's image (P, C) and its masks' filters (3, 32)."""
    first, norm, second = decoder.upscaling_steps
    (weight1, bias1), (weight2, bias2) = _as_linear(first), _as_linear(second)
    drawn = []
    for band in bands(len(image), image.device):
        map_ = linear(image[band], weight1, bias1).view(-1, len(norm.weight))
        map_ = F.gelu(F.layer_norm(map_, norm.normalized_shape, norm.weight, norm.bias, norm.eps))
        map_ = linear(map_, weight2, bias2, gelu=True)
        drawn.append(product(filters, map_.view(-1, filters.shape[1]).T))
    # Each position became 2x2 pixels in the first step, (a, b), and each of these 2x2 in the second, (c, d).
    parts = torch.cat(drawn, dim=1).view(-1, side // 4, side // 4, 16)
    logits = parts.new_empty(len(filters), side, side)
    for part, (a, b, c, d) in zip(parts.unbind(dim=-1), itertools.product(range(2), repeat=4), strict=True):
        logits[:, 2 * a + c :: 4, 2 * b + d :: 4] = part
    return logits


def _as_linear(step: nn.ConvTranspose2d) -> tuple[Tensor, Tensor]:
    """Weight (4 * out, in) and bias (4 * out) of a transposed convolution whose stride is its kernel, 2x2.

    Such a step is one linear map at each position; its four outcomes are the pixels (0, 0), (0, 1), (1, 0), (1, 1).
    """
    return step.weight.permute(2, 3, 1, 0).flatten(0, 2), cast(Tensor, step.bias).repeat(4)


def _look_at_shared_image(attention: Attention, q: Tensor, plan: PointPlan) -> Tensor:
    """The first block's attention from tokens (B, T, C) to the image.

    The points share keys and values, so that all their tokens together are one batch of queries.
    """
    queries = split_heads(attention.q_proj(q).flatten(0, 1)[None], attention.heads)
    seen = join_heads(F.scaled_dot_product_attention(queries, plan.keys, plan.values))
    out: Tensor = attention.out_proj(torch.unflatten(seen[0], 0, q.shape[:2]))
    return out
