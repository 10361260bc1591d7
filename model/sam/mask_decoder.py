"""SAM's mask decoder, which predicts low-resolution masks and their IoU from an image embedding and prompts."""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmint.model.sam.common import EMBEDDING_CHANNELS, LayerNorm2d, Perceptron, learned_tokens
from segmint.model.sam.prompt_encoder import PromptEmbedding
from segmint.model.sam.transformer import TwoWayTransformer

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
