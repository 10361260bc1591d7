"""Decoder for single points on an accelerator, with the sums of `point_decoder.py` laid out for three kernels.

`model/kernels/factored_image.py` implements the steps that process the whole image, and defines the layout of tokens
and rows. This module implements the rest, which is small: the attention among the tokens, projections, perceptrons, and
the input of the kernels. An image's plan contains no products of vectors, unlike `point_decoder.PointPlan`, because the
kernels compute a norm's statistics from the image itself in float32.

Shapes: B points, T = 7 tokens in 8 seats for each of H = 8 heads of D = 16 channels, N = 64 rows, C = 256 channels, R
rows of an image, P = 4096 positions.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from segmint.model.kernels.factored_image import answer, draw, look
from segmint.model.kernels.factored_plainly import CONSTANT, HEADS, ROWS, SEATS
from segmint.model.sam.common import join_heads, split_heads, split_rows
from segmint.model.sam.mask_decoder import MASK_TOKENS, MaskDecoder
from segmint.model.sam.point_decoder import as_linear, attend_to_shared_image, predicted_iou_of, used_tokens
from segmint.model.sam.transformer import Attention


@dataclass(frozen=True)
class ProjectedImage:
    """Shared image after one projection of an attention.

    Attributes:
        own: (H * D, P), the projected image. Before the first block, it includes the positions and the bias.
        places: (H * D, P), the projected positional encoding plus the bias. (0, P) before the first block.
        weight: (H, D, C), the weight of the projection.
    """

    own: Tensor
    places: Tensor
    weight: Tensor


@dataclass(frozen=True)
class AttentionView:
    """Shared input to the tokens' attention to the image: keys, values (P, H * D), and the values' weight (H, D, C)."""

    keys: ProjectedImage
    values: Tensor
    weight: Tensor


@dataclass(frozen=True)
class SharedBlock:
    """Values of one two-way block that all points on an image share.

    Attributes:
        view: input to the tokens' attention to the image. None in the first block, where all tokens attend to the
            shared image.
        queries: the image's queries for its attention to the tokens.
        outward: (H, D, C), maps from values to the centered vectors that they add to the image.
        shared: (P, C), the centered shared image.
    """

    view: AttentionView | None
    queries: ProjectedImage
    outward: Tensor
    shared: Tensor


@dataclass(frozen=True)
class DecodePlan:
    """Values that all points on one image share.

    `keys` and `values` (1, H, P, D) belong to the first block, and `final` belongs to the last attention. `drawn` (P,
    C) is the shared image after the first upscaling step, without the bias.
    """

    keys: Tensor
    values: Tensor
    blocks: tuple[SharedBlock, ...]
    final: AttentionView
    drawn: Tensor


@dataclass(frozen=True)
class PointImages:
    """Images of B points, scale * X + coefficients^T vectors.

    Attributes:
        scale: (B, P) float32.
        coefficients: (B, R, P).
        vectors: (B, R, C).
    """

    scale: Tensor
    coefficients: Tensor
    vectors: Tensor


def plan_image(decoder: MaskDecoder, features: Tensor, positions: Tensor, no_mask: Tensor) -> DecodePlan:
    """Precompute the values that all points share, from an image's embedding, positions, and no-mask embedding.

    All three inputs are (1, C, 64, 64).
    """
    image = (features + no_mask).flatten(2).transpose(1, 2)
    places = positions.flatten(2).transpose(1, 2)
    first = decoder.transformer.blocks[0].cross_attn_token_to_image
    keys, values = first.k_proj(image + places), first.v_proj(image)
    shared, places = image[0], places[0]
    blocks = []
    for block in decoder.transformer.blocks:
        back = block.cross_attn_image_to_token
        if block.first:
            view = None
            whole = (back.q_proj.weight @ (shared + places).T + back.q_proj.bias[:, None]).contiguous()
            queries = ProjectedImage(whole, whole[:0], split_rows(back.q_proj.weight, HEADS))
            shared = shared + back.out_proj.bias
        else:
            view = _view(block.cross_attn_token_to_image, shared, places)
            queries = _projected(back.q_proj.weight, back.q_proj.bias, shared, places)
        centered = shared - shared.mean(dim=1, keepdim=True)
        outward = split_rows(back.out_proj.weight.T, HEADS)
        blocks.append(SharedBlock(view, queries, outward - outward.mean(dim=2, keepdim=True), centered))
        shared = centered * block.norm4.weight
    final = _view(decoder.transformer.final_attn_token_to_image, shared, places)
    weight, _ = as_linear(decoder.upscaling_steps[0])
    return DecodePlan(split_heads(keys, HEADS), split_heads(values, HEADS), tuple(blocks), final, shared @ weight.T)


def _view(attention: Attention, shared: Tensor, places: Tensor) -> AttentionView:
    # Omit the keys' bias, because it would add the same value to all scores of a query.
    keys = _projected(attention.k_proj.weight, None, shared, places)
    return AttentionView(keys, shared @ attention.v_proj.weight.T, split_rows(attention.v_proj.weight, HEADS))


def _projected(weight: Tensor, bias: Tensor | None, shared: Tensor, places: Tensor) -> ProjectedImage:
    of_places = weight @ places.T
    if bias is not None:
        of_places = of_places + bias[:, None]
    return ProjectedImage((weight @ shared.T).contiguous(), of_places.contiguous(), split_rows(weight, HEADS))


def decode(decoder: MaskDecoder, plan: DecodePlan, sparse: Tensor) -> tuple[Tensor, Tensor, PointImages]:
    """Decode three masks for each of B points: predicted IoUs (B, 3) float32, mask tokens (B, 3, C), and images.

    `sparse` (B, 2, C) contains the embedding of each point, followed by the embedding of the padding token ("not a
    point").
    """
    places = torch.cat([decoder.own_tokens.expand(len(sparse), -1, -1), sparse], dim=1)
    tokens = places
    images: PointImages | None = None
    for block, shared in zip(decoder.transformer.blocks, plan.blocks, strict=True):
        attention = block.cross_attn_token_to_image
        tokens = block.attend_among_tokens(tokens, places)
        if shared.view is None or images is None:
            attended = attend_to_shared_image(attention, tokens + places, plan.keys, plan.values)
        else:
            attended = _attend(attention, shared.view, tokens + places, images)
        tokens = block.refine_tokens(tokens, attended)

        back = block.cross_attn_image_to_token
        few = _seated(back.k_proj(tokens + places)) * float(back.head_width**-0.5)
        added = torch.einsum("bhtd,hdc->bhtc", _seated(back.v_proj(tokens)), shared.outward).flatten(1, 2)
        if images is None:
            nothing = few.new_zeros(len(sparse), 0, plan.drawn.shape[0])
            images = PointImages(
                few.new_ones(len(sparse), plan.drawn.shape[0], dtype=torch.float32), nothing, added[:, :0]
            )
        else:
            added = torch.cat([added, _with_bias(images.vectors, back.out_proj.bias)], dim=1)
        scale, coefficients = answer(
            few.flatten(1, 2),
            shared.queries.own,
            shared.queries.places,
            _prior(few, shared.queries.weight, images),
            images.scale,
            images.coefficients,
            added,
            shared.shared,
            places.shape[1],
            block.norm4.eps,
        )
        vectors = added * block.norm4.weight
        vectors[:, CONSTANT] = block.norm4.bias
        images = PointImages(scale, coefficients, vectors)
    assert images is not None
    final = decoder.transformer.final_attn_token_to_image
    attended = _attend(final, plan.final, used_tokens(tokens + places), images)
    tokens = decoder.transformer.norm_final_attn(used_tokens(tokens) + attended)
    return predicted_iou_of(decoder, tokens[:, 0]), tokens[:, 1:], images


@dataclass(frozen=True)
class DrawArguments:
    """Arguments of `factored_image.draw`: images after the first upscaling step, weights, and mask filters."""

    images: PointImages
    shared: Tensor
    norm: Tensor
    weight: Tensor
    bias: Tensor
    filters: Tensor
    eps: float

    def draw(self, wanted: Tensor) -> Tensor:
        """Draw logits (B, 3, 256, 256) float32. If a point has no mask in `wanted` (B, 3), its logits are arbitrary."""
        logits: Tensor = draw(
            self.images.scale,
            self.images.coefficients,
            self.images.vectors,
            self.shared,
            self.norm,
            self.weight,
            self.bias,
            self.filters,
            wanted,
            self.eps,
        )
        return logits


def prepare_drawing(decoder: MaskDecoder, plan: DecodePlan, tokens: Tensor, images: PointImages) -> DrawArguments:
    """Prepare the arguments for drawing the masks with these tokens (B, 3, C) on the points' images."""
    filters = torch.stack([mlp(tokens[:, n]) for n, mlp in enumerate(decoder.hypernetworks[1:MASK_TOKENS])], dim=1)
    first, norm, second = decoder.upscaling_steps
    (weight1, bias1), (weight2, bias2) = as_linear(first), as_linear(second)
    vectors = images.vectors @ weight1.T
    vectors[:, CONSTANT] += bias1
    return DrawArguments(
        PointImages(images.scale, images.coefficients, vectors),
        plan.drawn,
        torch.stack([norm.weight, norm.bias]),
        weight2.T.contiguous(),
        bias2,
        filters,
        norm.eps,
    )


def _attend(attention: Attention, view: AttentionView, q: Tensor, images: PointImages) -> Tensor:
    """Compute `attention(q, images + positions, images)` for queries (B, T, C), and return (B, T, C)."""
    few = _seated(attention.q_proj(q)) * float(attention.head_width**-0.5)
    own, mixed = look(
        few.flatten(1, 2),
        view.keys.own,
        view.keys.places,
        _prior(few, view.keys.weight, images),
        images.scale,
        images.coefficients,
        view.values,
    )
    seen = torch.unflatten(mixed @ images.vectors, 1, (HEADS, SEATS))
    values = torch.unflatten(own, 1, (HEADS, SEATS)) + torch.einsum("bhtc,hdc->bhtd", seen, view.weight)
    out: Tensor = attention.out_proj(join_heads(values[:, :, : q.shape[1]]) + attention.v_proj.bias)
    return out


def _seated(x: Tensor) -> Tensor:
    """Arrange projected tokens (B, T, H * D) in their seats, (B, H, 8, D). Free seats contain zeros."""
    return F.pad(split_heads(x, HEADS), (0, 0, 0, SEATS - x.shape[1]))


def _prior(few: Tensor, weight: Tensor, images: PointImages) -> Tensor:
    """Score projected tokens (B, H, 8, D) against the images' vectors projected by `weight` (H, D, C): (B, N, R)."""
    if not images.vectors.shape[1]:
        return few.new_zeros(len(few), ROWS, 0)
    projected = torch.unflatten(images.vectors @ weight.flatten(0, 1).T, 2, (HEADS, -1))
    return torch.einsum("bhtd,brhd->bhtr", few, projected).flatten(1, 2)


def _with_bias(vectors: Tensor, bias: Tensor) -> Tensor:
    """Add `bias` (C,) to the constant vector, and center all of the images' vectors (B, R, C) over the channels."""
    vectors = vectors.clone()
    vectors[:, CONSTANT] += bias
    return vectors - vectors.mean(dim=2, keepdim=True)
