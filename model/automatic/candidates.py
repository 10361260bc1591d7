"""Masks on their way through the filters, small enough to hold hundreds of a large image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from model.automatic.boxes import Box


@dataclass(frozen=True)
class Patch:
    """A mask by its pixels inside its box, a bit each; all outside is background.

    Attributes:
        corner: (x, y) of the top left pixel, in pixels of the frame.
        shape: (height, width) of the window.
        bits: ceil(height * width / 8) bytes.
    """

    corner: tuple[int, int]
    shape: tuple[int, int]
    bits: NDArray[np.uint8]

    @classmethod
    def pack(cls, mask: NDArray[np.bool_], box: Box, offset: tuple[int, int] = (0, 0)) -> Self:
        """Packs a (h, w) bool mask with the inclusive `box`; `offset` (x, y) is its corner in the frame."""
        x0, y0, x1, y1 = box
        window = mask[y0 : y1 + 1, x0 : x1 + 1]
        height, width = window.shape
        return cls((x0 + offset[0], y0 + offset[1]), (height, width), np.packbits(window))

    @property
    def box(self) -> Box:
        """The window as a box in the frame, both ends inclusive."""
        (x, y), (height, width) = self.corner, self.shape
        return x, y, x + width - 1, y + height - 1

    def window(self) -> NDArray[np.bool_]:
        """The pixels inside the window, (height, width) bool."""
        height, width = self.shape
        return np.unpackbits(self.bits, count=height * width).view(np.bool_).reshape(height, width)

    def full(self, frame_size: tuple[int, int]) -> NDArray[np.bool_]:
        """The mask over the frame of (height, width), bool."""
        mask = np.zeros(frame_size, dtype=np.bool_)
        (x, y), (height, width) = self.corner, self.shape
        mask[y : y + height, x : x + width] = self.window()
        return mask


@dataclass(frozen=True)
class Candidates:
    """N masks with what the later steps need of them; all coordinates are pixels of the frame.

    Attributes:
        predicted_iou: (N,) float32.
        stability: (N,) float32.
        points: (N, 2) float64, x, y.
        boxes: (N, 4) int64, x0, y0, x1, y1, ends inclusive.
        crop_boxes: (N, 4) int64, x0, y0, x1, y1, ends exclusive.
        patches: the N masks.
    """

    predicted_iou: NDArray[np.float32]
    stability: NDArray[np.float32]
    points: NDArray[np.float64]
    boxes: NDArray[np.int64]
    crop_boxes: NDArray[np.int64]
    patches: tuple[Patch, ...]

    def __len__(self) -> int:
        return len(self.patches)

    def take(self, indices: NDArray[np.int64]) -> Self:
        """The candidates at these positions, in this order."""
        return type(self)(
            self.predicted_iou[indices],
            self.stability[indices],
            self.points[indices],
            self.boxes[indices],
            self.crop_boxes[indices],
            tuple(self.patches[index] for index in indices),
        )

    def with_patches(self, replaced: dict[int, Patch]) -> Self:
        """The same candidates with new masks, and boxes to match, at some positions."""
        boxes = self.boxes.copy()
        patches = list(self.patches)
        for index, patch in replaced.items():
            boxes[index] = patch.box
            patches[index] = patch
        return type(self)(self.predicted_iou, self.stability, self.points, boxes, self.crop_boxes, tuple(patches))


def concatenate(parts: Sequence[Candidates]) -> Candidates:
    """All candidates of all parts, in order; none at all when there are no parts."""
    return Candidates(
        np.concatenate([np.zeros(0, np.float32), *(part.predicted_iou for part in parts)]),
        np.concatenate([np.zeros(0, np.float32), *(part.stability for part in parts)]),
        np.concatenate([np.zeros((0, 2)), *(part.points for part in parts)]),
        np.concatenate([np.zeros((0, 4), np.int64), *(part.boxes for part in parts)]),
        np.concatenate([np.zeros((0, 4), np.int64), *(part.crop_boxes for part in parts)]),
        tuple(patch for part in parts for patch in part.patches),
    )
