"""Factored images of prompts: a scaled image that all prompts share, plus a few vectors per prompt.

In a two-way block, the image attends to the T = 7 tokens with H = 8 heads. The block adds the attention's output to the
image, and then normalizes each of the P = 4096 positions. At each position, the output is a weighted sum of only 56
vectors, and nothing else differs between prompts. So instead of a 4096 x 256 matrix per prompt, this module stores a
prompt's image in factors:

    x = s X + D^T U

X (P, C) is the shared image. Each prompt has one scale per position in s, coefficients D (R, P), and vectors U (R, C).
Both operations of a block keep the image in this form, without approximation:

1. *Attention adds rows.* If A (H * T, P) contains the weights and V (H * T, C) contains the values, then the output is
   A^T V. Adding it to the image appends A to D and V to U.
2. *Layer norm scales them.* Layer norm subtracts the mean over the C channels. Let Y and U be the shared image and the
   vectors after this subtraction. Then y = s Y + D^T U also has mean 0. Its variance follows from C var(y) = s^2 |Y|^2
   + sum of D * (2 s (U Y^T) + (U U^T) D) over the rows. The layer norm of y is (s / std) (Y gamma) + (D / std)^T (U
   gamma) + 1^T beta, which has one more row.

Products with X don't depend on the prompt, so they are computed once per image. They are the projections X W of each
attention, and U Y^T. The latter is shared because U = v M, where v (H * T, 16) contains the few values of a prompt and
M is a matrix of weights.

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
        coefficients: (B, R, P). The first rows are attention weights, with the last block first. Each norm adds one row
            after them.
        vectors: (B, R, C).
        values: (B, blocks * H, T, D). The vectors of the first rows are computed from these values, in the same order.
    """

    scale: Tensor
    coefficients: Tensor
    vectors: Tensor
    values: Tensor

    def of(self, prompts: Tensor) -> "FactoredImage":
        """Select the images of the prompts with the indices `prompts` (K,) int64."""
        if len(prompts) == len(self.scale):
            return self
        parts = (self.scale, self.coefficients, self.vectors, self.values)
        return FactoredImage(*(part[prompts] for part in parts))


@dataclass(frozen=True)
class SharedScores:
    """Part of the attention scores that all prompts share, for one projection of the image.

    Attributes:
        own: (H, D, P), the projected shared image. Before the first block, it includes the positions and the bias.
        places: (H, D, P), the projected positional encoding plus the bias. None before the first block.
        weight: (H, D, C), the weight of the projection.
    """

    own: Tensor
    places: Tensor | None
    weight: Tensor

    def between(self, few: Tensor, image: FactoredImage | None) -> Tensor:
        """Score the vectors `few` (B, H, N, D) against the projected images, and return (B, H * N, P).

        few (x W)^T = s (few (X W)^T) + (few W^T U^T) D. If `image` is None, all prompts use the shared image.
        """
        scores = by_head(few, self.own)
        if image is None or self.places is None:
            return scores
        scores = scores.mul_(image.scale).add_(by_head(few, self.places))
        return product(self.prior(few, image.vectors), image.coefficients, onto=scores)

    def prior(self, few: Tensor, vectors: Tensor) -> Tensor:
        """Score `few` (B, H, N, D) against the projections of `vectors` (B, R, C), without bias: (B, H * N, R)."""
        absorbed = torch.einsum("bhnd,hdc->bhnc", few, self.weight).flatten(1, 2)
        return absorbed @ vectors.transpose(1, 2)


@dataclass(frozen=True)
class SharedView:
    """Part of the attention from the tokens to the image that all prompts share, after one or more blocks.

    Attributes:
        scores: the scores of the keys. The keys' bias is left out, because it adds the same value to all scores of a
            query.
        values: (H, P, D), the projected shared image.
        weight: (H, D, C), the weight of that projection.
    """

    scores: SharedScores
    values: Tensor
    weight: Tensor

    def attend(self, attention: Attention, queries: Tensor, image: FactoredImage) -> Tensor:
        """Compute `attention(queries, image + positions, image)` for queries (B, N, C), and return (B, N, C).

        A (x W + b) = (A s) (X W) + (A D^T) U W + b, because the attention weights A of each query sum to 1.
        """
        few = scaled(split_heads(attention.q_proj(queries), attention.heads))
        weights = self.scores.between(few, image).softmax(dim=-1)
        own = by_head(torch.unflatten(weights * image.scale, 1, few.shape[1:3]), self.values)
        mixed = product(product(weights, image.coefficients.transpose(1, 2)), image.vectors)
        return self.project(attention, torch.unflatten(own, 1, few.shape[1:3]), mixed)

    def project(self, attention: Attention, own: Tensor, mixed: Tensor) -> Tensor:
        """Compute the attention output (B, N, C) from `own` (B, H, N, D) = A s X W and `mixed` (B, H * N, C) = A D^T U.

        A contains the attention weights. `attend` explains the other factors.
        """
        values = own + torch.einsum("bhnc,hdc->bhnd", torch.unflatten(mixed, 1, own.shape[1:3]), self.weight)
        out: Tensor = attention.out_proj(join_heads(values) + attention.v_proj.bias)
        return out


@dataclass(frozen=True)
class SharedNorm:
    """Part of a block's layer norm over the image that all prompts share.

    Attributes:
        squares: (P,), |Y|^2 of the centered shared image.
        maps: (blocks * H, D, C), matrices that map values to centered vectors, with the last block first.
        projected: (blocks * H, D, P), `maps` times Y.
        constants: (K, C), the centered rows that earlier norms added. K is 0 in the first block.
        projected_constants: (K, P), `constants` times Y.
        norm: the layer norm.
    """

    squares: Tensor
    maps: Tensor
    projected: Tensor
    constants: Tensor
    projected_constants: Tensor
    norm: nn.LayerNorm

    def after(self, image: FactoredImage | None, weights: Tensor, values: Tensor) -> FactoredImage:
        """Add attention with `weights` (B, H * T, P) over `values` (B, H, T, D) to the image, and normalize the sum."""
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
        """Compute the vectors (B, R, C) before the norm from the values of all blocks (B, blocks * H, T, D)."""
        vectors = torch.einsum("bhtd,hdc->bhtc", values, self.maps).flatten(1, 2)
        return torch.cat([vectors, self.constants.expand(len(values), -1, -1)], dim=1)

    def after_norm(self, vectors: Tensor) -> Tensor:
        """Apply the norm to the vectors, and append one for the norm's bias, which gives (B, R + 1, C)."""
        bias = self.norm.bias.expand(len(vectors), 1, -1)
        return torch.cat([vectors * self.norm.weight, bias], dim=1)


def by_head(few: Tensor, shared: Tensor) -> Tensor:
    """Multiply `few` (B, H, N, K) by `shared` (H, K, M) in each head, and return (B, H * N, M)."""
    prompts, heads = few.shape[:2]
    together = torch.bmm(few.transpose(0, 1).reshape(heads, -1, few.shape[-1]), shared)
    return torch.unflatten(together, 1, (prompts, -1)).transpose(0, 1).flatten(1, 2)


def scaled(heads: Tensor) -> Tensor:
    """Multiply the heads (B, H, N, D) by D^-0.5, the factor of scaled dot-product attention."""
    return heads * float(heads.shape[-1] ** -0.5)
