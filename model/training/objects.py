"""Detector of one class, "object", for the semi-automatic stage (SAM paper, Section 4), based on Faster R-CNN.

The detector learns from the boxes of masks of any kind. It then proposes objects, which become prompts for the model.
Its norms don't depend on the batch, and its samples of anchors are keyed by (seed, step, image), so it learns the same
with any number of workers. torchvision provides the network and is imported only where it's needed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from segmint.infra.arrays import Pixels
from segmint.model.training.recipe import expect, rate_factor
from segmint.model.training.sampling import draw_keys

Backbone = Literal["resnet50", "mobilenet_v3_large"]

_CLASSES = 2  # background and object
_GROUPS = 8  # divides the number of channels of every layer in both backbones
_ANCHORS = -5  # iteration number for anchor samples, which no other draw uses


class BackboneWeightsError(ValueError):
    """Raised when a file doesn't contain the backbone's weights."""


@dataclass(frozen=True, kw_only=True)
class ObjectsRecipe:
    """Architecture and training settings of the detector. Raises ValueError with the key if a value is invalid.

    Attributes:
        backbone: convolutional network below the feature pyramid.
        short_side: short side of the image in pixels, after it's resized for the detector.
        long_side: maximum long side in pixels. If the resized image exceeds it, the image is shrunk further.
        learning_rate: learning rate of AdamW after the warm-up.
        weight_decay: weight decay of AdamW, which applies only to matrices and convolutions.
        steps: number of training steps.
        warmup_steps: number of steps over which the rate increases linearly, or 0 for no warm-up.
        decay_steps: steps from which the rate is divided by ten again, in ascending order.
        batch_images: number of images per step, over all workers.
    """

    backbone: Backbone = "resnet50"
    short_side: int = 800
    long_side: int = 1333
    learning_rate: float = 1e-4
    weight_decay: float = 0.05
    steps: int = 20_000
    warmup_steps: int = 500
    decay_steps: tuple[int, ...] = (13_000, 18_000)
    batch_images: int = 4

    def __post_init__(self) -> None:
        known = get_args(Backbone)
        expect("backbone", self.backbone, self.backbone in known, "one of " + ", ".join(known))
        expect("short_side", self.short_side, self.short_side >= 64, "64 pixels or more")
        expect("long_side", self.long_side, self.long_side >= self.short_side, "the short side or more")

    def rate_factor(self, step: int) -> float:
        """Return the factor by which to multiply the learning rate in this step. The first step is 0."""
        return rate_factor(step, self.warmup_steps, self.decay_steps)


@dataclass(frozen=True)
class ObjectImage:
    """Training image: `pixels` (H, W, 3) uint8 RGB and the boxes (N, 4) float32 of all its objects.

    Boxes are x0, y0, x1, y1 in pixels, ends exclusive; see `mask_boxes`. `number` is under 2^63 and unique in the
    step's global batch.
    """

    pixels: Pixels
    boxes: Tensor
    number: int


def build_objects_detector(recipe: ObjectsRecipe, backbone_weights: str | Path | None = None) -> nn.Module:
    """Build Faster R-CNN for one class. The backbone starts from scratch or from torchvision's ImageNet weights.

    From scratch, the detector uses group norms. With weights, it uses frozen batch norms. Raises BackboneWeightsError
    if the file contains different weights, and OSError if it can't be read.
    """
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection import backbone_utils as backbones
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.rpn import RPNHead
    from torchvision.ops import FrozenBatchNorm2d
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

    norm = _group_norm if backbone_weights is None else FrozenBatchNorm2d
    if recipe.backbone == "resnet50":
        network = backbones.resnet.resnet50(norm_layer=norm)
    else:
        network = backbones.mobilenet.mobilenet_v3_large(norm_layer=norm)
    if backbone_weights is not None:
        _load_backbone(network, backbone_weights, recipe.backbone)
    if recipe.backbone == "resnet50":
        pyramid = backbones._resnet_fpn_extractor(network, 5, extra_blocks=LastLevelMaxPool())
        sizes: tuple[tuple[int, ...], ...] = ((32,), (64,), (128,), (256,), (512,))
    else:
        pyramid = backbones._mobilenet_extractor(network, True, 6)
        sizes = ((32, 64, 128, 256, 512),) * 3
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    head = RPNHead(pyramid.out_channels, anchors.num_anchors_per_location()[0])
    detector: nn.Module = FasterRCNN(
        pyramid,
        _CLASSES,
        min_size=recipe.short_side,
        max_size=recipe.long_side,
        rpn_anchor_generator=anchors,
        rpn_head=head,
    )
    return detector.eval()


def build_objects_optimizer(detector: nn.Module, recipe: ObjectsRecipe) -> torch.optim.AdamW:
    """Create AdamW for all weights that require gradients. Weight decay applies only to matrices and convolutions."""
    weights = [weight for weight in detector.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    for group in groups:
        group["lr"] = group["initial_lr"] = recipe.learning_rate
    return torch.optim.AdamW(groups)


def objects_step(
    detector: nn.Module, images: Sequence[ObjectImage], seed: int, step: int, total_images: int
) -> dict[str, float]:
    """Add the gradients of a step's losses to the weights' `.grad`, and return the losses by torchvision's names.

    Each loss is a sum over the images, divided by `total_images`, the size of the global batch. To get the losses of
    the batch, add up the losses of all workers. Images are processed one at a time. Raises ValueError if a box is
    invalid or outside the image.
    """
    sums: dict[str, float] = {}
    device = next(detector.parameters()).device
    detector.train()  # torchvision computes losses only in this mode; no norm or dropout depends on it
    try:
        for image in images:
            _check_boxes(image)
            pixels = torch.from_numpy(np.ascontiguousarray(image.pixels)).permute(2, 0, 1).to(device) / 255
            labels = torch.ones(len(image.boxes), dtype=torch.int64, device=device)
            target = {"boxes": image.boxes.to(device), "labels": labels}
            devices = [device] if device.type == "cuda" else []
            with torch.random.fork_rng(devices):
                torch.manual_seed(int(draw_keys(seed, step, [image.number], _ANCHORS)))
                losses = detector([pixels], [target])
            total = torch.stack(list(losses.values())).sum() / total_images
            total.backward()  # type: ignore[no-untyped-call]
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + loss.item() / total_images
    finally:
        detector.eval()
    return sums


class _ExportedDetector(nn.Module):
    """Wrapper with our detectors' interface: a BGR image (3, H, W) uint8 to boxes, labels, scores, and size."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        pixels = image.flip(0).to(torch.float32) / 255
        found = self.detector([pixels])[1][0]
        size = torch.tensor([image.shape[1], image.shape[2]])
        return found["boxes"], found["labels"], found["scores"], size


