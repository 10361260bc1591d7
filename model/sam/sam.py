"""SAM as a module of image encoder, prompt encoder, and mask decoder."""

import torch
from torch import nn

from segmint.model.sam.geometry import Geometry
from segmint.model.sam.mask_decoder import MaskDecoder
from segmint.model.sam.prompt_encoder import PromptEncoder


class Sam(nn.Module):
    """SAM's three parts, with the same names as in its checkpoints.

    `image_encoder` maps normalized images (B, 3, 1024, 1024) to embeddings (B, 256, 64, 64). If the model has
    high-resolution features, the result is a tuple in which they follow the embeddings. The image encoder and the
    prompt encoder must have the same geometry.
    """

    def __init__(self, image_encoder: nn.Module, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder

    @property
    def geometry(self) -> Geometry:
        """Sizes of the input, the image embedding, and low-resolution masks."""
        return self.prompt_encoder.geometry

    @property
    def high_res_channels(self) -> tuple[int, ...]:
        """Number of channels of the high-resolution features: (64, 32) in SAM 2, and empty if the model has none."""
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
        """Floating-point dtype of the decoder's weights. The image encoder may have a different dtype."""
        return self.mask_decoder.iou_token.weight.dtype
