"""Factored images of prompts: a scaled image that all prompts share, plus a few vectors per prompt.

For each of the image's P = 4096 positions, a two-way block adds the result of the position's attention to T = 7 tokens
with H = 8 heads, and then normalizes. Between prompts, the positions only differ by those 56 vectors, so no prompt
needs products of 4096 x 256 matrices. A prompt's image is stored as

    x = s X + D^T U

with a factor s per position, the shared image X (P, C), coefficients D (R, P), and vectors U (R, C). Two facts preserve
this form without approximation:

1. *Attention adds rows.* A^T V, for weights A (H * T, P) of values V (H * T, C), adds rows to D and U.
2. *Layer norm scales them.* Let Y be X, and U each row, without its mean over the C channels. Then y = s Y + D^T U also
   has mean 0, C var(y) = s^2 |Y|^2 + sum of D * (2 s (U Y^T) + (U U^T) D) over the rows, and the layer norm of y is
   (s / std) (Y gamma) + (D / std)^T (U gamma) + 1^T beta, which has one more row.

Products with X are also shared and computed once per image. These are the projections X W of each attention, and U Y^T,
because U = v M for the few values v (H * T, 16) of a prompt and a matrix M of weights.

Shapes: B prompts, C = 256 channels, D = 16 channels per head, R rows (56 + 1 per block), N vectors per head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segmint.model.sam.common import join_heads, split_heads
from segmint.model.sam.products import product
from segmint.model.sam.transformer import Attention


@dataclass(frozen=True)
class FactoredImage:
    """Images of B prompts after one or more blocks, x = scale * X + coefficients^T vectors.

    Attributes:
        scale: (B, 1, P).
        coefficients: (B, R, P), the rows of attended values, starting with the last block, and then a row for each
            norm.
        vectors: (B, R, C).
        values: (B, blocks * H, T, D), from which the first rows' vectors are computed, in the same order.
    """

    scale: Tensor
    coefficients: Tensor
    vectors: Tensor
    values: Tensor

    def of(self, prompts: Tensor) -> "FactoredImage":
        """Return the images of some of the prompts, given by their indices (K,) int64."""
        if len(prompts) == len(self.scale):
            return self
        parts = (self.scale, self.coefficients, self.vectors, self.values)
        return FactoredImage(*(part[prompts] for part in parts))


@dataclass(frozen=True)
class SharedScores:
    """Part of the scores between a few vectors and the image that all prompts share: one attention's projection.

    Attributes:
        own: (H, D, P), the projected shared image, which includes positions and bias before the first block.
        places: (H, D, P), the projected positional encoding plus the bias; None before the first block.
        weight: (H, D, C) of the projection.
    """

    own: Tensor
    places: Tensor | None
    weight: Tensor

    def between(self, few: Tensor, image: FactoredImage | None) -> Tensor:
        """Return few (B, H, N, D) times the image's projections as (B, H * N, P).

        few (x W)^T = s (few (X W)^T) + (few W^T U^T) D. If `image` is None, the shared image is used.
        """
        scores = by_head(few, self.own)
        if image is None or self.places is None:
            return scores
        scores = scores.mul_(image.scale).add_(by_head(few, self.places))
        return product(self.prior(few, image.vectors), image.coefficients, onto=scores)

    def prior(self, few: Tensor, vectors: Tensor) -> Tensor:
        """Return few (B, H, N, D) times the projections of vectors (B, R, C), without bias, as (B, H * N, R)."""
        absorbed = torch.einsum("bhnd,hdc->bhnc", few, self.weight).flatten(1, 2)
        return absorbed @ vectors.transpose(1, 2)


@dataclass(frozen=True)
class SharedView:
    """Part of the attention from tokens to the image that all prompts share, after one or more blocks.

    Attributes:
        scores: for the keys, without their bias, which adds the same value to all scores of a query.
        values: (H, P, D), the projected shared image.
        weight: (H, D, C) of that projection.
    """

    scores: SharedScores
    values: Tensor
    weight: Tensor

    def attend(self, attention: Attention, queries: Tensor, image: FactoredImage) -> Tensor:
        """Return `attention(queries, image + positions, image)` for queries (B, N, C) as (B, N, C).

        A (x W + b) = (A s) (X W) + (A D^T) U W + b, because the weights A of a query add up to 1.
        """
        few = scaled(split_heads(attention.q_proj(queries), attention.heads))
        weights = self.scores.between(few, image).softmax(dim=-1)
        own = by_head(torch.unflatten(weights * image.scale, 1, few.shape[1:3]), self.values)
        mixed = product(product(weights, image.coefficients.transpose(1, 2)), image.vectors)
        return self.project(attention, torch.unflatten(own, 1, few.shape[1:3]), mixed)

    def project(self, attention: Attention, own: Tensor, mixed: Tensor) -> Tensor:
        """Return the attention's output (B, N, C) from A s X W, `own` (B, H, N, D), and A D^T U, `mixed` (B, H * N, C).

        A contains the weights of the attention, and the other factors are those of `attend`.
        """
        values = own + torch.einsum("bhnc,hdc->bhnd", torch.unflatten(mixed, 1, own.shape[1:3]), self.weight)
        out: Tensor = attention.out_proj(join_heads(values) + attention.v_proj.bias)
        return out


@dataclass(frozen=True)
class SharedNorm:
    """Part of a block's layer norm over the image that all prompts share.

    Attributes:
        squares: (P,), |Y|^2 of the centered shared image.
        maps: (blocks * H, D, C), from values to their centered vectors, starting with the last block.
        projected: (blocks * H, D, P), these maps times Y.
        constants: (K, C), the centered rows that earlier norms have added; K is 0 at first.
        projected_constants: (K, P), these rows times Y.
        norm: the layer norm.
    """

    squares: Tensor
    maps: Tensor
    projected: Tensor
    constants: Tensor
    projected_constants: Tensor
    norm: nn.LayerNorm

    def after(self, image: FactoredImage | None, weights: Tensor, values: Tensor) -> FactoredImage:
        """Add attention with `weights` (B, H * T, P) to `values` (B, H, T, D) to the image, and normalize the sum."""
        prompts, _, positions = weights.shape
        if image is None:
            scale, coefficients = None, weights
        else:
            scale, coefficients = image.scale, torch.cat([weights, image.coefficients], dim=1)
            values = torch.cat([values, image.values], dim=1)
        vectors = self.vectors_of(values)
        linear = by_head(values, self.projected)
        squares = self.squares
        if scale is not None:
            linear = torch.cat([linear, self.projected_constants.expand(prompts, -1, -1)], dim=1).mul_(scale)
            squares = scale.square() * squares
        products = product(vectors @ vectors.transpose(1, 2), coefficients, onto=linear.mul_(2))
        squares = squares + products.mul_(coefficients).sum(dim=1, keepdim=True)
        shrink = (squares / vectors.shape[-1] + self.norm.eps).rsqrt()

        rows = coefficients.shape[1]
        normalized = coefficients.new_empty(prompts, rows + 1, positions)
        torch.mul(coefficients, shrink, out=normalized[:, :rows])
        normalized[:, rows] = 1
        return FactoredImage(shrink if scale is None else scale * shrink, normalized, self.after_norm(vectors), values)

    def vectors_of(self, values: Tensor) -> Tensor:
        """Return the image's vectors (B, R, C) before the norm, from all values (B, blocks * H, T, D)."""
        vectors = torch.einsum("bhtd,hdc->bhtc", values, self.maps).flatten(1, 2)
        return torch.cat([vectors, self.constants.expand(len(values), -1, -1)], dim=1)

    def after_norm(self, vectors: Tensor) -> Tensor:
        """Return the vectors (B, R + 1, C) after the norm, which adds a vector for its bias."""
        bias = self.norm.bias.expand(len(vectors), 1, -1)
        return torch.cat([vectors * self.norm.weight, bias], dim=1)


def by_head(few: Tensor, shared: Tensor) -> Tensor:
    """Return few (B, H, N, K) times shared (H, K, M), head by head, as (B, H * N, M)."""
    prompts, heads = few.shape[:2]
    together = torch.bmm(few.transpose(0, 1).reshape(heads, -1, few.shape[-1]), shared)
    return torch.unflatten(together, 1, (prompts, -1)).transpose(0, 1).flatten(1, 2)


def scaled(heads: Tensor) -> Tensor:
    """Return (B, H, N, D) times the factor of scaled dot-product attention, D^-0.5."""
    return heads * float(heads.shape[-1] ** -0.5)
