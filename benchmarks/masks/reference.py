"""Models of the reference package, for comparison in benchmarks and tests.

This module only needs torch and `segment_anything`, so `benchmarks/gpu/day.py` can use it on machines without a
network.
"""

from functools import partial
from typing import TYPE_CHECKING

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling import Sam as ReferenceSam

if TYPE_CHECKING:
    from segmint.model.sam.image_encoder_vit import VitShape
    from segmint.model.sam.load import Sam

IMAGE_SIDE = 1024


class _Encoder(torch.nn.Module):
    """Our image encoder with the attribute that the reference code needs."""

    def __init__(self, encoder: torch.nn.Module, side: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.img_size = side

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        encoded: torch.Tensor = self.encoder(image)
        return encoded


def reference_sam(sam: "Sam") -> ReferenceSam:
    """Create the reference's SAM in evaluation mode on our model's device, with our image encoder and weights.

    The package lacks TinyViT, so it must use our encoder for MobileSAM. The encoder is shared, not copied.
    """
    side, grid = sam.geometry.image_size, sam.geometry.embedding_size
    reference = ReferenceSam(
        image_encoder=_Encoder(sam.image_encoder, side),
        prompt_encoder=PromptEncoder(
            embed_dim=256,
            image_embedding_size=(grid, grid),
            input_image_size=(side, side),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
            transformer_dim=256,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        ),
    )
    reference.prompt_encoder.load_state_dict(sam.prompt_encoder.state_dict(), strict=True)
    reference.mask_decoder.load_state_dict(sam.mask_decoder.state_dict(), strict=True)
    return reference.to(sam.device).eval()


def reference_mobile_sam(weights: str) -> ReferenceSam:
    """Create the reference's SAM with MobileSAM's weights, as `sam_model_registry` does for its own models."""
    from segmint.infra.assets import resolve
    from segmint.model.sam.load import load_sam

    return reference_sam(load_sam(resolve(weights), device="cpu"))


def reference_vit(shape: "VitShape", image_side: int = IMAGE_SIDE) -> ImageEncoderViT:
    """Create the reference's ViT encoder with our shape in evaluation mode. It keeps its initial random weights.

    `image_side` is the side of its square input in pixels. Inside `torch.device("meta")`, the encoder has no weights.
    """
    return ImageEncoderViT(
        img_size=image_side,
        embed_dim=shape.width,
        depth=shape.depth,
        num_heads=shape.heads,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=shape.global_blocks,
    ).eval()
