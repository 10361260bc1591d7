"""SAM's prompt encoder and mask decoder, with the transformer between prompts and image.

Two-way transformer of SAM's mask decoder, in which tokens attend to the image and the image attends to tokens.

There are T tokens of 256 channels. They come from the decoder (predicted IoU, masks) and from the prompt. The image has
P = 4096 positions. If all B prompts share one image, it has a batch size of 1 and broadcasts.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmint.model.sam.common import (
    EMBEDDING_CHANNELS,
    LayerNorm2d,
    Linear,
    Mlp,
    Perceptron,
    join_heads,
    learned_tokens,
    random_normal,
    split_heads,
)
from segmint.model.sam.geometry import SAM1, Geometry
from segmint.model.sam.image_encoder_vit import attend


class TwoWayTransformer(nn.Module):
    """Stack of `depth` two-way blocks, followed by an attention from the tokens to the image."""

    def __init__(self, depth: int, width: int = 256, heads: int = 8, hidden: int = 2048) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(width, heads, hidden, first=index == 0) for index in range(depth))
        self.final_attn_token_to_image = Attention(width, width // 2, heads)
        self.norm_final_attn = nn.LayerNorm(width)

    @property
    def blocks(self) -> list["TwoWayBlock"]:
        """Two-way blocks, from first to last."""
        return [cast(TwoWayBlock, layer) for layer in self.layers]

    def forward(self, image: Tensor, image_positions: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Let the tokens (B, T, 256) and the image (B, P, 256) attend to each other, and return both.

        `image` may also be (1, P, 256). `image_positions` (1, P, 256) is added to the image's queries and keys. In the
        same way, the input tokens are added to the queries and keys of the tokens.
        """
        token_positions = tokens
        for block in self.blocks:
            tokens, image = block(tokens, image, token_positions, image_positions)
        attended = self.final_attn_token_to_image(tokens + token_positions, image + image_positions, image)
        tokens = self.norm_final_attn(tokens + attended)
        return tokens, image


