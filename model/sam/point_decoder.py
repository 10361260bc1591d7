"""Mask decoder for single points: the sums of `MaskDecoder` in a different order, with fewer multiplications.

A grid prompts the model with hundreds of points on the same image, so most of the work in `MaskDecoder` repeats from
point to point. This decoder skips the repeated work without approximating anything. It relies on three facts:

1. *Shared image.* All points start from the same image. `plan_points` projects that image once for the first block, and
   every point reuses the projections.
2. *Factored image.* After the first block, each point has its own version of the image, but each version differs from
   the shared image by only a few vectors. `factored_image` stores and updates these vectors instead of the full image.
3. *Scores first.* The predicted IoU depends only on the tokens. `decode_points` therefore returns the predicted IoUs
   before any mask is drawn, and `draw_masks` draws only the masks that the caller selects.

Shapes: B points, T = 7 tokens (8 in SAM 2), C = 256 channels, H = 8 heads of D = 16 channels, P = 4096 positions.
Tensors have the dtype of the weights, except for the predicted IoU and the logits, which are float32.

Factored images of prompts: a scaled image that all prompts share, plus a few vectors per prompt.

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

import itertools
import math
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmint.model.kernels.cpu import calls
from segmint.model.kernels.cpu.calls import HEAD_WIDTH, MOST_TOKENS, ImagesInBlocks, SharedStep, Upscaler
from segmint.model.kernels.cpu.library import Kernels
from segmint.model.sam.common import join_heads, linear, product, split_heads, split_rows
from segmint.model.sam.image_encoder_vit import attend
from segmint.model.sam.mask_decoder import MASK_TOKENS, Attention, MaskDecoder, TwoWayBlock


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


# The decoder's own tokens come first, followed by the tokens of the prompt. Single points use only the tokens of the
# three masks.
_THREE = range(1, MASK_TOKENS)
POINT_TOKENS = 2
"""Number of prompt tokens per point: the point and its padding token ("not a point")."""

# Number of prompts whose images a CPU processes together. One prompt at a time makes the best use of the caches, but
# each torch operation adds an overhead that grows with the number of calling threads. Of 1, 2, and 4 prompts, 4 is the
# fastest.
GROUP = 4

# Number of prompts that a CPU draws together. A CPU's caches hold the bands of only one prompt.
DRAWN = 1

# Number of positions that a CPU draws at once. A band of this size takes 1 MB in float32, so the output of one step is
# still in the core's cache when the next step reads it.
BAND = 1024


@dataclass(frozen=True)
class BlockPlan:
    """Values of one two-way block that all points on an image share.

    Attributes:
        view: input to the tokens' attention to the image. None in the first block, where the tokens attend to the
            shared image.
        scores: input to the scores of the image's queries.
        norm: input to the layer norm that follows the image's attention to the tokens.
    """

    view: SharedView | None
    scores: SharedScores
    norm: SharedNorm


@dataclass(frozen=True)
class KernelPlan:
    """Values of a `PointPlan` in the memory layout of the CPU kernels: one step per block, and the mask upscaler."""

    steps: tuple[SharedStep, ...]
    upscaler: Upscaler


@dataclass(frozen=True)
class PointPlan:
    """Values that all points on one image share.

    Attributes:
        keys: (1, H, P, D), keys that the first block projects from the shared image for the tokens' attention to it.
        values: (1, H, P, D), values of the same attention.
        blocks: one plan per block.
        final: input to the last attention from the tokens to the image.
        drawn: (P, 256), the shared image after the first upscaling step, without the bias.
        added: terms that the high-resolution features add to the output of each upscaling step; see `as_parts`.
        kernels: the same values for the CPU kernels. None if torch decodes the points and draws the masks.
    """

    keys: Tensor
    values: Tensor
    blocks: tuple[BlockPlan, ...]
    final: SharedView
    drawn: Tensor
    added: tuple[Tensor, ...] = ()
    kernels: KernelPlan | None = None


@dataclass(frozen=True)
class PointMasks:
    """Decoded masks of B points, three per point, which `draw_masks` can draw.

    `predicted_iou` is (B, 3) float32. `tokens` (B, 3, C) and `images` are the input to `draw_masks`. Each item of
    `images` belongs to a group of consecutive points. If the CPU kernels decoded the points, `images` is a single
    object for all of them.
    """

    predicted_iou: Tensor
    tokens: Tensor
    images: tuple[FactoredImage, ...] | ImagesInBlocks


def plan_points(
    decoder: MaskDecoder,
    features: Tensor,
    positions: Tensor,
    no_mask: Tensor,
    kernels: Kernels | None = None,
    mask_vectors: Tensor | None = None,
    high_res: tuple[Tensor, ...] = (),
) -> PointPlan:
    """Precompute the values that all points share, from an image embedding and its positions, both (1, C, 64, 64).

    `positions` is the positional encoding. `no_mask` (1, C, 64, 64) is the dense embedding of prompts without a mask.
    If `kernels` support the model and the size of its embedding, they decode the points and draw the masks. If you pass
    `mask_vectors` (K, C), use the plan with `decode_with_kernels`, where each prompt adds a weighted sum of these
    vectors to the image. `high_res` contains the image's high-resolution features if the model has any.
    """
    image = (features + no_mask).flatten(2).transpose(1, 2)
    places = positions.flatten(2).transpose(1, 2)
    transformer = decoder.transformer
    first = transformer.blocks[0].cross_attn_token_to_image
    keys, values = first.k_proj(image + places), first.v_proj(image)

    blocks: list[BlockPlan] = []
    shared, places = image[0], places[0]
    maps = shared.new_empty(0, first.head_width, shared.shape[1])
    constants = shared.new_empty(0, shared.shape[1]) if mask_vectors is None else mask_vectors
    for block in transformer.blocks:
        attention, answer = block.cross_attn_token_to_image, block.cross_attn_image_to_token
        if block.first:
            view = None
            scores = _shared_scores(answer.q_proj, shared + places, None, answer.heads)
            shared = shared + answer.out_proj.bias
        else:
            view = _shared_view(attention, shared, places)
            scores = _shared_scores(answer.q_proj, shared, places, answer.heads)
            # The previous norm added a row whose coefficients are all 1, so that row can absorb the bias.
            constants = torch.cat([constants[:-1], constants[-1:] + answer.out_proj.bias])
        outward = split_rows(answer.out_proj.weight.T, answer.heads)
        centred, maps, constants = (
            rows - rows.mean(dim=-1, keepdim=True) for rows in (shared, torch.cat([outward, maps]), constants)
        )
        norm = SharedNorm(
            centred.square().sum(dim=1),
            maps,
            (maps @ centred.T).contiguous(),
            constants,
            constants @ centred.T,
            block.norm4,
        )
        blocks.append(BlockPlan(view, scores, norm))
        shared, maps = centred * block.norm4.weight, maps * block.norm4.weight
        constants = torch.cat([constants * block.norm4.weight, block.norm4.bias[None]])
    final = _shared_view(transformer.final_attn_token_to_image, shared, places)
    weight, _ = as_linear(decoder.upscaling_steps[0])
    drawn = shared @ weight.T
    keys, values = split_heads(keys, first.heads), split_heads(values, first.heads)
    plan = PointPlan(keys, values, tuple(blocks), final, drawn, as_parts(high_res))
    return plan if kernels is None else replace(plan, kernels=_for_kernels(decoder, plan, kernels))


def _for_kernels(decoder: MaskDecoder, plan: PointPlan, kernels: Kernels) -> KernelPlan | None:
    _, norm, second = decoder.upscaling_steps
    weight, bias = as_linear(second)
    _, heads, _, width = plan.keys.shape
    tokens = len(decoder.own_tokens) + POINT_TOKENS
    if not calls.can_draw(plan.drawn, weight) or width != HEAD_WIDTH or heads * tokens > MOST_TOKENS:
        return None
    steps = []
    for block, view in zip(plan.blocks, _later_views(plan), strict=True):
        statistics = block.norm.squares, block.norm.projected, block.norm.projected_constants
        scales = block.norm.maps.shape[2], block.norm.norm.eps
        look = view.scores.own, cast(Tensor, view.scores.places), view.values
        answer = block.scores.own, block.scores.places
        steps.append(SharedStep.of(kernels, answer, (*statistics, *scales), look))
    return KernelPlan(tuple(steps), Upscaler.of(kernels, plan.drawn, norm, (weight, bias), *plan.added))


def _later_views(plan: PointPlan) -> list[SharedView]:
    """Return one view per block. The tokens attend to the block's output image through this view."""
    return [*(cast(SharedView, block.view) for block in plan.blocks[1:]), plan.final]


