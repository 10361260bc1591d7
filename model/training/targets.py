"""Masks taken as truth, in the square of the image encoder's input: where losses, IoU and clicks are computed.

The image fills `input_size` (height, width) pixels, from the top left corner, of the 1024 x 1024 input; the rest is
padding. The square has a side of `resolution` pixels, each covering (1024 / resolution)² of the input's.
"""

import torch
from torch import Tensor

from segmint.model.sam.prompt_encoder import IMAGE_SIZE


def valid_pixels(input_size: tuple[int, int], resolution: int) -> Tensor:
    """Which pixels of the square the image reaches into: (resolution, resolution) bool.

    Raises ValueError for an `input_size` that does not fit into the input.
    """
    if not all(1 <= side <= IMAGE_SIZE for side in input_size):
        raise ValueError(f"input_size is {input_size}: expected a height and a width from 1 to {IMAGE_SIZE} pixels")
    starts = torch.arange(resolution) * (IMAGE_SIZE / resolution)
    height, width = input_size
    return (starts < height)[:, None] & (starts < width)


def fit_targets(masks: Tensor, input_size: tuple[int, int], resolution: int) -> Tensor:
    """Resample masks of an image to the square: (N, H, W) bool to (N, resolution, resolution) bool.

    A pixel belongs to the target if the mask covers at least half of what the image has of it. Of a mask so thin or
    small that it covers half of no pixel, the most covered ones are taken, so that no target is empty. Raises
    ValueError for an empty mask and as `valid_pixels` does.
    """
    empty = ~masks.flatten(1).any(dim=1)
    if empty.any():
        raise ValueError(f"mask {int(empty.nonzero()[0])} is empty: expected masks of one pixel or more")
    valid = valid_pixels(input_size, resolution).to(masks.device)
    rows, columns = (
        _shares(pixels, side, resolution).to(masks.device)
        for pixels, side in zip(masks.shape[1:], input_size, strict=True)
    )
    # One by one: as float32 the masks of a large image would take gigabytes.
    targets = [_most_covered(rows @ mask.to(torch.float32) @ columns.T) for mask in masks]
    return torch.stack(targets) & valid if targets else valid.new_zeros(0, resolution, resolution)


def target_boxes(targets: Tensor) -> Tensor:
    """The tight boxes of targets that are not empty: (N, 4) float64 as x0, y0, x1, y1, from (N, R, R) bool.

    In pixels of the 1024 x 1024 input, the first and the last one inside, as for the boxes of predicted masks.
    """
    scale = IMAGE_SIZE // targets.shape[-1]
    sides = []
    for axis in (1, 2):  # any of its rows gives the extent in x, any of its columns in y
        present = targets.any(dim=axis).to(torch.int8)
        first = present.argmax(dim=1)
        last = targets.shape[-1] - 1 - present.flip(1).argmax(dim=1)
        sides.append((first * scale, (last + 1) * scale - 1))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], dim=1).to(torch.float64)


def _most_covered(share: Tensor) -> Tensor:
    # The shares are rounded sums: a half may come out a little smaller.
    return share >= share.max().clamp(max=0.5) * (1 - 1e-4)


def _shares(pixels: int, side: int, resolution: int) -> Tensor:
    """Along one axis, each image pixel's share of what a pixel of the square has of the image: (resolution, pixels).

    The image's `pixels` fill `side` pixels of the input. Rows are 0 in the padding.
    """
    edges = torch.arange(resolution + 1, dtype=torch.float64) * (IMAGE_SIZE / resolution)
    marks = torch.arange(pixels + 1, dtype=torch.float64) * (side / pixels)
    overlap = torch.minimum(edges[1:, None], marks[1:]) - torch.maximum(edges[:-1, None], marks[:-1])
    overlap = overlap.clamp(min=0)
    inside = (edges[1:].clamp(max=side) - edges[:-1]).clamp(min=0)
    return torch.where(inside[:, None] > 0, overlap / inside[:, None], 0).to(torch.float32)