def export_objects_detector(detector: nn.Module, path: str | Path) -> None:
    """Save the detector as TorchScript, like face and plate detectors; see docs/configuration.md."""
    scripted = torch.jit.script(_ExportedDetector(detector).eval())
    scripted.save(str(path))  # type: ignore[no-untyped-call]


def _group_norm(channels: int, eps: float = 1e-5, **_: Any) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, channels, eps=eps)


def _load_backbone(network: nn.Module, path: str | Path, name: Backbone) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        raise BackboneWeightsError(
            f"{path} is not a PyTorch checkpoint of plain tensors ({type(error).__name__}): expected torchvision's "
            f"weights of {name} for ImageNet"
        ) from error
    problem = _misfit(network, state)
    if problem:
        raise BackboneWeightsError(f"{path}: {problem}: expected torchvision's weights of {name} for ImageNet")
    network.load_state_dict(state, strict=False)


def _misfit(network: nn.Module, state: object) -> str:
    """Describe how a state dict differs from the network's. If they match, return an empty string.

    Counters of batches are ignored.
    """
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        return "it is not a dict of tensors by name"
    wanted = network.state_dict()
    counters = {name for name in state if str(name).endswith(".num_batches_tracked")}
    differing = sorted(set(map(str, state)) - counters ^ set(wanted))
    if differing:
        return f"{len(differing)} weights are missing or unknown, such as {differing[0]}"
    shapes = [name for name, tensor in wanted.items() if tensor.shape != state[name].shape]
    return f"{shapes[0]} is {tuple(state[shapes[0]].shape)}, not {tuple(wanted[shapes[0]].shape)}" if shapes else ""


def _check_boxes(image: ObjectImage) -> None:
    height, width = image.pixels.shape[:2]
    boxes = image.boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"the boxes of image {image.number} have the shape {tuple(boxes.shape)}: expected (N, 4)")
    x0, y0, x1, y1 = boxes.unbind(1)
    fits = (x0 >= 0) & (x0 < x1) & (x1 <= width) & (y0 >= 0) & (y0 < y1) & (y1 <= height)
    if not fits.all():
        wrong = boxes[~fits][0].tolist()
        raise ValueError(
            f"a box of image {image.number} is {wrong}: expected x0 < x1 and y0 < y1 inside its {width} x {height} "
            "pixels"
        )
