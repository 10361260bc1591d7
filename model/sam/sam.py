"""SAM as a module of image encoder, prompt encoder, and mask decoder."""

import torch
from torch import nn

from segmint.model.sam.geometry import Geometry
from segmint.model.sam.mask_decoder import MaskDecoder
from segmint.model.sam.prompt_encoder import PromptEncoder


class Sam(nn.Module):
    """SAM's three parts under the names that its checkpoints use.

    `image_encoder` maps normalized images (B, 3, 1024, 1024) to embeddings (B, 256, 64, 64); if the model has
    high-resolution features, these follow in a tuple. The image and prompt encoders must have the same geometry.

    Attributes:
        draws_in_bf16: on a CPU, whether the CPU kernels of predictors draw masks with bf16 products. The weights are
            fp32 then.
    """

    def __init__(self, image_encoder: nn.Module, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.draws_in_bf16 = False

    @property
    def geometry(self) -> Geometry:
        """Sizes of the input, the image embedding, and low-resolution masks."""
        return self.prompt_encoder.geometry

    @property
    def high_res_channels(self) -> tuple[int, ...]:
        """Channels of the high-resolution features, (64, 32) in SAM 2; empty if the model has none."""
        channels: tuple[int, ...] = getattr(self.image_encoder, "high_res_channels", ())
        return channels

    @property
    def image_size(self) -> int:
        """Side of the image encoder's square input in pixels."""
        return self.geometry.image_size

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.mask_decoder.iou_token.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point dtype of the decoder's weights; the image encoder may have another."""
        return self.mask_decoder.iou_token.weight.dtype
