"""A real TorchScript detector of the contract's signature, which finds magenta spots."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

MAGENTA = (255, 0, 255)


class Magenta(nn.Module):
    """Boxes the magenta pixels of one BGR image (3, H, W), all in one, if the box is `least` pixels wide or more."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least = least

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        size = torch.tensor([image.shape[1], image.shape[2]])
        ys, xs = torch.where((image[0] > 180) & (image[1] < 90) & (image[2] > 180))
        if ys.numel() == 0 or int(xs.max() - xs.min()) + 1 < self.least:
            return torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64), torch.zeros(0), size
        box = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).to(torch.float32)
        return box[None], torch.zeros(1, dtype=torch.int64), torch.tensor([0.95]), size


class Failing(nn.Module):
    """Finds nothing in a square image, and fails on any other."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if image.shape[1] != image.shape[2]:
            raise RuntimeError("only squares")
        return torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(2)


class Fragile(nn.Module):
    """Finds nothing, and fails on an image that begins with a magenta pixel."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if bool(image[0, 0, 0] > 180) and bool(image[1, 0, 0] < 90) and bool(image[2, 0, 0] > 180):
            raise RuntimeError("a shape that was not foreseen")
        return torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(2)


class Hanging(nn.Module):
    """Finds nothing, and never ends on an image that begins with a magenta pixel."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        count = 0
        while bool(image[0, 0, 0] > 180) and bool(image[1, 0, 0] < 90) and bool(image[2, 0, 0] > 180):
            count += 1
        return torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(2)


class Greedy(nn.Module):
    """Finds nothing, and asks for a terabyte for an image that begins with a magenta pixel."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if bool(image[0, 0, 0] > 180) and bool(image[1, 0, 0] < 90) and bool(image[2, 0, 0] > 180):
            return torch.zeros((1 << 40, 4)), torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(2)
        return torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(2)


class OnlyScores(nn.Module):
    """Has another signature."""

    def forward(self, image: Tensor) -> Tensor:
        return image[0].to(torch.float32)


def saved(module: nn.Module, path: Path) -> Path:
    """The module as a TorchScript file."""
    torch.jit.script(module).save(path)
    return path


def spot(pixels: np.ndarray, x: int, y: int, side: int) -> np.ndarray:
    """A copy of an image with a magenta square."""
    marked = pixels.copy()
    marked[y : y + side, x : x + side] = MAGENTA
    return marked