def _shared_view(attention: Attention, image: Tensor, places: Tensor) -> SharedView:
    keys = _shared_scores(attention.k_proj, image, places, attention.heads, with_bias=False)
    weight = split_rows(attention.v_proj.weight, attention.heads)
    return SharedView(keys, (image @ weight.transpose(1, 2)).contiguous(), weight)


def _shared_scores(
    projection: nn.Linear, image: Tensor, places: Tensor | None, heads: int, with_bias: bool = True
) -> SharedScores:
    """Compute scores for the shared image (P, C) and its positions (P, C).

    If `places` is None, `image` already includes the positions.
    """
    weight = split_rows(projection.weight, heads)
    own = weight @ image.T
    bias = split_rows(projection.bias[:, None], heads) if with_bias else 0
    if places is None:
        return SharedScores(own + bias, None, weight)
    return SharedScores(own, weight @ places.T + bias, weight)


def decode_points(decoder: MaskDecoder, plan: PointPlan, sparse: Tensor) -> PointMasks:
    """Predict the IoU of three masks for each of B points, without drawing the masks.

    The result also contains the input that `draw_masks` needs. `sparse` (B, 2, C) contains the embedding of each point,
    followed by the embedding of the padding token ("not a point").
    """
    places = torch.cat([decoder.own_tokens.expand(sparse.shape[0], -1, -1), sparse], dim=1)
    if plan.kernels is not None:
        tokens, images_in_blocks = decode_with_kernels(decoder, plan, places, _THREE)
        return PointMasks(predicted_iou_of(decoder, tokens[:, 0]), tokens[:, 1:], images_in_blocks)
    groups = _slices(len(places), GROUP, places.device)
    tokens = places
    images: list[FactoredImage] = []
    for block, shared in zip(decoder.transformer.blocks, plan.blocks, strict=True):
        attention = block.cross_attn_token_to_image
        tokens = block.attend_among_tokens(tokens, places)
        if shared.view is None:
            attended = attend_to_shared_image(attention, tokens + places, plan.keys, plan.values)
        else:
            attended = _attend_to_images(attention, shared.view, tokens + places, images, groups)
        tokens = block.refine_tokens(tokens, attended)
        images = [
            _attend_from_images(
                block, shared, images[n] if images else None, tokens[group] + places[group], tokens[group]
            )
            for n, group in enumerate(groups)
        ]
    final = decoder.transformer.final_attn_token_to_image
    attended = _attend_to_images(final, plan.final, used_tokens(tokens + places), images, groups)
    tokens = decoder.transformer.norm_final_attn(used_tokens(tokens) + attended)
    return PointMasks(predicted_iou_of(decoder, tokens[:, 0]), tokens[:, 1:], tuple(images))


