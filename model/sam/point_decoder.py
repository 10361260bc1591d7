"""The mask decoder for single points: the sums of `MaskDecoder` in another order, with less to multiply.

A grid asks for hundreds of points on one image. Three facts make most of the plain formula's products
unnecessary, and none of them approximates anything:

1. *Shared image.* In the first block the image is the same for every point: what the block makes of it is
   computed once an image, by `plan_points`.
2. *Absorbed projections.* Seven tokens with eight heads are 56 vectors, and the image has 4096 positions. As
   q (x W)^T = (q W^T) x^T, a projection may be applied to the 56 instead of the 4096: `attend_from_few` and
   `attend_to_few`.
3. *Scores first.* Predicted IoU comes from the tokens alone: `decode_points` gives it before any mask is drawn,
   and `draw_masks` draws those that are wanted.

In the shapes are B points, T = 7 tokens, C = 256 channels, H = 8 heads of D = 16 channels, P = 4096 positions.
All is in the weights' dtype except the predicted IoU and the logits, which are float32.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.sam.common import join_heads, split_heads
from model.sam.mask_decoder import MASK_TOKENS, MaskDecoder
from model.sam.transformer import Attention

# Of the tokens (predicted IoU, single mask, three masks, prompt) those whose outcome is asked for.
_ASKED = [0, *range(2, 1 + MASK_TOKENS)]

# Positions of the image that a CPU draws at once: the largest map on the way, 1 MB, stays in a core's cache.
_BAND = 512


@dataclass(frozen=True)
class PointPlan:
    """What all points on one image have in common.

    `image` (1, P, C) is the image embedding with the embedding of no mask, `positions` (1, P, C) its positional
    encoding. The others belong to the first block: `keys` and `values` (1, H, P, D) of the attention from
    tokens to image, `queries` (H, D, P) of the attention from image to tokens.
    """

    image: Tensor
    positions: Tensor
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
        split_heads(answer.q_proj(image + places), answer.heads)[0].transpose(1, 2).contiguous(),
    )


def decode_points(decoder: MaskDecoder, plan: PointPlan, sparse: Tensor) -> PointMasks:
    """Predicted IoUs of the three masks of B points, and what it takes to draw them.

    `sparse` (B, 2, C) embeds each point with the token of no point that follows it.
    """
    own_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    places = torch.cat([own_tokens.expand(sparse.shape[0], -1, -1), sparse], dim=1)
    tokens, image = places, plan.image
    for block in decoder.transformer.blocks:
        look, answer = block.cross_attn_token_to_image, block.cross_attn_image_to_token
        tokens = block.attend_among_tokens(tokens, places)
        if block.first:
            tokens = block.refine_tokens(tokens, _look_at_shared_image(look, tokens + places, plan))
            image = _answer_from_shared_image(answer, plan, tokens + places, tokens)
        else:
            placed = image + plan.positions
            tokens = block.refine_tokens(tokens, attend_from_few(look, tokens + places, placed, image))
            image = attend_to_few(answer, placed, tokens + places, tokens, onto=image)
        image = block.norm4(image)
    final = decoder.transformer.final_attn_token_to_image
    seen = attend_from_few(final, (tokens + places)[:, _ASKED], image + plan.positions, image)
    tokens = decoder.transformer.norm_final_attn(tokens[:, _ASKED] + seen)
    predicted_iou = decoder.iou_prediction_head(tokens[:, 0])[:, 1:]
    return PointMasks(predicted_iou.float(), tokens[:, 1:], image)


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
    bands = []
    for band in image.chunk(math.ceil(len(image) / _BAND) if image.device.type == "cpu" else 1):
        map_ = torch.addmm(bias1, band, weight1.T).view(-1, len(norm.weight))
        map_ = F.gelu(F.layer_norm(map_, norm.normalized_shape, norm.weight, norm.bias, norm.eps))
        map_ = F.gelu(torch.addmm(bias2[:, None], weight2, map_.T))
        bands.append(filters @ map_.view(4, filters.shape[1], -1))
    # Each position became 2x2 pixels in the first step, (a, b), and each of these 2x2 in the second, (c, d).
    logits = torch.cat(bands, dim=2).view(2, 2, -1, side // 4, side // 4, 2, 2)
    c, d, mask, y, x, a, b = range(7)
    return logits.permute(mask, y, a, c, x, b, d).reshape(-1, side, side)


def _as_linear(step: nn.ConvTranspose2d) -> tuple[Tensor, Tensor]:
    """Weight (4 * out, in) and bias (4 * out) of a transposed convolution whose stride is its kernel, 2x2.

    Such a step is one linear map at each position; its four outcomes are the pixels (0, 0), (0, 1), (1, 0), (1, 1).
    """
    # Laid out for the product with the image, (in, out), which is the faster one.
    return step.weight.permute(0, 2, 3, 1).flatten(1).T, cast(Tensor, step.bias).repeat(4)


def attend_from_few(attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attention(q, k, v)` for few queries (B, T, C) and many keys and values (B, P, C).

    q (k W_k + b)^T = (q W_k^T) k^T + q b^T, and the last term, the same for all keys, leaves the softmax as it
    is. A (v W_v + b) = (A v) W_v + b, as the weights A of a query add up to 1.
    """
    heads = split_heads(attention.q_proj(q), attention.heads)
    absorbed = torch.einsum("bhtd,hdc->bhtc", heads * _scale(heads), _by_head(attention.k_proj.weight, attention))
    weights = (absorbed.flatten(1, 2) @ k.transpose(1, 2)).softmax(dim=-1)
    seen = torch.unflatten(weights @ v, 1, (attention.heads, -1))
    values = torch.einsum("bhtc,hdc->bhtd", seen, _by_head(attention.v_proj.weight, attention))
    out: Tensor = attention.out_proj(join_heads(values) + attention.v_proj.bias)
    return out


