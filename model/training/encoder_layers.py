"""Layers of an image encoder in order, for layer-wise learning rates, dropped branches, and recomputation."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast

from torch import nn
from torch.utils.checkpoint import checkpoint

from segmint.model.sam import image_encoder_tinyvit as tinyvit
from segmint.model.sam.image_encoder_vit import ImageEncoderViT, VitBlock


@dataclass(frozen=True)
class EncoderLayer:
    """Block of an image encoder.

    `branches` are the modules whose outputs are added to their inputs. `modules` are the block and the modules that
    belong to it, such as the transition to the next stage.
    """

    block: nn.Module
    branches: tuple[nn.Module, ...]
    modules: tuple[nn.Module, ...]


def encoder_layers(encoder: nn.Module) -> list[EncoderLayer]:
    """Return the blocks of a ViT or of MobileSAM's TinyViT, in order. Raises ValueError for any other encoder."""
    if isinstance(encoder, ImageEncoderViT):
        blocks = [cast(VitBlock, block) for block in encoder.blocks]
        return [EncoderLayer(block, (block.attn, block.mlp), (block,)) for block in blocks]
    if isinstance(encoder, tinyvit.ImageEncoderTinyViT):
        return [layer for stage in encoder.layers for layer in _stage_layers(stage)]
    raise ValueError(f"the image encoder is a {type(encoder).__name__}: expected SAM's ViT or MobileSAM's TinyViT")


def _stage_layers(stage: nn.Module) -> Iterator[EncoderLayer]:
    stage = cast(tinyvit.ConvStage | tinyvit.AttentionStage, stage)
    last = len(stage.blocks) - 1
    for index, block in enumerate(stage.blocks):
        if isinstance(block, tinyvit.MBConv):
            branches: tuple[nn.Module, ...] = (block.conv3,)
        else:
            attending = cast(tinyvit.TinyViTBlock, block)
            branches = (attending.attn, attending.mlp)
        follows = index == last and stage.downsample is not None
        yield EncoderLayer(block, branches, (block, cast(nn.Module, stage.downsample)) if follows else (block,))


@contextmanager
def recomputed_blocks(encoder: nn.Module) -> Iterator[None]:
    """Recompute each block in the backward pass from its stored inputs. This saves memory, but is a third slower.

    Stay in this context, and in the context of `drop_path`, until the backward pass is done. Otherwise, blocks may be
    recomputed differently.
    """
    blocks = [layer.block for layer in encoder_layers(encoder)]
    for block in blocks:
        # An instance attribute hides the method of the class, and it doesn't change the names of weights.
        again = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        block.__dict__["forward"] = again
    try:
        yield
    finally:
        for block in blocks:
            del block.__dict__["forward"]
