"""Torch implementation of the steps of `factored_image.py`, a reference for the kernels and a fallback without Triton.

It also defines the layout of the tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

HEADS = 8

SEATS = 8
"""Number of rows per head. Each row is a seat for one token."""

ROWS = HEADS * SEATS
"""Number of rows per block."""

CONSTANT = SEATS - 1
"""Index of the row for the constant. Tokens don't use this row."""

# Number of prompts whose images are processed at once. Their positions take half a gigabyte in float32.
_GROUP = 16


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
    """Let the images attend to the tokens, and normalize: scale (B, P) float32 and coefficients (B, R + N, P).

    Args:
        queries: (B, N, D), the scaled keys of the tokens.
        own: (W, P), queries of the shared image. Before the first block, they include the positions and the bias.
        places: (W, P), queries of the positions plus the bias. Before the first block, it has no rows, because `own`
            includes both.
        prior: (B, N, R), products of the tokens' keys with the queries of the image's vectors.
        scale: (B, P) float32, the image's scale. All ones before the first block.
        coefficients: (B, R, P), the image's coefficients. R is 0 before the first block.
        vectors: (B, N + R, C), centered vectors: first the ones that the tokens add to the image, then the image's own.
        shared: (P, C), the centered shared image.
        tokens: T, at most 7.
        eps: epsilon of the norm.
    """
    scales, found = [], []
    for few in _groups(len(queries)):
        scores = _scores(queries[few], own, places, prior[few], scale[few], coefficients[few])
        scores = scores.view(len(scores), HEADS, SEATS, -1)
        scores[:, :, tokens:] = float("-inf")
        weights = scores.softmax(dim=2).flatten(1, 2)
        rows = torch.cat([weights.to(queries.dtype), coefficients[few]], dim=1)
        image = scale[few, :, None] * shared.float() + rows.float().transpose(1, 2) @ vectors[few].float()
        shrink = (image.square().mean(dim=2) + eps).rsqrt()
        rows = rows.float() * shrink[:, None]
        rows[:, CONSTANT] = 1
        scales.append(scale[few] * shrink)
        found.append(rows.to(queries.dtype))
    return torch.cat(scales), torch.cat(found)


def look(
    queries: Tensor,
    own: Tensor,
    places: Tensor,
    prior: Tensor,
    scale: Tensor,
    coefficients: Tensor,
    values: Tensor,
) -> tuple[Tensor, Tensor]:
    """Let the tokens attend to their images: means of shared values (B, N, D) and of coefficients (B, N, R).

    Args:
        queries: (B, N, D), the scaled queries of the tokens.
        own: (W, P), keys of the shared image.
        places: (W, P), keys of the positions.
        prior: (B, N, R), products of the queries with the keys of the image's vectors.
        scale: (B, P) float32, the image's scale.
        coefficients: (B, R, P), the image's coefficients.
        values: (P, W), values of the shared image.
    """
    attended, mixed = [], []
    for few in _groups(len(queries)):
        weights = _scores(queries[few], own, places, prior[few], scale[few], coefficients[few]).softmax(dim=2)
        seen = (weights * scale[few, None]).to(values.dtype) @ values
        of_heads = seen.view(len(seen), HEADS, SEATS, HEADS, -1).diagonal(dim1=1, dim2=3)
        attended.append(of_heads.permute(0, 3, 1, 2).flatten(1, 2))
        mixed.append(weights.to(values.dtype) @ coefficients[few].transpose(1, 2))
    return torch.cat(attended), torch.cat(mixed)


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
    """Draw logits (B, 3, 4S, 4S) float32 of masks on images of S x S positions.

    If none of a prompt's masks is wanted, its logits are arbitrary.

    Args:
        scale: (B, P) float32, the image's scale.
        coefficients: (B, R, P), the image's coefficients.
        vectors: (B, R, 4K), the image's vectors after the first upscaling step: 4 pixels of K = 64 channels.
        shared: (P, 4K), the shared image after the same step.
        norm: (2, K), weight and bias of the norm.
        weight: (K, 4L), weight of the second step: 4 pixels of L = 32 channels.
        bias: (4L,), bias of the second step.
        filters: (B, 3, L), mask filters.
        wanted: (B, 3) bool.
        eps: epsilon of the norm.
    """
    drawn = []
    side = round(shared.shape[0] ** 0.5)
    for few in _groups(len(scale)):
        first = scale[few, :, None] * shared.float() + (coefficients[few].transpose(1, 2) @ vectors[few]).float()
        first = first.view(-1, norm.shape[1])
        first = F.gelu(F.layer_norm(first, first.shape[1:], norm[0].float(), norm[1].float(), eps))
        second = F.gelu((first.to(weight.dtype) @ weight).float() + bias.float())
        second = second.view(len(scale[few]), -1, filters.shape[2]).to(weight.dtype)
        pixels = logit_product(second, filters[few].transpose(1, 2))
        # Dimensions: positions (y, x), pixels (a, b) of the first step, pixels (c, d) of the second step, and masks.
        parts = pixels.float().view(-1, side, side, 2, 2, 2, 2, filters.shape[1])
        drawn.append(parts.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(-1, filters.shape[1], 4 * side, 4 * side))
    return torch.cat(drawn)


def logit_product(one: Tensor, other: Tensor) -> Tensor:
    """Multiply matrices of logits. In fp16, whose numbers end at 65,504, the result is float32, as in the kernel."""
    if one.dtype == torch.float16:
        return one.float() @ other.float()
    return one @ other


def _scores(queries: Tensor, own: Tensor, places: Tensor, prior: Tensor, scale: Tensor, coefficients: Tensor) -> Tensor:
    """Compute the scores (B, N, P) float32 between the tokens and their images."""
    heads = torch.eye(HEADS, dtype=queries.dtype, device=queries.device)
    few = torch.unflatten(queries, 1, (HEADS, SEATS))[:, :, :, None] * heads[:, None, :, None]
    few = few.reshape(len(queries), HEADS * SEATS, -1)
    scores = (few @ own).float() * scale[:, None]
    if len(places):
        scores = scores + (few @ places).float() + (prior @ coefficients).float()
    return scores


def _groups(length: int) -> list[slice]:
    return [slice(start, min(start + _GROUP, length)) for start in range(0, length, _GROUP)]
