"""Layers of an image encoder in order, and the optimizer with its learning rate for each layer."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segmint.model.sam import image_encoder_tinyvit as tinyvit
from segmint.model.sam.image_encoder_tinyvit import ImageEncoderTinyViT
from segmint.model.sam.image_encoder_vit import ImageEncoderViT, VitBlock
from segmint.model.sam.load import Sam
from segmint.model.training.recipe import ALL_PARTS, Recipe


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


_BETAS = (0.9, 0.999)

_MATRICES = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


@dataclass(frozen=True)
class Schedule:
    """Schedule of learning rates. They depend only on the step, so resuming needs no other state.

    The `initial_lr` of a group is its rate after the warm-up.
    """

    recipe: Recipe

    def set_rates(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Set the rates for a step, before the optimizer takes it, and return their factor. The first step is 0."""
        factor = self.recipe.rate_factor(step)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        return factor


def build_optimizer(sam: Sam, recipe: Recipe) -> tuple[torch.optim.AdamW, Schedule]:
    """Create the optimizer and schedule for the recipe's parts, and disable the gradients of all other weights.

    Call `Schedule.set_rates` before each step. Batch norms are never trained, and neither is the ImageNet classifier in
    MobileSAM's checkpoints. Raises ValueError if the recipe trains an image encoder that is neither a ViT nor TinyViT.
    """
    rates = _rates(sam, recipe)
    for weight in sam.parameters():
        weight.requires_grad_(id(weight) in rates)
    decaying = {id(part.weight) for part in sam.modules() if isinstance(part, _MATRICES)}
    groups: dict[tuple[float, float], list[Tensor]] = defaultdict(list)
    for weight in sam.parameters():
        if weight.requires_grad:
            decay = recipe.weight_decay if id(weight) in decaying else 0.0
            groups[rates[id(weight)], decay].append(weight)
    optimizer = torch.optim.AdamW(
        [
            {"params": weights, "lr": rate, "initial_lr": rate, "weight_decay": decay}
            for (rate, decay), weights in groups.items()
        ],
        betas=_BETAS,
    )
    return optimizer, Schedule(recipe)


def _rates(sam: Sam, recipe: Recipe) -> dict[int, float]:
    """Return the learning rate of each trained weight, by the `id` of the weight."""
    rates = {id(weight): recipe.learning_rate for part in recipe.parts for weight in _part(sam, part).parameters()}
    encoder = sam.image_encoder
    if "image_encoder" in recipe.parts:
        layers = encoder_layers(encoder)
        neck = cast(nn.Module, encoder.neck)
        blocks = {id(weight) for layer in layers for module in layer.modules for weight in module.parameters()}
        ends = {id(weight) for weight in neck.parameters()}
        stem = [weight for weight in encoder.parameters() if id(weight) not in blocks | ends]
        for weight in stem:  # the stem counts as one layer before the first block, as in ViTDet
            rates[id(weight)] = recipe.learning_rate * recipe.layer_decay ** (len(layers) + 1)
        for index, layer in enumerate(layers):
            for module in layer.modules:
                for weight in module.parameters():
                    rates[id(weight)] = recipe.learning_rate * recipe.layer_decay ** (len(layers) - index)
    for module in _never_trained(sam):
        for weight in module.parameters():
            rates.pop(id(weight), None)
    return rates


def _part(sam: Sam, name: str) -> nn.Module:
    assert name in ALL_PARTS
    return cast(nn.Module, getattr(sam, name))


def _never_trained(sam: Sam) -> list[nn.Module]:
    idle = [part for part in sam.modules() if isinstance(part, nn.BatchNorm2d)]
    encoder = sam.image_encoder
    return [*idle, encoder.norm_head, encoder.head] if isinstance(encoder, ImageEncoderTinyViT) else [*idle]
