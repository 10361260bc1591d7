"""SAM's mask decoder, which predicts low-resolution masks and their IoU from an image embedding and prompts."""

from typing import cast

import torch
from torch import Tensor, nn

from segmint.model.sam.common import EMBEDDING_CHANNELS, LayerNorm2d, Perceptron, learned_tokens
from segmint.model.sam.prompt_encoder import PromptEmbedding
from segmint.model.sam.transformer import TwoWayTransformer

MASK_TOKENS = 4
"""Number of mask tokens: one for unambiguous prompts, and three for whole, part, and subpart."""


class MaskDecoder(nn.Module):
    """Mask decoder with `depth` two-way blocks: 2 in the published weights, 3 in the model that made SA-1B."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        width = EMBEDDING_CHANNELS
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

    @property
    def own_tokens(self) -> Tensor:
        """Learned tokens (5, 256) that precede those of a prompt: one for predicted IoU, and one per mask."""
        return torch.cat([self.iou_token.weight, self.mask_tokens.weight])

    @property
    def hypernetworks(self) -> list[Perceptron]:
        """Perceptrons that turn mask tokens into mask filters, (B, 256) to (B, 32), one per token."""
        return [cast(Perceptron, mlp) for mlp in self.output_hypernetworks_mlps]

    @property
    def upscaling_steps(self) -> tuple[nn.ConvTranspose2d, LayerNorm2d, nn.ConvTranspose2d]:
        """Layers with weights that upscale the image embedding; a GELU follows the second and the third."""
        first, norm, _, second, _ = self.output_upscaling
        return cast(nn.ConvTranspose2d, first), cast(LayerNorm2d, norm), cast(nn.ConvTranspose2d, second)

    def forward(
        self, features: Tensor, positions: Tensor, prompt: PromptEmbedding, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        """Return mask logits (B, C, 256, 256) and predicted IoUs (B, C), where C is 3 with `multimask`, otherwise 1.

        `features` (1, 256, 64, 64) is the image embedding, and `positions` (1, 256, 64, 64) its positional encoding.
        """
        return self.decode(features, positions, prompt, range(1, MASK_TOKENS) if multimask else range(1))

    def decode(
        self, features: Tensor, positions: Tensor, prompt: PromptEmbedding, chosen: range
    ) -> tuple[Tensor, Tensor]:
        """Run `forward` for the C mask tokens `chosen`: logits (B, C, 256, 256) and predicted IoUs (B, C)."""
        prompts, grid = prompt.sparse.shape[0], features.shape[-2:]
        tokens = torch.cat([self.own_tokens.expand(prompts, -1, -1), prompt.sparse], dim=1)
        image = features + prompt.dense

        tokens, image = self.transformer(image.flatten(2).transpose(1, 2), positions.flatten(2).transpose(1, 2), tokens)

        ious = self.iou_prediction_head(tokens[:, 0])[:, chosen.start : chosen.stop]
        filters = torch.stack([self.hypernetworks[index](tokens[:, 1 + index]) for index in chosen], dim=1)
        upscaled = self.output_upscaling(image.transpose(1, 2).unflatten(2, grid))
        logits = (filters @ upscaled.flatten(2)).unflatten(2, upscaled.shape[-2:])
        return logits, ious
