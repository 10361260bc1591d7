"""Pixels for the image encoder: resized with Pillow, normalized, then padded to a square."""

import functools

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


def resized_size(height: int, width: int, long_side: int) -> tuple[int, int]:
    """(height, width) in pixels when the longer side becomes `long_side`; no side gets shorter than 1."""
    scale = long_side / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize(image: npt.NDArray[np.uint8], long_side: int) -> npt.NDArray[np.uint8]:
    """Resize (H, W, 3) uint8 RGB to a longer side of `long_side` pixels.

    Pillow's antialiased bilinear filter on 8-bit pixels: the weights were trained on it, and torch's own
    differs.
    """
    height, width = resized_size(image.shape[0], image.shape[1], long_side)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.array(resized)


def normalize_into(place: Tensor, pixels: Tensor) -> None:
    """Write (h, w, 3) uint8 RGB, normalized, to the top left corner of zeros (3, side, side), in their type.

    Zeros on the right and at the bottom are the mean color.
    """
    place[:, : pixels.shape[0], : pixels.shape[1]].copy_(normalized(pixels))


def normalized(pixels: Tensor) -> Tensor:
    """Normalize (h, w, 3) RGB of 0 to 255 to (3, h, w) float32, without padding."""
    mean, std = _mean_and_std(pixels.device)
    return ((pixels - mean) / std).permute(2, 0, 1)


@functools.lru_cache(maxsize=64)
def _mean_and_std(device: torch.device) -> tuple[Tensor, Tensor]:
    """Copied to a GPU once: it would wait for each copy."""
    with torch.inference_mode(False):
        return torch.tensor(PIXEL_MEAN, device=device), torch.tensor(PIXEL_STD, device=device)
