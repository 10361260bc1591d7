"""Training recipes, their settings, and the initial weights (SAM paper, Appendix A).

Training recipes: the trained parts, learning rates, duration, and regularization (SAM paper, Appendix A).

docs/decisions/0023-recipes.md explains which values come from the paper, and which ones we chose.

Training settings that a run records: the losses of a prediction, and the sampling of a mask's prompts.

docs/decisions/0019-losses-and-sampling.md explains which values come from the SAM paper, and which ones we chose.

Initial weights for the paper's training: a pretrained image encoder, and random weights for all other parts.

The encoder's weights come from MAE (arXiv 2111.06377) or ViTDet (arXiv 2203.16527), in a PyTorch checkpoint in which
tensors have their authors' names. If the checkpoint's positions are for a different grid, they are resized, as in
ViTDet.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from segmint.model.sam.load import Architecture, Sam, SamWeightsError, build_sam, encoder_architecture, read_state

FocalNormalization = Literal["pixels", "foreground"]
IouSupervision = Literal["lowest", "all"]
Resolution = Literal[256, 512, 1024]
BoxNoise = Literal["normal", "uniform"]

PAUSES = 2
"""Number of iterations that don't add a point: one among the clicks, and one at the end (SAM paper, Appendix A)."""


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Settings of the losses. Raises ValueError with the key if a value is invalid.

    Attributes:
        focal_weight: weight of the focal loss (SAM paper: focal to dice 20:1).
        dice_weight: weight of the dice loss.
        iou_weight: weight of the squared error of the predicted IoU (SAM paper: 1).
        focal_alpha: weight of foreground pixels in the focal loss. Background pixels have the weight 1 - alpha. With
            None, pixels aren't weighted.
        focal_gamma: exponent that discounts well-predicted pixels. It must be 0 or at least 1, because between 0 and 1,
            the gradient of a saturated pixel isn't finite.
        focal_normalization: divisor of a mask's summed focal loss: the number of all pixels ("pixels") or of the
            target's pixels ("foreground").
        iou_supervision: predicted IoUs that contribute to the loss: only the IoU of the mask with the lowest loss
            ("lowest"), or the IoUs of all three masks ("all").
        resolution: side of the square in which losses, IoU, and clicks are computed: 256, 512, or 1024. For a larger
            square than 256, the decoder's 256 x 256 logits are interpolated.
    """

    focal_weight: float = 20.0
    dice_weight: float = 1.0
    iou_weight: float = 1.0
    focal_alpha: float | None = 0.25
    focal_gamma: float = 2.0
    focal_normalization: FocalNormalization = "pixels"
    iou_supervision: IouSupervision = "lowest"
    resolution: Resolution = 256

    def __post_init__(self) -> None:
        for name in ("focal_weight", "dice_weight", "iou_weight"):
            value = getattr(self, name)
            expect(name, value, math.isfinite(value) and value >= 0, "a number of 0 or more")
        alpha, gamma = self.focal_alpha, self.focal_gamma
        expect("focal_gamma", gamma, gamma == 0 or (math.isfinite(gamma) and gamma >= 1), "0, or 1 or more")
        expect("focal_alpha", alpha, alpha is None or 0 <= alpha <= 1, "a number from 0 to 1, or None")
        for name, kind in (
            ("focal_normalization", FocalNormalization),
            ("iou_supervision", IouSupervision),
            ("resolution", Resolution),
        ):
            value, known = getattr(self, name), get_args(kind)
            expect(name, value, value in known, "one of " + ", ".join(map(repr, known)))


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """Settings for drawing a mask's prompts (SAM paper, Appendix A). Raises ValueError like `LossSettings`.

    Attributes:
        clicks: number of points to draw in the error region, one per iteration.
        box_share: fraction of masks whose first prompt is a box. For all others, it's a point.
        box_noise: size of the noise on a box's coordinates, as a fraction of the box's side.
        box_noise_limit: maximum distance by which noise moves a coordinate, in pixels of the 1024 x 1024 input.
        box_noise_kind: "normal" or "uniform". With "normal", `box_noise` is the standard deviation, and the limit cuts
            off larger noise. With "uniform", the noise is uniform up to `box_noise` of the side or up to the limit,
            whichever is smaller.
    """

    clicks: int = 8
    box_share: float = 0.5
    box_noise: float = 0.1
    box_noise_limit: float = 20.0
    box_noise_kind: BoxNoise = "normal"

    def __post_init__(self) -> None:
        expect("clicks", self.clicks, self.clicks >= 1, "1 or more")
        expect("box_share", self.box_share, 0 <= self.box_share <= 1, "a number from 0 to 1")
        for name in ("box_noise", "box_noise_limit"):
            value = getattr(self, name)
            expect(name, value, math.isfinite(value) and value >= 0, "a number of 0 or more")
        kind = self.box_noise_kind
        expect("box_noise_kind", kind, kind in get_args(BoxNoise), "normal or uniform")

    @property
    def iterations(self) -> int:
        """Number of predictions per mask and step: the first prompt, one per click, and two without a new point."""
        return 1 + self.clicks + PAUSES


def expect(name: str, value: object, holds: bool, expected: str) -> None:
    """Raise ValueError with the key and its value unless `holds` is true."""
    if not holds:
        raise ValueError(f"{name} is {value!r}: expected {expected}")


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


_PREFIXES = ("module.", "model.", "backbone.net.", "backbone.", "encoder.")
_RENAMED = {".mlp.fc1.": ".mlp.lin1.", ".mlp.fc2.": ".mlp.lin2."}
_OWN = ("patch_embed.", "blocks.", "pos_embed")


def inspect_encoder(path: str | Path) -> Architecture:
    """Detect the architecture in a file of encoder weights. Raises the same errors as `load_sam`."""
    return encoder_architecture(dict(_renamed(read_state(path, "meta"))))


def sam_with_encoder(path: str | Path, decoder_layers: int, seed: int) -> Sam:
    """Create a SAM with the encoder weights from a file. All other weights are drawn at random from the seed.

    Raises SamWeightsError if weights of the encoder are missing, have different shapes, or belong to a different kind
    of ViT. Also raises the same errors as `load_sam`.
    """
    found = dict(_renamed(read_state(path, "cpu")))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sam = build_sam(encoder_architecture(found), decoder_layers)
    expected = sam.image_encoder.state_dict()
    for name in sorted(found.keys() - {f"image_encoder.{each}" for each in expected}):
        raise SamWeightsError(f"{path} has {name.removeprefix('image_encoder.')}, which SAM's encoder lacks")
    state = {}
    for name, weight in expected.items():
        given = found.get(f"image_encoder.{name}")
        if given is None:
            if not name.startswith("neck.") and ".rel_pos_" not in name:
                raise SamWeightsError(f"{path} lacks the encoder's {name}: expected weights of MAE or ViTDet")
            continue
        state[name] = resized(name, given.to(torch.float32), weight)
        if state[name].shape != weight.shape:
            raise SamWeightsError(f"{path}: {name} is {tuple(given.shape)}, but the encoder's is {tuple(weight.shape)}")
    sam.image_encoder.load_state_dict(expected | state)
    return sam


def resized(name: str, given: Tensor, weight: Tensor) -> Tensor:
    """Resize a position embedding to the shape of `weight`. Other weights stay unchanged.

    Absolute positions are interpolated bicubically, and relative positions are interpolated linearly. MAE's absolute
    positions are (1, 1 + side², C). The first position belongs to the class token and is dropped.
    """
    if name == "pos_embed" and given.ndim == 3:
        side = math.isqrt(given.shape[1])
        given = given[:, given.shape[1] - side**2 :].reshape(1, side, side, given.shape[2])
    if given.shape == weight.shape:
        return given
    if name == "pos_embed":
        grid = F.interpolate(given.permute(0, 3, 1, 2), weight.shape[1:3], mode="bicubic", align_corners=False)
        return grid.permute(0, 2, 3, 1).contiguous()
    if ".rel_pos_" in name:
        return F.interpolate(given.T[None], weight.shape[0], mode="linear")[0].T.contiguous()
    return given


def _renamed(state: object) -> Iterator[tuple[str, Tensor]]:
    """Yield the encoder's tensors with SAM's names, without extra parts such as MAE's class token and last norm."""
    if isinstance(state, Mapping) and isinstance(state.get("model"), Mapping):
        state = state["model"]
    for name, tensor in state.items() if isinstance(state, Mapping) else ():
        for prefix in _PREFIXES:
            name = str(name).removeprefix(prefix)
        for theirs, ours in _RENAMED.items():
            name = name.replace(theirs, ours)
        if isinstance(tensor, Tensor) and name.startswith(_OWN):
            yield f"image_encoder.{name}", tensor
