"""AdamW optimizer for a recipe, with its learning rates and weight decay per weight."""

from collections import defaultdict
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from segmint.model.sam.image_encoder_tinyvit import ImageEncoderTinyViT
from segmint.model.sam.sam import Sam
from segmint.model.training.encoder_layers import encoder_layers
from segmint.model.training.recipe import ALL_PARTS, Recipe

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