def decode_with_kernels(
    decoder: MaskDecoder, plan: PointPlan, places: Tensor, chosen: range, mask: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, ImagesInBlocks]:
    """Run the CPU kernels on the input tokens (B, T, C), and return the output tokens (B, 1 + N, C) and the images.

    The plan must contain kernels. The first output token predicts the IoU, and the other N tokens belong to the
    `chosen` masks. `mask` contains coefficients (B, K, P) and vectors (K, C); their product is added to the shared
    image before the first block. Create the plan with the same vectors.
    """
    kernels = cast(KernelPlan, plan.kernels)
    transformer, blocks = decoder.transformer, decoder.transformer.blocks
    first, final = blocks[0], transformer.final_attn_token_to_image
    _, heads, positions, _ = plan.keys.shape
    tokens = first.attend_among_tokens(places, places)
    if mask is None:
        mask = places.new_empty(len(places), 0, positions), places.new_empty(0, places.shape[2])
        attended = attend_to_shared_image(first.cross_attn_token_to_image, tokens + places, plan.keys, plan.values)
    else:
        attended = _attend_to_masked_image(first.cross_attn_token_to_image, tokens + places, plan, *mask)
    images = ImagesInBlocks.before(places, heads, len(blocks), *mask)
    tokens = first.refine_tokens(tokens, attended)
    views = _later_views(plan)
    for n, (block, following) in enumerate(zip(blocks, [*blocks[1:], None], strict=True)):
        answer, shared = block.cross_attn_image_to_token, plan.blocks[n]
        keys = scaled(split_heads(answer.k_proj(tokens + places), answer.heads))
        values = torch.cat([split_heads(answer.v_proj(tokens), answer.heads), images.values], dim=1)
        if following is None:
            attention, queries, tokens = final, used_tokens(tokens + places, chosen), used_tokens(tokens, chosen)
        else:
            tokens = following.attend_among_tokens(tokens, places)
            attention, queries = following.cross_attn_token_to_image, tokens + places
        queries = scaled(split_heads(attention.q_proj(queries), attention.heads))
        keyed = keys, shared.scores.prior(keys, images.vectors)
        vectors = shared.norm.vectors_of(values)
        images = replace(images, vectors=shared.norm.after_norm(vectors), values=values)
        asked = queries, views[n].scores.prior(queries, images.vectors)
        own, mixed = kernels.steps[n].take(images, keyed, vectors @ vectors.transpose(1, 2), asked)
        attended = views[n].project(attention, own, mixed @ images.vectors)
        if following is not None:
            tokens = following.refine_tokens(tokens, attended)
    return transformer.norm_final_attn(tokens + attended), images


