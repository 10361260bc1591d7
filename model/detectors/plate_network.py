"""Plate network in torch: RetinaFace (Deng et al. 2019, arXiv 1905.00641) on a MobileNet of quarter width.

This is the network of the ONNX file `clp`, with the weights from that file, for devices that our onnxruntime doesn't
support.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmint.infra.arrays import Floats32, Pixels
from segmint.model.detectors.plates import MEAN_BGR

_SLOPE = 0.1
_WIDTH = 64  # number of channels per level of the pyramid

# Depthwise blocks (input channels, output channels, stride) up to each level. The levels have strides of 8, 16, and 32
# pixels.
_BODY = (
    ((8, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)),
    ((64, 128, 2), *((128, 128, 1),) * 5),
    ((128, 256, 2), (256, 256, 1)),
)
_HEADS = {"BboxHead": 4, "ClassHead": 2, "LandmarkHead": 8}  # values per anchor; each position has two anchors
_ANCHORS = 2

# The file numbers its convolutions 592, 595, 598, and so on, in the order of computation. This number is the name of
# the weights, and the next number is the name of the biases. Only the convolutions of the heads have real names.
_FIRST_NUMBER, _STEP = 592, 3


def _conv(inside: int, outside: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, stride, padding=1)


class _Context(nn.Module):
    """Context module of one level, which maps (B, 64, h, w) to the same shape with windows of 3, 5, and 7 positions."""

    def __init__(self) -> None:
        super().__init__()
        half, quarter = _WIDTH // 2, _WIDTH // 4
        self.three, self.shared = _conv(_WIDTH, half), _conv(_WIDTH, quarter)
        self.five, self.middle, self.seven = (_conv(quarter, quarter) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        shared = F.leaky_relu(self.shared(x), _SLOPE)
        wide = self.seven(F.leaky_relu(self.middle(shared), _SLOPE))
        return F.relu(torch.cat([self.three(x), self.five(shared), wide], dim=1))


class PlateNetwork(nn.Module):
    """Network from BGR minus its mean, (B, 3, H, W) float32, to loc (B, N, 4), conf (B, N, 2), and landms (B, N, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = _conv(3, 8, 2)
        self.body = nn.ModuleList(
            nn.ModuleList(
                layer
                for inside, outside, stride in blocks
                for layer in (
                    nn.Conv2d(inside, inside, 3, stride, padding=1, groups=inside),
                    nn.Conv2d(inside, outside, 1),
                )
            )
            for blocks in _BODY
        )
        self.lateral = nn.ModuleList(nn.Conv2d(blocks[-1][1], _WIDTH, 1) for blocks in _BODY)
        self.merge = nn.ModuleList(_conv(_WIDTH, _WIDTH) for _ in _BODY[1:])  # for the second level, then for the first
        self.context = nn.ModuleList(_Context() for _ in _BODY)
        self.heads = nn.ModuleDict(
            {name: nn.ModuleList(nn.Conv2d(_WIDTH, _ANCHORS * size, 1) for _ in _BODY) for name, size in _HEADS.items()}
        )

    def load(self, weights: Mapping[str, Floats32]) -> None:
        """Load the weights from the ONNX file's arrays, by their names in the file.

        Raises KeyError or ValueError if the file contains a different network.
        """
        for name, mine in self._named_arrays():
            if weights[name].shape != tuple(mine.shape):
                raise ValueError(f"the array {name} of the plate network has shape {weights[name].shape}")
            mine.data.copy_(torch.from_numpy(weights[name].copy()))

    def _named_arrays(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the weights and biases, with their names in the file."""
        number = _FIRST_NUMBER
        for path, array in self.named_parameters():
            layer, _, kind = path.removeprefix("heads.").rpartition(".")
            if path.startswith("heads."):
                yield f"{layer}.conv1x1.{kind}", array
            elif kind == "weight":
                yield str(number), array
            else:
                yield str(number + 1), array
                number += _STEP

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute loc, conf, and landms of all N anchors. The values of conf are probabilities."""
        x = F.leaky_relu(self.first(x), _SLOPE)
        levels = []
        for layers, lateral in zip(self.body, self.lateral, strict=True):
            for layer in layers.children():
                x = F.leaky_relu(layer(x), _SLOPE)
            levels.append(F.leaky_relu(lateral(x), _SLOPE))
        for level, merge in zip((1, 0), self.merge, strict=True):
            above = F.interpolate(levels[level + 1], levels[level].shape[2:], mode="nearest")
            levels[level] = F.leaky_relu(merge(levels[level] + above), _SLOPE)
        seen = [context(level) for context, level in zip(self.context, levels, strict=True)]
        loc, conf, landms = (self._answers(name, seen) for name in _HEADS)
        return loc, conf.softmax(dim=2), landms

    def _answers(self, name: str, seen: Sequence[Tensor]) -> Tensor:
        """Compute one head's values for all anchors of all levels, (B, N, values), row by row."""
        heads = self.heads[name].children()
        parts = [head(level).permute(0, 2, 3, 1).flatten(1) for head, level in zip(heads, seen, strict=True)]
        return torch.cat(parts, dim=1).reshape(len(seen[0]), -1, _HEADS[name])


class PlateNetworkOnDevice:
    """`PlateNetwork` with the interface that `PlateDetector` expects. Pixels are copied to the device as uint8."""

    def __init__(self, weights: Mapping[str, Floats32], device: str) -> None:
        """Load the network to the device. `weights` and the errors are the same as for `PlateNetwork.load`."""
        self.device = torch.device(device)
        network = PlateNetwork()
        network.load(weights)
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.mean = torch.tensor(MEAN_BGR, dtype=torch.float32, device=self.device)[:, None, None]

    def __call__(self, windows: Sequence[Pixels]) -> tuple[Floats32, Floats32, Floats32]:
        """Run the network on windows of equal size; see `segmint.model.detectors.plates.Network`."""
        pixels = torch.from_numpy(np.stack(windows)).to(self.device)
        batch = pixels.permute(0, 3, 1, 2).flip(1).float() - self.mean
        with torch.inference_mode():
            loc, conf, landms = (answer.cpu().numpy() for answer in self.network(batch))
        return loc, conf, landms
