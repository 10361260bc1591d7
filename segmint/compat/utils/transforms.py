"""Scaling of images and coordinates to the image encoder's input frame."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segmint.model.sam.preprocess import resize, resized_size


class ResizeLongestSide:
    """Transform that scales images, points, and boxes so that an image's longer side has `target_length` pixels.

    Sizes are (height, width), points (..., 2) are (x, y), and boxes (..., 4) are (x0, y0, x1, y1).
    """

    def __init__(self, target_length: int) -> None:
        self.target_length = target_length

    def apply_image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize an image (H, W, 3) uint8."""
        return resize(np.ascontiguousarray(image), self.target_length)

    def apply_coords(self, coords: NDArray[Any], original_size: Sequence[int]) -> NDArray[np.float64]:
        """Scale points of an image whose size was `original_size`."""
        scaled: NDArray[np.float64] = np.asarray(coords, dtype=np.float64) * self._factors(original_size)
        return scaled

    def apply_boxes(self, boxes: NDArray[Any], original_size: Sequence[int]) -> NDArray[np.float64]:
        """Scale boxes of an image whose size was `original_size`, and return them as (B, 4)."""
        return self.apply_coords(np.asarray(boxes).reshape(-1, 2, 2), original_size).reshape(-1, 4)

    def apply_image_torch(self, image: Tensor) -> Tensor:
        """Resize float images (B, C, H, W) with torch's filter, which differs from the one used in training."""
        size = self.get_preprocess_shape(image.shape[-2], image.shape[-1], self.target_length)
        return F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)

    def apply_coords_torch(self, coords: Tensor, original_size: Sequence[int]) -> Tensor:
        """Scale points of an image whose size was `original_size`, and return them as float32."""
        coords = coords.detach().to(torch.float32)
        return coords * coords.new_tensor(self._factors(original_size))

    def apply_boxes_torch(self, boxes: Tensor, original_size: Sequence[int]) -> Tensor:
        """Scale boxes of an image whose size was `original_size`, and return them as (B, 4) float32."""
        return self.apply_coords_torch(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        """Return the (height, width) of an image after its longer side is scaled to `long_side_length`."""
        return resized_size(oldh, oldw, long_side_length)

    def _factors(self, original_size: Sequence[int]) -> tuple[float, float]:
        height, width = original_size[0], original_size[1]
        new_height, new_width = self.get_preprocess_shape(height, width, self.target_length)
        return new_width / width, new_height / height
