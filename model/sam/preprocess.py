"""Preprocessing for the image encoder: resizing (for SAM as Pillow, on any device), normalization, and padding.

Pillow's bilinear resize of 8-bit pixels processes rows and columns separately. A resized pixel is a sum of the pixels
under a triangle whose width depends on the scale, with weights in 22-bit fixed point. Results are rounded to 8 bits
after each direction, so the order of the directions matters. Within a direction, all arithmetic is on integers, so the
order of sums doesn't. So torch computes the same bits on every device, and a GPU needn't wait for the host.
"""

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from segmint.model.device import upload

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


def resized_size(height: int, width: int, long_side: int) -> tuple[int, int]:
    """Return (height, width) in pixels after the longer side is scaled to `long_side`. No side gets shorter than 1."""
    scale = long_side / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize(image: NDArray[np.uint8], long_side: int) -> NDArray[np.uint8]:
    """Resize (H, W, 3) uint8 RGB to the `resized_size` of a padded image.

    The weights were trained on Pillow's antialiased bilinear filter of 8-bit pixels, which differs from torch's.
    """
    height, width = resized_size(image.shape[0], image.shape[1], long_side)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.array(resized)


def stretch(pixels: Tensor, side: int) -> Tensor:
    """Resize (H, W, 3) uint8 RGB to (side, side, 3) float32 of 0 to 255, on the pixels' device.

    Uses torch's antialiased bilinear filter, without rounding to 8 bits, like the reference code of SAM 2.
    """
    planes = pixels.permute(2, 0, 1)[None].float()
    resized = F.interpolate(planes, (side, side), mode="bilinear", align_corners=False, antialias=True)
    return resized[0].permute(1, 2, 0)


def normalize_into(place: Tensor, pixels: Tensor) -> None:
    """Write (h, w, 3) RGB of 0 to 255, normalized, to the top left corner of zeros (3, side, side), in their dtype.

    The remaining zeros on the right and at the bottom are the mean color.
    """
    place[:, : pixels.shape[0], : pixels.shape[1]].copy_(normalized(pixels))


def normalized(pixels: Tensor) -> Tensor:
    """Normalize (h, w, 3) RGB of 0 to 255 to (3, h, w) float32, without padding."""
    mean, std = _mean_and_std(pixels.device)
    return ((pixels - mean) / std).permute(2, 0, 1)


@functools.lru_cache(maxsize=64)
def _mean_and_std(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, which are memoized because a GPU would wait for each copy."""
    with torch.inference_mode(False):
        return torch.tensor(PIXEL_MEAN, device=device), torch.tensor(PIXEL_STD, device=device)


_BITS = 22
"""Number of fractional bits of a weight, which leaves 8 bits for a pixel and 2 bits of headroom in 32 bits."""

_ELEMENTS = 1 << 26
"""Maximum number of products in memory at once: 256 MB."""


def resize_on_device(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (H, W, 3) uint8 to `size` (h, w) on the pixels' device, with the bits of Pillow's bilinear filter."""
    return _resize(pixels, size, columns_first=_columns_first((pixels.shape[0], pixels.shape[1]), size)).contiguous()


def _columns_first(size: tuple[int, int], target: tuple[int, int]) -> bool:
    """Return True if the installed Pillow resizes along columns first; both sizes are (height, width).

    Version 13 does so if this removes more rows than twice the number of columns that the other direction removes. This
    isn't documented; it was found by testing 2,600 sizes. Versions 12.2 and 12.3 do so if it removes rows of an image
    over 100 times as high as wide. Older versions never do.
    """
    fewer_rows, fewer_columns = size[0] - target[0], size[1] - target[1]
    if fewer_rows <= 0:
        return False
    if _pillow_takes_columns_first((64, 8), (21, 5)):
        return fewer_rows > 2 * fewer_columns
    return size[0] > 100 * size[1] and _pillow_takes_columns_first((505, 5), (151, 3))


@functools.cache
def _pillow_takes_columns_first(size: tuple[int, int], target: tuple[int, int]) -> bool:
    """Return True if Pillow's result for random pixels differs from that of rows first."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize(target[::-1], Image.Resampling.BILINEAR))
    return not np.array_equal(_resize(torch.from_numpy(pixels), target, columns_first=False).numpy(), expected)


def _resize(pixels: Tensor, size: tuple[int, int], *, columns_first: bool) -> Tensor:
    height, width = size
    if columns_first:
        return _resize_rows(_resize_rows(pixels.transpose(0, 1), height).transpose(0, 1), width)
    return _resize_rows(_resize_rows(pixels, width).transpose(0, 1), height).transpose(0, 1)


def _resize_rows(pixels: Tensor, length: int) -> Tensor:
    """Resize (H, W, 3) to (H, length, 3), some rows at a time."""
    if pixels.shape[1] == length:
        return pixels
    places, weights = _on_device(pixels.shape[1], length, pixels.device)
    taps = places.shape[1]
    rows = max(1, _ELEMENTS // (length * taps * 3))
    parts = []
    for part in torch.split(pixels, rows):
        products = part[:, places].to(torch.int32) * weights[:, :, None]
        sums = products.sum(dim=2, dtype=torch.int32) + (1 << (_BITS - 1))
        parts.append((sums >> _BITS).clamp(0, 255).to(torch.uint8))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@functools.lru_cache(maxsize=256)
def _on_device(pixels: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return positions and weights as tensors, memoized because crops only have a few distinct lengths."""
    with torch.inference_mode(False):
        places, weights = triangle_weights(pixels, length)
        return upload(torch.from_numpy(places), device), upload(torch.from_numpy(weights), device)


def triangle_weights(pixels: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the source positions and weights for each of `length` pixels made from `pixels`, both (length, taps).

    A weight of 2^22 represents 1. Positions beyond the ends repeat the last pixel with weight 0.
    """
    scale = pixels / length
    reach = max(scale, 1.0)
    taps = math.ceil(reach) * 2 + 1
    centers = (np.arange(length) + 0.5) * scale
    first = np.maximum((centers - reach + 0.5).astype(np.int64), 0)
    stop = np.minimum((centers + reach + 0.5).astype(np.int64), pixels)
    places = first[:, None] + np.arange(taps)
    # The float64 operations and the order in which weights are summed are exactly Pillow's.
    distances = np.abs((places - centers[:, None] + 0.5) * (1.0 / reach))
    weights = np.where((places < stop[:, None]) & (distances < 1.0), 1.0 - distances, 0.0)
    total = np.zeros(length)
    for tap in range(taps):
        total += weights[:, tap]
    weights /= total[:, None]
    whole = np.trunc(0.5 + weights * (1 << _BITS)).astype(np.int32)
    return np.minimum(places, pixels - 1), whole
