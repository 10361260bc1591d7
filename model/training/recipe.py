"""Training recipes: the trained parts, learning rates, duration, and regularization (SAM paper, Appendix A).

docs/decisions/0023-recipes.md explains which values come from the paper, and which ones we chose.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from segmint.model.sam.load import Architecture
from segmint.model.training.settings import LossSettings, SamplingSettings, expect

Part = Literal["image_encoder", "prompt_encoder", "mask_decoder"]

ALL_PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Training recipe of a SAM. Raises ValueError with the key if a value is invalid.

    Attributes:
        parts: parts to train. All other parts are frozen.
        learning_rate: learning rate after the warm-up for the prompt encoder, the decoder, and the image encoder's
            neck.
        steps: number of training steps.
        warmup_steps: number of steps over which the rate increases linearly, or 0 for no warm-up.
        decay_steps: steps from which the rate is divided by ten again, in ascending order.
        batch_images: number of images per step, over all workers.
        masks_per_image: maximum number of masks per image in a step.
        largest_mask: largest fraction of the image that a mask may cover. Larger masks are excluded.
        weight_decay: weight decay of AdamW, which applies only to the weights of linear layers and convolutions.
        layer_decay: factor by which the learning rate shrinks from each block of the image encoder to the previous one.
        drop_path: probability that an image skips a branch of the encoder's last block. It increases linearly from 0 in
            the first block.
        dropout: probability that an output element of the decoder's attention or perceptrons becomes 0.
        losses: settings of the losses.
        sampling: settings for drawing a mask's prompts.
    """

    parts: tuple[Part, ...]
    learning_rate: float
    steps: int
    warmup_steps: int
    decay_steps: tuple[int, ...]
    batch_images: int
    masks_per_image: int = 64
    largest_mask: float = 0.9
    weight_decay: float = 0.1
    layer_decay: float = 1.0
    drop_path: float = 0.0
    dropout: float = 0.1
    losses: LossSettings = field(default_factory=LossSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)

    def __post_init__(self) -> None:
        parts = self.parts
        known = len(set(parts)) == len(parts) > 0 and set(parts) <= set(ALL_PARTS)
        expect("parts", parts, known, "one or more, without duplicates, of " + ", ".join(ALL_PARTS))
        rate = self.learning_rate
        expect("learning_rate", rate, math.isfinite(rate) and rate > 0, "a number over 0")
        for name in ("steps", "batch_images", "masks_per_image"):
            expect(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        expect("warmup_steps", self.warmup_steps, self.warmup_steps >= 0, "0 or more")
        decays = self.decay_steps
        ascending = list(decays) == sorted(set(decays)) and all(step >= 1 for step in decays)
        expect("decay_steps", decays, ascending, "ascending steps from 1")
        expect("largest_mask", self.largest_mask, 0 < self.largest_mask <= 1, "a number over 0, up to 1")
        decay = self.weight_decay
        expect("weight_decay", decay, math.isfinite(decay) and decay >= 0, "a number of 0 or more")
        expect("layer_decay", self.layer_decay, 0 < self.layer_decay <= 1, "a number over 0, up to 1")
        for name in ("drop_path", "dropout"):
            expect(name, getattr(self, name), 0 <= getattr(self, name) < 1, "a number from 0 to below 1")

    def rate_factor(self, step: int) -> float:
        """Return the factor by which to multiply the learning rates in this step. The first step is 0."""
        return rate_factor(step, self.warmup_steps, self.decay_steps)


def rate_factor(step: int, warmup_steps: int, decay_steps: Sequence[int]) -> float:
    """Return the factor for learning rates that rise linearly and are divided by ten at each decay.

    The first step is 0.
    """
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    return warm * 0.1 ** sum(step >= decay for decay in decay_steps)


_VIT_H = Recipe(
    parts=ALL_PARTS,
    learning_rate=8e-4,
    steps=90_000,
    warmup_steps=250,
    decay_steps=(60_000, 86_666),
    batch_images=256,
    layer_decay=0.8,
    drop_path=0.4,
    losses=LossSettings(resolution=1024),
)
_VIT_L = replace(_VIT_H, learning_rate=4e-4, steps=180_000, decay_steps=(120_000, 173_332), batch_images=128)
_VIT_B = replace(_VIT_L, learning_rate=8e-4, layer_decay=0.6, drop_path=0.6)

PAPER: Mapping[Architecture, Recipe] = {"vit_b": _VIT_B, "vit_l": _VIT_L, "vit_h": _VIT_H}
"""Recipes of the paper for training on SA-1B, starting from an encoder pretrained by MAE."""

FINETUNE = Recipe(
    parts=("prompt_encoder", "mask_decoder"),
    learning_rate=2e-4,
    steps=130,
    warmup_steps=13,
    decay_steps=(98,),
    batch_images=2,
    masks_per_image=2,
    weight_decay=0.1,
    layer_decay=0.8,
    drop_path=0.1,
    dropout=0.0,
    losses=LossSettings(iou_supervision="all"),
    sampling=SamplingSettings(clicks=1),
)
"""Recipe for tens or hundreds of images from a new domain, with a frozen image encoder. We chose its values by
experiment."""

MASK_MAKING: Mapping[Architecture, Recipe] = {
    name: replace(
        recipe,
        steps=177_656,
        decay_steps=(118_437, 171_075),
        sampling=SamplingSettings(clicks=3, box_share=0.0),
    )
    for name, recipe in PAPER.items()
}
"""Recipes for the model that made SA-1B (SAM paper, Appendix B). It trained longer, with four points and no boxes.

The paper doesn't state when its learning rate decays. These recipes decay it at the same fractions of the steps as
`PAPER`.
"""

MASK_MAKING_LAYERS, MASK_MAKING_JITTER = 3, (0.1, 2.0)
"""Number of mask decoder layers, and range of scales for large-scale jitter, of the model that made SA-1B."""