def used_tokens(tokens: Tensor, chosen: range = _THREE) -> Tensor:
    """Select the tokens with a used output: the IoU token, then the N `chosen` masks' tokens, (B, 1 + N, C)."""
    return torch.cat([tokens[:, :1], tokens[:, 1 + chosen.start : 1 + chosen.stop]], dim=1)


def predicted_iou_of(decoder: MaskDecoder, token: Tensor) -> Tensor:
    """Return the predicted IoUs of the three masks, (B, 3) float32, from the IoU token (B, C)."""
    if token.device.type == "cpu":
        return decoder.predicted_ious(token)[:, 1:].float()
    return predicted_iou_in_float32(decoder, token)


def predicted_iou_in_float32(decoder: MaskDecoder, token: Tensor) -> Tensor:
    """Compute `predicted_iou_of` on an accelerator, in float32 even if the weights have a different dtype.

    In half precision, neighboring values in this range are 0.004 apart, so rounding would effectively move the IoU
    threshold.
    """
    *hidden, last = (cast(nn.Linear, layer) for layer in decoder.iou_prediction_head.layers)
    token = token.float()
    for layer in hidden:
        token = F.relu(F.linear(token, layer.weight.float(), layer.bias.float()))
    ious = F.linear(token, last.weight.float(), last.bias.float())[:, 1:]
    return ious.sigmoid() if decoder.traits.bounds_iou else ious


def _slices(length: int, step: int, device: torch.device) -> list[slice]:
    """Split `length` into slices of `step` to fit a CPU's caches. An accelerator gets a single slice.

    If the length is 0, the list is empty.
    """
    step = step if device.type == "cpu" else max(1, length)
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _attend_to_images(
    attention: Attention, view: SharedView, queries: Tensor, images: list[FactoredImage], groups: list[slice]
) -> Tensor:
    """Attend from each prompt's queries (B, N, C) to the prompt's own image, and return the output (B, N, C)."""
    return torch.cat(
        [view.attend(attention, queries[group], image) for group, image in zip(groups, images, strict=True)]
    )