class TwoWayBlock(nn.Module):
    """Block of four steps: tokens to tokens, tokens to image, a perceptron on the tokens, and image to tokens.

    All steps but the perceptron are attentions. The output of each step is added to its input and then normalized. The
    first block is different: its self-attention uses the tokens without positions, and the output replaces the tokens.
    """

    def __init__(self, width: int, heads: int, hidden: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(width, width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = Attention(width, width // 2, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, hidden, relu=True)
        self.norm3 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = Attention(width, width // 2, heads)
        self.norm4 = nn.LayerNorm(width)

    def forward(
        self, tokens: Tensor, image: Tensor, token_positions: Tensor, image_positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run one block on the tokens (B, T, 256) and the image (B, P, 256), and return both."""
        tokens = self.attend_among_tokens(tokens, token_positions)
        placed_image = image + image_positions
        attended = self.cross_attn_token_to_image(tokens + token_positions, placed_image, image)
        tokens = self.refine_tokens(tokens, attended)
        image = image + self.cross_attn_image_to_token(placed_image, tokens + token_positions, tokens)
        image = self.norm4(image)
        return tokens, image

    def attend_among_tokens(self, tokens: Tensor, token_positions: Tensor) -> Tensor:
        """Run the first step, in which the tokens (B, T, 256) attend to each other."""
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + token_positions
            tokens = tokens + self.self_attn(placed, placed, tokens)
        normalized: Tensor = self.norm1(tokens)
        return normalized

    def refine_tokens(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """Run the second and third steps, given the tokens and their attention to the image, both (B, T, 256)."""
        tokens = self.norm2(tokens + attended)
        refined: Tensor = self.norm3(tokens + self.mlp(tokens))
        return refined


class Attention(nn.Module):
    """Multi-head attention with `inner` channels over all heads."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_width = inner // heads
        self.q_proj = Linear(width, inner)
        self.k_proj = Linear(width, inner)
        self.v_proj = Linear(width, inner)
        self.out_proj = Linear(inner, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from q (B, Q, width) to k and v (B, K, width), and return (B, Q, width).

        The batch size of q, or of k and v, may be 1.
        """
        batch = q.shape[0] if k.shape[0] == 1 else k.shape[0]
        q, k, v = (
            split_heads(projected, self.heads).expand(batch, -1, -1, -1)
            for projected in (self.q_proj(q), self.k_proj(k), self.v_proj(v))
        )
        out: Tensor = self.out_proj(join_heads(attend(q, k, v)))
        return out


@dataclass(frozen=True)
class PromptEmbedding:
    """Embeddings of B prompts.

    `sparse` (B, T, 256) contains one token for each point and for each corner of a box. T is 0 if the prompts contain
    only masks. `dense` (B, 256, 64, 64) is added to the image embedding. Without masks, all prompts share one `dense`,
    (1, 256, 64, 64).
    """

    sparse: Tensor
    dense: Tensor


class PromptEncoder(nn.Module):
    """Encoder of prompts. Coordinates are in pixels of the image encoder's square input.

    Attributes:
        geometry: geometry of the image encoder.
        pads_boxes: True if a padding token ("not a point") also follows prompts with a box, as SAM 2's weights expect.
    """

    def __init__(self, geometry: Geometry = SAM1, pads_boxes: bool = False) -> None:
        super().__init__()
        self.geometry = geometry
        self.pads_boxes = pads_boxes
        self.pe_layer = PositionalEncoding(EMBEDDING_CHANNELS)
        # In the checkpoint's order: background point, foreground point, first and second corner of a box.
        self.point_embeddings = nn.ModuleList(learned_tokens(1, EMBEDDING_CHANNELS) for _ in range(4))
        self.not_a_point_embed = learned_tokens(1, EMBEDDING_CHANNELS)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, 4, kernel_size=2, stride=2),
            LayerNorm2d(4),
            nn.GELU(),
            nn.Conv2d(4, 16, kernel_size=2, stride=2),
            LayerNorm2d(16),
            nn.GELU(),
            nn.Conv2d(16, EMBEDDING_CHANNELS, kernel_size=1),
        )
        self.no_mask_embed = learned_tokens(1, EMBEDDING_CHANNELS)

    def forward(
        self, points: Tensor | None, labels: Tensor | None, boxes: Tensor | None, masks: Tensor | None
    ) -> PromptEmbedding:
        """Embed B prompts. At least one argument is required.

        `points` (B, N, 2) as (x, y) need `labels` (B, N): 1 for foreground, 0 for background, -1 for padding (not a
        point). `boxes` (B, 4) are (x0, y0, x1, y1). `masks` (B, 1, 256, 256) are logits. Raises ValueError if
        there is no prompt.
        """
        sparse = self.embed_sparse(points, labels, boxes, masks)
        return PromptEmbedding(sparse, self.dense_without_mask() if masks is None else self.mask_downscaling(masks))

    def embed_sparse(
        self, points: Tensor | None, labels: Tensor | None, boxes: Tensor | None, masks: Tensor | None
    ) -> Tensor:
        """Embed B prompts as tokens (B, T, 256). The arguments and errors are the same as for `forward`."""
        tokens = []
        if points is not None and labels is not None:
            tokens.append(self._embed_points(points, labels))
            if boxes is None:
                # For points without a box, the weights expect another token that means "not a point".
                tokens.append(self.not_a_point_embed.weight.expand(points.shape[0], 1, -1))
        if boxes is not None:
            tokens.append(self._encode(boxes.reshape(-1, 2, 2)) + self._kinds()[2:])
            if self.pads_boxes:
                tokens.append(self.not_a_point_embed.weight.expand(boxes.shape[0], 1, -1))
        if masks is not None:
            tokens.append(self.no_mask_embed.weight.new_zeros(len(masks), 0, EMBEDDING_CHANNELS))
        if not tokens:
            raise ValueError("no prompt: expected points with labels, boxes, or masks")
        return torch.cat(tokens, dim=1)

    def mask_vectors(self) -> Tensor:
        """Return 17 vectors (17, 256) that can express the dense embedding of any mask.

        Add a weighted sum of these vectors to the dense embedding without a mask. `mask_coefficients` returns the
        weights.
        """
        last = cast(nn.Conv2d, self.mask_downscaling[-1])
        bias = cast(Tensor, last.bias)
        return torch.cat([last.weight.flatten(1).T, bias[None] - self.no_mask_embed.weight])

    def mask_coefficients(self, masks: Tensor | None) -> Tensor:
        """Return the weights (B, 17, P) of `mask_vectors` for masks (B, 1, 256, 256).

        If `masks` is None, return zeros (1, 17, P).
        """
        if masks is None:
            return self.no_mask_embed.weight.new_zeros(1, 17, self.geometry.embedding_size**2)
        downscaled = self.mask_downscaling[:-1](masks).flatten(2)
        return torch.cat([downscaled, torch.ones_like(downscaled[:, :1])], dim=1)

    def dense_without_mask(self) -> Tensor:
        """Return the dense embedding of prompts without a mask, (1, 256, 64, 64)."""
        side = self.geometry.embedding_size
        return self.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(1, -1, side, side)

    def dense_positions(self) -> Tensor:
        """Return the positional encoding of the image embedding, (1, 256, 64, 64), in the weights' dtype."""
        side = self.geometry.embedding_size
        centers = (torch.arange(side, device=self.no_mask_embed.weight.device) + 0.5) / side
        y, x = torch.meshgrid(centers, centers, indexing="ij")
        encoding = self.pe_layer(torch.stack([x, y], dim=-1))
        positions: Tensor = encoding.permute(2, 0, 1)[None].to(self.no_mask_embed.weight.dtype)
        return positions

    def embed_labeled(self, points: Tensor, labels: Tensor) -> Tensor:
        """Embed points and box corners from one list as tokens (B, N, 256), without adding a padding token.

        `points` (B, N, 2) are (x, y). `labels` (B, N) are 1 for foreground, 0 for background, 2 for the top left corner
        of a box, 3 for its bottom right corner, and -1 for padding. ONNX exports of SAM use this format.
        """
        known = self._encode(points) + self._kinds()[labels.clamp(0, 3).long()]
        return torch.where(labels[..., None] == -1, self.not_a_point_embed.weight, known)

    def _embed_points(self, points: Tensor, labels: Tensor) -> Tensor:
        """Embed points (B, N, 2) with labels (B, N) as (B, N, 256)."""
        background, foreground = self._kinds()[:2]
        kind = torch.where(labels[..., None] == 1, foreground, background)
        known = self._encode(points) + kind
        return torch.where(labels[..., None] == -1, self.not_a_point_embed.weight, known)

    def _kinds(self) -> Tensor:
        """Return the learned embeddings (4, 256): background point, foreground point, and a box's two corners."""
        return torch.cat(list(self.point_embeddings.parameters()))

    def _encode(self, coordinates: Tensor) -> Tensor:
        """Encode pixels (B, N, 2) at their centers as (B, N, 256), in the weights' dtype."""
        encoding: Tensor = self.pe_layer((coordinates + 0.5) / self.geometry.image_size)
        return encoding.to(self.no_mask_embed.weight.dtype)


class PositionalEncoding(nn.Module):
    """Random Fourier features of positions (arXiv 2006.10739), always in float32.

    The frequencies are never cast to another dtype, because high frequencies in half precision would move a point.
    """

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", random_normal(2, channels // 2))

    def forward(self, positions: Tensor) -> Tensor:
        """Encode positions (..., 2) as (x, y), from 0 to 1 across the image, and return (..., channels) float32."""
        x, y = (2 * positions - 1).to(torch.float32).unsqueeze(-2).unbind(-1)
        frequencies = self.positional_encoding_gaussian_matrix
        # Don't use a matrix product, which autocast and TF32 would round.
        angles = 2 * math.pi * (x * frequencies[0] + y * frequencies[1])
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Apply `fn`, which moves or casts the model. The frequencies move to another device, but keep their dtype."""
        before = self.positional_encoding_gaussian_matrix
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        after = self.positional_encoding_gaussian_matrix
        if after.dtype != torch.float32:
            self.positional_encoding_gaussian_matrix = before.to(after.device, torch.float32)
        return self


MASK_TOKENS = 4
"""Number of mask tokens: one for unambiguous prompts, and three for the whole, the part, and the subpart."""


@dataclass(frozen=True)
class DecoderTraits:
    """Differences between the mask decoders of SAM and SAM 2.

    Attributes:
        scores_objects: True if the decoder has a token that scores whether the object is present.
        bounds_iou: True if a sigmoid limits the predicted IoU to 0 to 1.
        single_mask_stability: minimum stability of the mask for unambiguous prompts. If the mask is less stable, the
            best of the other three replaces it. 0 turns this off.
        stability_delta: distance from 0, in logits, of the two thresholds for this stability.
    """

    scores_objects: bool
    bounds_iou: bool
    single_mask_stability: float
    stability_delta: float


SAM1_TRAITS = DecoderTraits(False, False, 0.0, 0.0)
SAM2_TRAITS = DecoderTraits(True, True, 0.98, 0.05)


class MaskDecoder(nn.Module):
    """Mask decoder with `depth` two-way blocks: 2 in the published weights, 3 in the model that made SA-1B.

    SAM 2 provides high-resolution features, (1, 64, 128, 128) and (1, 32, 256, 256). The decoder adds each of them to
    the output of an upscaling step.
    """

    def __init__(self, depth: int = 2, traits: DecoderTraits = SAM1_TRAITS) -> None:
        super().__init__()
        width = EMBEDDING_CHANNELS
        self.traits = traits
        self.transformer = TwoWayTransformer(depth, width)
        self.iou_token = learned_tokens(1, width)
        self.mask_tokens = learned_tokens(MASK_TOKENS, width)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(width, width // 4, kernel_size=2, stride=2),
            LayerNorm2d(width // 4),
            nn.GELU(),
            nn.ConvTranspose2d(width // 4, width // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(Perceptron(width, width, width // 8) for _ in range(MASK_TOKENS))
        self.iou_prediction_head = Perceptron(width, width, MASK_TOKENS)
        if traits.scores_objects:
            self.obj_score_token = learned_tokens(1, width)
            self.pred_obj_score_head = Perceptron(width, width, 1)  # the score is only for videos

    @property
    def own_tokens(self) -> Tensor:
        """Learned tokens (5, 256) that come before a prompt's tokens: one for the predicted IoU, and one per mask.

        If the decoder scores objects, a sixth token follows. The order of the tokens doesn't affect the attention.
        """
        tokens = [self.iou_token.weight, self.mask_tokens.weight]
        return torch.cat([*tokens, self.obj_score_token.weight] if self.traits.scores_objects else tokens)

    @property
    def hypernetworks(self) -> list[Perceptron]:
        """Perceptrons that turn mask tokens (B, 256) into mask filters (B, 32). Each mask token has its own."""
        return [cast(Perceptron, mlp) for mlp in self.output_hypernetworks_mlps]

    @property
    def upscaling_steps(self) -> tuple[nn.ConvTranspose2d, LayerNorm2d, nn.ConvTranspose2d]:
        """Layers with weights that upscale the image embedding. A GELU follows the second and the third layer."""
        first, norm, _, second, _ = self.output_upscaling
        return cast(nn.ConvTranspose2d, first), cast(LayerNorm2d, norm), cast(nn.ConvTranspose2d, second)

    def predicted_ious(self, token: Tensor) -> Tensor:
        """Predict the IoU of each mask (B, 4) from the output token (B, 256)."""
        ious: Tensor = self.iou_prediction_head(token)
        return ious.sigmoid() if self.traits.bounds_iou else ious

    def forward(
        self,
        features: Tensor,
        positions: Tensor,
        prompt: PromptEmbedding,
        multimask: bool,
        high_res: tuple[Tensor, ...] = (),
    ) -> tuple[Tensor, Tensor]:
        """Return mask logits (B, C, 256, 256) and predicted IoUs (B, C). C is 3 with `multimask`, and 1 without it.

        `features` (1, 256, 64, 64) is the image embedding, and `positions` (1, 256, 64, 64) is its positional encoding.
        `high_res` contains the image's high-resolution features if the model has any.
        """
        chosen = range(1, MASK_TOKENS) if multimask else range(1)
        return self.decode(features, positions, prompt, chosen, high_res)

    def decode(
        self,
        features: Tensor,
        positions: Tensor,
        prompt: PromptEmbedding,
        chosen: range,
        high_res: tuple[Tensor, ...] = (),
    ) -> tuple[Tensor, Tensor]:
        """Run `forward` for the C `chosen` mask tokens: logits (B, C, 256, 256) and predicted IoUs (B, C)."""
        grid = features.shape[-2:]
        tokens, image = self.attend(features, positions, prompt)
        ious = self.predicted_ious(tokens[:, 0])[:, chosen.start : chosen.stop]
        filters = torch.stack([self.hypernetworks[index](tokens[:, 1 + index]) for index in chosen], dim=1)
        upscaled = self.upscale(torch.unflatten(image.transpose(1, 2), 2, grid), high_res)
        logits = torch.unflatten(filters @ upscaled.flatten(2), 2, upscaled.shape[-2:])
        return logits, ious

    def attend(self, features: Tensor, positions: Tensor, prompt: PromptEmbedding) -> tuple[Tensor, Tensor]:
        """Run the transformer, and return the output tokens (B, T, 256), own tokens first, and the images (B, 4096,
        256)."""
        tokens = torch.cat([self.own_tokens.expand(prompt.sparse.shape[0], -1, -1), prompt.sparse], dim=1)
        image = (features + prompt.dense).flatten(2).transpose(1, 2)
        attended: tuple[Tensor, Tensor] = self.transformer(image, positions.flatten(2).transpose(1, 2), tokens)
        return attended

    def upscale(self, image: Tensor, high_res: tuple[Tensor, ...]) -> Tensor:
        """Upscale images (B, 256, 64, 64) to (B, 32, 256, 256)."""
        if not high_res:
            upscaled: Tensor = self.output_upscaling(image)
            return upscaled
        first, norm, second = self.upscaling_steps
        finer, finest = high_res
        return F.gelu(second(F.gelu(norm(first(image) + finer))) + finest)

    def with_stable_single_mask(self, logits: Tensor, ious: Tensor) -> tuple[Tensor, Tensor]:
        """Replace the first mask of each prompt if it's unstable. Logits are (B, 4, 256, 256), and IoUs are (B, 4).

        The best of the other three masks replaces it; see `DecoderTraits.single_mask_stability` (reference code of SAM
        2). An empty mask counts as stable.
        """
        if not self.traits.single_mask_stability:
            return logits, ious
        single = logits[:, 0].flatten(1)
        inner = (single > self.traits.stability_delta).sum(dim=1)
        outer = (single > -self.traits.stability_delta).sum(dim=1)
        stability = torch.where(outer > 0, inner.float() / outer.float(), 1.0)
        best = torch.where(stability >= self.traits.single_mask_stability, 0, 1 + ious[:, 1:].argmax(dim=1))
        prompts = torch.arange(len(logits), device=logits.device)
        replaced = torch.cat([logits[prompts, best][:, None], logits[:, 1:]], dim=1)
        return replaced, torch.cat([ious[prompts, best][:, None], ious[:, 1:]], dim=1)
