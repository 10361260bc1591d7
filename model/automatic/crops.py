"""Placement of prompts, crops, and the boxes in them."""

from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from segmint.infra.arrays import Bools, Floats, PixelBox, Pixels, Size
from segmint.model.automatic.settings import MaskSettings, crop_length


def mask_boxes(masks: Tensor) -> Tensor:
    """Return the boxes of masks (N, h, w) bool as x0, y0, x1, y1, both ends inclusive, (N, 4) int64 on their device.

    The box of an empty mask is all zeros.
    """
    return occupied_boxes(masks.any(dim=2), masks.any(dim=1))


def occupied_boxes(rows: Tensor, columns: Tensor) -> Tensor:
    """Compute `mask_boxes` from the rows (N, h) and columns (N, w) bool that contain pixels of each mask."""
    x0, x1 = _extremes(columns)
    y0, y1 = _extremes(rows)
    return torch.stack([x0, y0, x1, y1], dim=1) * rows.any(dim=1, keepdim=True)


def box_of(mask: Bools) -> PixelBox:
    """Return the box of a single mask (h, w) bool, as in `mask_boxes`."""
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return 0, 0, 0, 0
    columns = np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def xyxy_to_xywh(box: PixelBox) -> PixelBox:
    """Convert an inclusive box to (x, y, x1 - x0, y1 - y0), so a box one pixel wide has width 0 (reference code)."""
    x0, y0, x1, y1 = box
    return x0, y0, x1 - x0, y1 - y0


def _extremes(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positions of the first and last True in each row of (N, L) bool.

    A row without True gets (0, L - 1).
    """
    marks = occupied.to(torch.uint8)
    first = marks.argmax(dim=1)
    last = marks.shape[1] - 1 - marks.flip(1).argmax(dim=1)
    return first, last


PixelsT = TypeVar("PixelsT", Pixels, Tensor)


@dataclass(frozen=True)
class Crop:
    """Window of the frame that is encoded separately.

    Attributes:
        layer: 0 for the full image. Layer L has 2^L x 2^L crops.
        box: (x0, y0, x1, y1) in pixels of the frame, ends exclusive, clipped to the image.
    """

    layer: int
    box: PixelBox

    @property
    def size(self) -> Size:
        """Size of the window as (height, width), in pixels of the frame."""
        x0, y0, x1, y1 = self.box
        return y1 - y0, x1 - x0

    @property
    def is_empty(self) -> bool:
        """True if the window is outside the image, which happens only for images of a few pixels."""
        return min(self.size) <= 0


def crop_points(crop: Crop, grid: Floats) -> Floats:
    """Scale a grid of the unit square, (P, 2) as (x, y), to pixels of the crop, relative to the crop's corner."""
    height, width = crop.size
    points: Floats = grid * np.array([width, height])
    return points


def generate_crops(frame_size: Size, layers: int, overlap_ratio: float) -> list[Crop]:
    """Return the full image, followed by the crops of layers 1 to `layers`, column by column.

    `frame_size` is (height, width). In layer 1, crops overlap by `overlap_ratio` of the image's short side. The overlap
    halves with each further layer. The formula comes from the reference code. For tiny images, some windows are empty.
    """
    height, width = frame_size
    crops = [Crop(0, (0, 0, width, height))]
    for layer in range(1, layers + 1):
        per_side = 2**layer
        overlap = int(overlap_ratio * min(height, width) * (2 / per_side))
        crop_width = crop_length(width, per_side, overlap)
        crop_height = crop_length(height, per_side, overlap)
        for i, j in product(range(per_side), repeat=2):
            x0 = (crop_width - overlap) * i
            y0 = (crop_height - overlap) * j
            box = (x0, y0, min(x0 + crop_width, width), min(y0 + crop_height, height))
            crops.append(Crop(layer, box))
    return crops


def placed_crops(frame_size: Size, settings: MaskSettings) -> list[Crop]:
    """Return the nonempty crops of `generate_crops` for these settings."""
    every = generate_crops(frame_size, settings.crop_n_layers, settings.crop_overlap_ratio)
    return [crop for crop in every if not crop.is_empty]


def cut(crop: Crop, frame_size: Size, pixels: PixelsT) -> PixelsT:
    """Cut the crop from an image that shows the whole frame at any resolution, and return a view, (h, w, 3) uint8.

    `frame_size` is (height, width). Each axis is scaled separately, and the crop's borders are rounded to the nearest
    pixel of `pixels`. A nonempty crop has at least one pixel.
    """
    x0, x1 = _scaled_span(crop.box[0], crop.box[2], frame_size[1], pixels.shape[1])
    y0, y1 = _scaled_span(crop.box[1], crop.box[3], frame_size[0], pixels.shape[0])
    return pixels[y0:y1, x0:x1]


def _scaled_span(start: int, stop: int, frame_length: int, length: int) -> tuple[int, int]:
    # Round start * length / frame_length in integer arithmetic, with halves rounded up.
    low = (2 * start * length + frame_length) // (2 * frame_length)
    high = (2 * stop * length + frame_length) // (2 * frame_length)
    low = min(low, length - 1)
    return low, max(high, low + 1)