def attend_to_few(attention: Attention, q: Tensor, k: Tensor, v: Tensor, onto: Tensor) -> Tensor:
    """`onto + attention(q, k, v)` for many queries (B, P, C) and few keys and values (B, T, C).

    (q W_q + b) k^T = q (W_q k^T) + b k^T; here the last term differs from key to key and stays.
    """
    keys = split_heads(attention.k_proj(k), attention.heads)
    keys = keys * _scale(keys)
    absorbed = torch.einsum("bhtd,hdc->bhtc", keys, _by_head(attention.q_proj.weight, attention))
    bias = torch.einsum("bhtd,hd->bht", keys, torch.unflatten(attention.q_proj.bias, 0, (attention.heads, -1)))
    scores = torch.baddbmm(bias.flatten(1)[..., None], absorbed.flatten(1, 2), q.transpose(1, 2))
    return _add_few(attention, torch.unflatten(scores, 1, (attention.heads, -1)), v, onto)


def _look_at_shared_image(attention: Attention, q: Tensor, plan: PointPlan) -> Tensor:
    """The first block's attention from tokens (B, T, C) to the image.

    The points share keys and values, so that all their tokens together are one batch of queries.
    """
    queries = split_heads(attention.q_proj(q).flatten(0, 1)[None], attention.heads)
    seen = join_heads(F.scaled_dot_product_attention(queries, plan.keys, plan.values))
    out: Tensor = attention.out_proj(torch.unflatten(seen[0], 0, q.shape[:2]))
    return out


def _answer_from_shared_image(attention: Attention, plan: PointPlan, k: Tensor, v: Tensor) -> Tensor:
    """The image with the first block's attention from it to tokens k and v (B, T, C): (B, P, C)."""
    keys = split_heads(attention.k_proj(k).flatten(0, 1)[None], attention.heads)[0]
    scores = (keys * _scale(keys)) @ plan.queries
    scores = torch.unflatten(scores, 1, k.shape[:2]).transpose(0, 1)
    return _add_few(attention, scores, v, plan.image.expand(k.shape[0], -1, -1))


def _add_few(attention: Attention, scores: Tensor, v: Tensor, onto: Tensor) -> Tensor:
    """`onto` (B, P, C) with what it attends to: scores (B, H, T, P) over the values v (B, T, C).

    (A (v W_v)) W_o = A (v W_v W_o): the few values are projected back, not the many results. The bias b of W_o
    is split among the heads, each of whose weights add up to 1.
    """
    weights = scores.softmax(dim=2).flatten(1, 2)
    values = split_heads(attention.v_proj(v), attention.heads)
    outward = torch.unflatten(attention.out_proj.weight, 1, (attention.heads, -1))
    rows = torch.einsum("bhtd,chd->bhtc", values, outward) + attention.out_proj.bias / attention.heads
    return torch.baddbmm(onto, weights.transpose(1, 2), rows.flatten(1, 2))


def _by_head(weight: Tensor, attention: Attention) -> Tensor:
    """A projection's weight (H * D, C) as (H, D, C)."""
    return torch.unflatten(weight, 0, (attention.heads, -1))


def _scale(heads: Tensor) -> float:
    """What scaled dot-product attention multiplies its scores by: D^-0.5."""
    return float(heads.shape[-1] ** -0.5)
