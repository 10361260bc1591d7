"""Pixels for the image encoder: resized with Pillow, normalized, then padded to a square."""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
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


def normalize_and_pad(pixels: Tensor, side: int) -> Tensor:
    """(1, 3, side, side) float32 from (h, w, 3) uint8 RGB, padded with zeros on the right and at the bottom.

    Padding comes after normalization: the zeros are the mean color.
    """
    mean = torch.tensor(PIXEL_MEAN, device=pixels.device)
    std = torch.tensor(PIXEL_STD, device=pixels.device)
    normalized = ((pixels - mean) / std).permute(2, 0, 1)[None]
    return F.pad(normalized, (0, side - pixels.shape[1], 0, side - pixels.shape[0]))