def attend_to_shared_image(attention: Attention, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Compute the first block's attention from the tokens (B, T, C) to the shared image.

    All points share the keys and values, so the tokens of all points form a single batch of queries.
    """
    queries = split_heads(attention.q_proj(q).flatten(0, 1)[None], attention.heads)
    attended = join_heads(attend(queries, keys, values))
    out: Tensor = attention.out_proj(torch.unflatten(attended[0], 0, q.shape[:2]))
    return out


def _attend_to_masked_image(
    attention: Attention, q: Tensor, plan: PointPlan, coefficients: Tensor, vectors: Tensor
) -> Tensor:
    """Compute `attend_to_shared_image` for the shared image plus coefficients (B, K, P) times vectors (K, C)."""
    heads = attention.heads
    few = scaled(split_heads(attention.q_proj(q), heads))
    keys = split_heads((vectors @ attention.k_proj.weight.T)[None], heads)
    values = split_heads((vectors @ attention.v_proj.weight.T)[None], heads)
    scores = few @ plan.keys.transpose(2, 3) + few @ keys.transpose(2, 3) @ coefficients[:, None]
    weights = scores.softmax(dim=3)
    attended = weights @ plan.values + weights @ coefficients[:, None].transpose(2, 3) @ values
    out: Tensor = attention.out_proj(join_heads(attended))
    return out


def _attend_from_images(
    block: TwoWayBlock, plan: BlockPlan, image: FactoredImage | None, k: Tensor, v: Tensor
) -> FactoredImage:
    """Apply the block's last step: the images attend to the tokens `k` and `v`, both (B, T, C), and are normalized."""
    attention = block.cross_attn_image_to_token
    keys = scaled(split_heads(attention.k_proj(k), attention.heads))
    values = split_heads(attention.v_proj(v), attention.heads)
    scores = torch.unflatten(plan.scores.between(keys, image), 1, keys.shape[1:3])
    return plan.norm.after(image, scores.softmax(dim=2).flatten(1, 2), values)


def draw_masks(decoder: MaskDecoder, plan: PointPlan, masks: PointMasks, wanted: Tensor) -> Tensor:
    """Draw the masks that `wanted` (B, 3) bool selects, as logits (N, 256, 256) float32 in the order of the points."""
    filters = torch.stack([mlp(masks.tokens[:, n]) for n, mlp in enumerate(decoder.hypernetworks[1:])], dim=1)
    if plan.kernels is not None and isinstance(masks.images, ImagesInBlocks):
        return _draw_points(decoder, plan.kernels.upscaler, masks.images, filters, wanted)
    side = 4 * math.isqrt(len(plan.drawn))
    drawn = [masks.predicted_iou.new_zeros(0, side, side)]
    start = 0
    for image in cast(tuple[FactoredImage, ...], masks.images):
        group = slice(start, start + len(image.scale))
        points = wanted[group].any(dim=1).nonzero().flatten()
        for chosen in (points[each] for each in _slices(len(points), DRAWN, points.device)):
            logits = _draw(decoder, plan, image.of(chosen), filters[group][chosen], side)
            drawn.append(logits[wanted[group][chosen]].float())
        start = group.stop
    return torch.cat(drawn)


def _draw_points(
    decoder: MaskDecoder, upscaler: Upscaler, images: ImagesInBlocks, filters: Tensor, wanted: Tensor
) -> Tensor:
    """Draw masks with the CPU kernels, one prompt at a time, from the mask filters (B, 3, 32)."""
    first, side = as_linear(decoder.upscaling_steps[0]), upscaler.low_res_size
    logits = filters.new_empty(int(wanted.sum()), side, side)
    done = 0
    for n, (own, chosen) in enumerate(zip(filters, wanted, strict=True)):
        end = done + int(chosen.sum())
        if end > done:
            draw_with_kernels(first, upscaler, images, n, own[chosen], logits[done:end])
        done = end
    return logits


def draw_with_kernels(
    first: tuple[Tensor, Tensor],
    upscaler: Upscaler,
    images: ImagesInBlocks,
    prompt: int,
    filters: Tensor,
    logits: Tensor,
    threads: int = 1,
) -> None:
    """Draw the masks of one prompt from its mask filters (N, 32), and write the logits to `logits` (N, 256, 256).

    `prompt` is the prompt's index in `images`. `first` contains the weight (256, C) and the bias (256,) of the first
    upscaling step.
    """
    vectors = _upscaled(images.vectors[prompt], *first)
    upscaler.draw(images.scale[prompt], images.coefficients[prompt], vectors, filters, logits, threads)


def _upscaled(vectors: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply the first upscaling step to an image's vectors (..., R, C), which gives (..., R, 256)."""
    upscaled = vectors @ weight.T
    upscaled[..., -1, :] += bias  # the row whose coefficients are 1
    return upscaled


def _draw(decoder: MaskDecoder, plan: PointPlan, image: FactoredImage, filters: Tensor, side: int) -> Tensor:
    """Compute the logits (B, 3, side, side) of B points from their factored images and mask filters (B, 3, 32).

    The first upscaling step is linear, so it can be applied to the factors instead of the full images.
    """
    shared = plan.drawn
    weight, bias = as_linear(decoder.upscaling_steps[0])
    vectors = _upscaled(image.vectors, weight, bias)
    coefficients, scale = image.coefficients.transpose(1, 2).contiguous(), image.scale.transpose(1, 2)
    drawn = []
    for band in _slices(len(shared), BAND, shared.device):
        map_ = product(coefficients[:, band], vectors, onto=shared[band] * scale[:, band])
        drawn.append(finish_band(decoder, map_, filters, tuple(part[band] for part in plan.added)))
    return unfold_parts(torch.cat(drawn, dim=-1), side)


def finish_band(decoder: MaskDecoder, map_: Tensor, filters: Tensor, added: tuple[Tensor, ...] = ()) -> Tensor:
    """Run the remaining upscaling steps on a band (B, positions, 256) after the first step.

    `filters` (B, N, 32) contains one filter per mask. `added` contains the band's rows from `as_parts`. The result (B,
    N, 16 * positions) contains 16 logits per position, in the order that `unfold_parts` describes.
    """
    _, norm, second = decoder.upscaling_steps
    weight, bias = as_linear(second)
    if added:
        map_ = map_ + added[0]
    map_ = map_.reshape(-1, len(norm.weight))
    map_ = F.gelu(F.layer_norm(map_, norm.normalized_shape, norm.weight, norm.bias, norm.eps))
    if added:
        map_ = F.gelu(linear(map_, weight, bias).view(len(filters), *added[1].shape) + added[1])
    else:
        map_ = linear(map_, weight, bias, gelu=True)
    return product(filters, map_.view(len(filters), -1, filters.shape[-1]).transpose(1, 2))


def unfold_parts(parts: Tensor, side: int) -> Tensor:
    """Rearrange logits from position order (B, N, side * side) to pixels (B, N, side, side).

    The first upscaling step turns each position into 2x2 pixels (a, b). The second step turns each of these pixels into
    2x2 pixels (c, d).
    """
    parts = parts.view(*parts.shape[:2], side // 4, side // 4, 16)
    logits = parts.new_empty(*parts.shape[:2], side, side)
    for part, (a, b, c, d) in zip(parts.unbind(dim=-1), itertools.product(range(2), repeat=4), strict=True):
        logits[..., 2 * a + c :: 4, 2 * b + d :: 4] = part
    return logits


def as_parts(high_res: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Rearrange high-resolution features (1, 64, 2S, 2S) and (1, 32, 4S, 4S) by position, as (P, 256) and (P, 512).

    Each row contains the pixels of one position, in the order that `unfold_parts` describes, with the channels of each
    pixel together. Without features, the result is empty.
    """
    if not high_res:
        return ()
    finer, finest = (maps[0] for maps in high_res)
    side = finer.shape[1] // 2
    twice = finer.reshape(-1, side, 2, side, 2).permute(1, 3, 2, 4, 0)
    four_times = finest.reshape(-1, side, 2, 2, side, 2, 2).permute(1, 4, 2, 5, 3, 6, 0)
    return twice.reshape(side * side, -1), four_times.reshape(side * side, -1)


def as_linear(step: nn.ConvTranspose2d) -> tuple[Tensor, Tensor]:
    """Return a 2x2 transposed convolution with stride 2 as a linear layer: weight (4 * out, in) and bias (4 * out,).

    The convolution applies the same linear map to every position. Its four outputs are the pixels (0, 0), (0, 1), (1,
    0), and (1, 1).
    """
    return step.weight.permute(2, 3, 1, 0).flatten(0, 2), cast(Tensor, step.bias).repeat(4)
