"""Ground-truth masks in the square of the image encoder's input, in which losses, IoU, and clicks are computed.

The image fills the top left `input_size` (height, width) pixels of the 1024 x 1024 input, and the rest is padding. The
square has `resolution` pixels per side. Each of them covers (1024 / resolution)² pixels of the input.
"""

import torch
from torch import Tensor

from segmint.model.automatic.boxes import mask_boxes
from segmint.model.sam.geometry import SAM1


def valid_pixels(input_size: tuple[int, int], resolution: int) -> Tensor:
    """Return the pixels of the square that the image covers at least in part, (resolution, resolution) bool.

    Raises ValueError if `input_size` doesn't fit into the input.
    """
    if not all(1 <= side <= SAM1.image_size for side in input_size):
        raise ValueError(f"input_size is {input_size}: expected a height and width from 1 to {SAM1.image_size} pixels")
    starts = torch.arange(resolution) * (SAM1.image_size / resolution)
    height, width = input_size
    return (starts < height)[:, None] & (starts < width)


def fit_targets(masks: Tensor, input_size: tuple[int, int], resolution: int) -> Tensor:
    """Resample an image's masks (N, H, W) bool to the square, (N, resolution, resolution) bool.

    A pixel belongs to the target if the mask covers at least half of the part of the pixel that is inside the image. If
    a mask is so thin or small that it doesn't cover half of any pixel, the target contains the pixels that it covers
    most. This way, no target is empty. Raises ValueError if a mask is empty, and the same errors as `valid_pixels`.
    """
    empty = ~masks.flatten(1).any(dim=1)
    if empty.any():
        raise ValueError(f"mask {int(empty.nonzero()[0])} is empty: expected masks with at least one pixel")
    valid = valid_pixels(input_size, resolution).to(masks.device)
    rows, columns = (
        _shares(pixels, side, resolution).to(masks.device)
        for pixels, side in zip(masks.shape[1:], input_size, strict=True)
    )
    # Process the masks one at a time. In float32, all masks of a large image would take gigabytes.
    targets = [_most_covered(rows @ mask.to(torch.float32) @ columns.T) for mask in masks]
    return torch.stack(targets) & valid if targets else valid.new_zeros(0, resolution, resolution)


def target_boxes(targets: Tensor) -> Tensor:
    """Return the tight boxes of targets (N, R, R) bool as (N, 4) float64 x0, y0, x1, y1. No target may be empty.

    The boxes are in pixels of the 1024 x 1024 input, with inclusive ends, like the boxes of predicted masks.
    """
    scale = SAM1.image_size // targets.shape[-1]
    boxes = mask_boxes(targets)
    first, last = boxes[:, :2], boxes[:, 2:]
    return torch.cat([first * scale, (last + 1) * scale - 1], dim=1).to(torch.float64)


def _most_covered(share: Tensor) -> Tensor:
    # The coverage is a sum with rounding, so a half may come out slightly smaller.
    return share >= share.max().clamp(max=0.5) * (1 - 1e-4)


def _shares(pixels: int, side: int, resolution: int) -> Tensor:
    """Return the fraction of each square pixel that each image pixel covers along one axis, (resolution, pixels).

    Only the part of the square pixel inside the image counts. The image's `pixels` pixels fill `side` pixels of the
    input. In the padding, rows are 0.
    """
    edges = torch.arange(resolution + 1, dtype=torch.float64) * (SAM1.image_size / resolution)
    marks = torch.arange(pixels + 1, dtype=torch.float64) * (side / pixels)
    overlap = torch.minimum(edges[1:, None], marks[1:]) - torch.maximum(edges[:-1, None], marks[:-1])
    overlap = overlap.clamp(min=0)
    inside = (edges[1:].clamp(max=side) - edges[:-1]).clamp(min=0)
    return torch.where(inside[:, None] > 0, overlap / inside[:, None], 0).to(torch.float32)
