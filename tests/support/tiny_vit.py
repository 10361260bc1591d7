"""A tiny ViT, a SAM with it, and weights of its encoder by the names of MAE's authors."""

from pathlib import Path

import torch
from torch import Tensor

from segmint.model.sam.geometry import SAM1
from segmint.model.sam.image_encoder_vit import ImageEncoderViT, VitShape
from segmint.model.sam.load import Sam
from segmint.model.sam.mask_decoder import SAM1_TRAITS, MaskDecoder, PromptEncoder
from tests.support.random_weights import randomize

# Windows in one block and global attention in the other.
TINY = VitShape(width=32, depth=2, heads=2, global_blocks=(1,))


def tiny_sam() -> Sam:
    """SAM with random weights and a tiny image encoder, for tests of all but the encoder."""
    return randomize(Sam(ImageEncoderViT(TINY), PromptEncoder(SAM1), MaskDecoder(2, SAM1_TRAITS)))


def mae(prefix: str = "") -> dict[str, Tensor]:
    """Weights by MAE's names, for images of 224 x 224 pixels."""
    random = torch.Generator().manual_seed(1)
    sizes = {
        "cls_token": (1, 1, 32),
        "pos_embed": (1, 1 + 14 * 14, 32),
        "patch_embed.proj.weight": (32, 3, 16, 16),
        "patch_embed.proj.bias": (32,),
        "norm.weight": (32,),
    }
    for block in range(2):
        for name, (rows, columns) in {
            "attn.qkv": (96, 32),
            "attn.proj": (32, 32),
            "mlp.fc1": (128, 32),
            "mlp.fc2": (32, 128),
        }.items():
            sizes |= {f"blocks.{block}.{name}.weight": (rows, columns), f"blocks.{block}.{name}.bias": (rows,)}
        for norm in ("norm1", "norm2"):
            sizes |= {f"blocks.{block}.{norm}.weight": (32,), f"blocks.{block}.{norm}.bias": (32,)}
    return {prefix + name: torch.randn(size, generator=random) for name, size in sizes.items()}


def saved(folder: Path, state: object) -> Path:
    torch.save(state, folder / "encoder.pth")
    return folder / "encoder.pth"
