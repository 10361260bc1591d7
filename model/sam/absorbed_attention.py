"""Attention between few tokens and the many positions of an image, with its projections absorbed by the few.

Seven tokens with eight heads are 56 vectors; an image has 4096 positions. As q (x W)^T = (q W^T) x^T, a projection may
be applied to the 56 instead of the 4096, and the result is the same but for rounding. `Attention` is the plain formula.

In the shapes are B prompts, T tokens, C channels, H heads of D channels, P positions, n of them in a band.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.sam.common import join_heads, split_heads
from model.sam.products import product
from model.sam.transformer import Attention

# Positions that a CPU takes at once: 1 MB of a prompt's image in float32, so that what a step makes of them is still in
# the cores' caches when the next step asks for it. Of 512 and 1024 the faster on two cores of 1 MB each.
BAND = 1024


def bands(positions: int, device: torch.device) -> list[slice]:
    """The positions in bands on a CPU, and all in one on an accelerator."""
    step = BAND if device.type == "cpu" else positions
    return [slice(start, min(start + step, positions)) for start in range(0, positions, step)]


def singly(prompts: int, device: torch.device) -> list[slice]:
    """The prompts one by one on a CPU, for the same reason, and all at once on an accelerator."""
    step = 1 if device.type == "cpu" else prompts
    return [slice(start, start + step) for start in range(0, prompts, step)]


def attend_from_few(attention: Attention, q: Tensor, image: Tensor, places: Tensor) -> Tensor:
    """`attention(q, image + places, image)` for queries (B, T, C), image (B, P, C) and places (1, P, C): (B, T, C).

    q (k W_k + b)^T = (q W_k^T) k^T + q b^T, and the last term, the same for all keys, leaves the softmax as it is.
    A (v W_v + b) = (A v) W_v + b, as the weights A of a query add up to 1.
    """
    queries = _scaled(split_heads(attention.q_proj(q), attention.heads))
    absorbed = torch.einsum("bhtd,hdc->bhtc", queries, _by_head(attention.k_proj.weight, attention)).flatten(1, 2)
    seen = torch.cat([_see(absorbed[one], image[one], places) for one in singly(len(q), q.device)])
    seen = torch.unflatten(seen, 1, (attention.heads, -1))
    values = torch.einsum("bhtc,hdc->bhtd", seen, _by_head(attention.v_proj.weight, attention))
    out: Tensor = attention.out_proj(join_heads(values) + attention.v_proj.bias)
    return out


def _see(queries: Tensor, image: Tensor, places: Tensor) -> Tensor:
    """softmax(queries (image + places)^T) image: (B, N, C) from (B, N, C), (B, P, C) and (1, P, C)."""
    scores = queries.new_empty(*queries.shape[:2], image.shape[1])
    for band in bands(image.shape[1], image.device):
        scores[..., band] = product(queries, (image[:, band] + places[:, band]).transpose(1, 2))
    return product(scores.softmax(dim=-1), image)


@dataclass(frozen=True)
class FewKeys:
    """Keys and values of few tokens, made ready for many queries: one vector a head and token.

    Attributes:
        heads: H.
        keys: (B, H * T, F), to be multiplied with F features of each query.
        bias: (B, H * T, 1), to be added to these products.
        values: (B, H * T, C).
    """

    heads: int
    keys: Tensor
    bias: Tensor
    values: Tensor

    def attend(self, prompts: slice, features: Tensor, onto: Tensor) -> Tensor:
        """`onto` (b, n, C) with what the queries, (b, n, F), attend to, for b of the prompts: (b, n, C)."""
        scores = product(self.keys[prompts], features.transpose(1, 2)) + self.bias[prompts]
        weights = torch.unflatten(scores, 1, (self.heads, -1)).softmax(dim=2).flatten(1, 2)
        return onto + product(weights.transpose(1, 2), self.values[prompts])


def absorb_keys(attention: Attention, k: Tensor, v: Tensor) -> FewKeys:
    """k and v (B, T, C) for queries that are not projected yet: their features are the C channels of q itself.

    (q W_q + b) k^T = q (W_q k^T) + b k^T; here the last term differs from key to key and stays.
    """
    keys = _scaled(split_heads(attention.k_proj(k), attention.heads))
    absorbed = torch.einsum("bhtd,hdc->bhtc", keys, _by_head(attention.q_proj.weight, attention))
    bias = torch.einsum("bhtd,hd->bht", keys, torch.unflatten(attention.q_proj.bias, 0, (attention.heads, -1)))
    return FewKeys(attention.heads, absorbed.flatten(1, 2), bias.flatten(1)[..., None], _outward(attention, v))


def project_keys(attention: Attention, k: Tensor, v: Tensor) -> FewKeys:
    """k and v (B, T, C) for queries that are projected already: their features are `attention.q_proj(q)`.

    A key is zero in the channels of other heads, so that one product serves all heads.
    """
    keys = _scaled(split_heads(attention.k_proj(k), attention.heads))
    own = torch.eye(attention.heads, dtype=keys.dtype, device=keys.device)
    apart = torch.einsum("bhtd,hg->bhtgd", keys, own).flatten(3).flatten(1, 2)
    return FewKeys(attention.heads, apart, apart.new_zeros(*apart.shape[:2], 1), _outward(attention, v))


def _outward(attention: Attention, v: Tensor) -> Tensor:
    """What each head adds to a query that attends to a token alone: (B, H * T, C) from v (B, T, C).

    (A (v W_v)) W_o = A (v W_v W_o): the few values are projected back, not the many results. The bias of W_o is split
    among the heads, whose weights add up to 1 each.
    """
    values = split_heads(attention.v_proj(v), attention.heads)
    weight = torch.unflatten(attention.out_proj.weight, 1, (attention.heads, -1))
    return (torch.einsum("bhtd,chd->bhtc", values, weight) + attention.out_proj.bias / attention.heads).flatten(1, 2)


def _by_head(weight: Tensor, attention: Attention) -> Tensor:
    """A projection's weight (H * D, C) as (H, D, C)."""
    return torch.unflatten(weight, 0, (attention.heads, -1))


def _scaled(heads: Tensor) -> Tensor:
    """(B, H, T, D) with the factor of scaled dot-product attention, D^-0.5."""
    return heads * float(heads.shape[-1] ** -0.5)
