"""Candidate masks between filters, packed so that hundreds of them from a large image fit in memory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from segmint.model.automatic.boxes import Box
from segmint.model.automatic.records import Funnel
from segmint.model.automatic.rle import Rle, encode_runs


@dataclass(frozen=True)
class MaskPatch:
    """Mask that is stored as runs along the columns of a window. All pixels outside the window are background.

    Attributes:
        corner: (x, y) of the window's top left pixel, in pixels of the frame.
        shape: (height, width) of the window.
        changes: (2 R,) int64, increasing. The first pixel of a foreground run, the pixel after its last one, and so on.
            Columns are concatenated, each followed by one background pixel, so pixel (x, y) of the window is at x *
            (height + 1) + y. If a run reaches the bottom of the window, it ends at that background pixel.
    """

    corner: tuple[int, int]
    shape: tuple[int, int]
    changes: NDArray[np.int64]

    @classmethod
    def pack(cls, mask: NDArray[np.bool_], box: Box, offset: tuple[int, int] = (0, 0)) -> "MaskPatch":
        """Pack the part of a mask (h, w) bool inside `box`, ends inclusive.

        `offset` (x, y) is the corner of `mask` in the frame.
        """
        x0, y0, x1, y1 = box
        window = mask[y0 : y1 + 1, x0 : x1 + 1]
        height, width = window.shape
        flat = np.zeros(1 + width * (height + 1), dtype=np.bool_)  # a background pixel, and the columns
        flat[1:].reshape(width, height + 1)[:, :height] = window.T
        return cls((x0 + offset[0], y0 + offset[1]), (height, width), np.flatnonzero(flat[1:] != flat[:-1]))

    @property
    def box(self) -> Box:
        """Window as a box in the frame, both ends inclusive."""
        (x, y), (height, width) = self.corner, self.shape
        return x, y, x + width - 1, y + height - 1

    @property
    def area(self) -> int:
        """Number of foreground pixels."""
        return int((self.changes[1::2] - self.changes[0::2]).sum())

    def window(self) -> NDArray[np.bool_]:
        """Unpack the pixels inside the window, (height, width) bool."""
        height, width = self.shape
        lengths = np.diff(self.changes, prepend=0, append=width * (height + 1))
        values = np.zeros(lengths.size, dtype=np.bool_)
        values[1::2] = True
        return np.ascontiguousarray(np.repeat(values, lengths).reshape(width, height + 1)[:, :height].T)

    def places(self, stride: int) -> NDArray[np.int64]:
        """Return `changes` as positions x * stride + y in the frame, (2 R,). `stride` is the frame's height or more."""
        (x, y), (height, _) = self.corner, self.shape
        column, pixel = np.divmod(self.changes, height + 1)
        positions: NDArray[np.int64] = (column + x) * stride + (pixel + y)
        return positions

    def encode(self, frame_size: tuple[int, int]) -> Rle:
        """Encode the mask in a frame of (height, width). Raises ValueError if the window exceeds the frame."""
        (x, y), (height, width) = self.corner, self.shape
        if x < 0 or y < 0 or y + height > frame_size[0] or x + width > frame_size[1]:
            raise ValueError(f"a window of {self.shape} at x={x}, y={y} extends beyond the frame of {frame_size}")
        places = self.places(frame_size[0])
        return encode_runs(places[0::2], places[1::2], frame_size)

    def moved(self, by: tuple[int, int]) -> Self:
        """Shift the mask by (x, y) pixels."""
        return replace(self, corner=(self.corner[0] + by[0], self.corner[1] + by[1]))


_EMPTY: dict[str, NDArray[Any]] = {
    "predicted_iou": np.zeros(0, np.float32),
    "stability": np.zeros(0, np.float32),
    "points": np.zeros((0, 2)),
    "outputs": np.zeros(0, np.int64),
    "boxes": np.zeros((0, 4), np.int64),
    "crop_boxes": np.zeros((0, 4), np.int64),
}
"""Columns of `CandidateMasks` without masks."""


@dataclass(frozen=True)
class CandidateMasks:
    """Candidate masks with the values that later steps need. All coordinates are in pixels of the frame.

    Attributes:
        predicted_iou: (N,) float32.
        stability: (N,) float32.
        points: (N, 2) float64, (x, y).
        outputs: (N,) int64, index of each mask among the decoder's three outputs, 0 to 2.
        boxes: (N, 4) int64 as x0, y0, x1, y1, ends inclusive.
        crop_boxes: (N, 4) int64 as x0, y0, x1, y1, ends exclusive.
        patches: the N masks.
    """

    predicted_iou: NDArray[np.float32]
    stability: NDArray[np.float32]
    points: NDArray[np.float64]
    outputs: NDArray[np.int64]
    boxes: NDArray[np.int64]
    crop_boxes: NDArray[np.int64]
    patches: tuple[MaskPatch, ...]

    def __len__(self) -> int:
        return len(self.patches)

    def take(self, indices: NDArray[np.int64]) -> Self:
        """Select the candidates with these indices, in this order."""
        columns = {name: getattr(self, name)[indices] for name in _EMPTY}
        return type(self)(**columns, patches=tuple(self.patches[index] for index in indices))

    def with_patches(self, replaced: dict[int, MaskPatch]) -> Self:
        """Replace the masks at some positions, update their boxes, and return the result as a copy."""
        boxes = self.boxes.copy()
        patches = list(self.patches)
        for index, patch in replaced.items():
            boxes[index] = patch.box
            patches[index] = patch
        return replace(self, boxes=boxes, patches=tuple(patches))


def concatenate(parts: Sequence[CandidateMasks]) -> CandidateMasks:
    """Concatenate the candidates of all parts, in order. Without parts, the result is empty."""
    columns = {name: joined(parts, name) for name in _EMPTY}
    return CandidateMasks(**columns, patches=tuple(patch for part in parts for patch in part.patches))


def joined(parts: Sequence[Any], column: str) -> NDArray[Any]:
    """Concatenate a column of `CandidateMasks`, or of other parts with a column of that name. There may be no parts."""
    return np.concatenate([_EMPTY[column], *(getattr(part, column) for part in parts)])


@dataclass(frozen=True)
class RawMasks:
    """Masks of one image as the model predicted them, before NMS across crops and cleanup.

    Attributes:
        candidates: masks of all crops after NMS within each crop, crop by crop, on the host.
        funnel: counts up to `after_nms1`.
        frame_size: (height, width) of the image in pixels.
    """

    candidates: CandidateMasks
    funnel: Funnel
    frame_size: tuple[int, int]
