"""SAM's prompt encoder, which embeds points, boxes, and masks in any combination for the mask decoder."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor, nn

from segmint.model.sam.common import EMBEDDING_CHANNELS, LayerNorm2d, learned_tokens, random_normal
from segmint.model.sam.geometry import SAM1, Geometry


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
