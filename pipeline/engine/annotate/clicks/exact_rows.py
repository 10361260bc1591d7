"""Single rows of upscaled logits, bit for bit as `Predictor.upscale` computes them.

torch computes a row of a bilinear interpolation from two rows and a weight, the same way for each row. Asked for one
row between two, with a scale that leads to the same weight, it gives the same bits. Where it does not, because of a
weight that no scale leads to or another kernel for small images, there is no `ExactRows`: each size is tried.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_TRIED = 12  # rows
_UNITS = 32


@dataclass(frozen=True)
class _Step:
    """One step of interpolation along the rows: for each the row before it, the row after it, and that one's weight."""

    before: NDArray[np.int64]
    after: NDArray[np.int64]
    weight: NDArray[np.float32]

    @classmethod
    def make(cls, given: int, wanted: int) -> "_Step | None":
        """Compute the step from `given` rows to `wanted`, as torch does in float32; None if torch's weights differ."""
        scale = np.float32(given) / np.float32(wanted)
        middle = np.maximum(scale * (np.arange(wanted, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
        before = np.minimum(middle.astype(np.int64), given - 1)
        after = np.minimum(before + 1, given - 1)
        weight = np.clip(middle - before.astype(np.float32), 0, 1, dtype=np.float32)
        units = (torch.arange(given) % _UNITS == torch.arange(_UNITS)[:, None]).float()[None, :, :, None]
        found = F.interpolate(units, (wanted, 1), mode="bilinear", align_corners=False)[0, :, :, 0].numpy()
        apart = np.flatnonzero(before != after)
        is_torchs = np.array_equal(found[after[apart] % _UNITS, apart], weight[apart])
        reached = (np.float32(2) * weight + np.float32(1)) / np.float32(2) - np.float32(0.5)
        return cls(before, after, weight) if is_torchs and np.array_equal(reached, weight) else None

    def row(self, pair: Tensor, row: int, width: int) -> Tensor:
        """Return one row (width) from the two rows (2, n) around it."""
        # torch's place of a first row is half of the scale less a half.
        scale = 1 / (2 * float(self.weight[row]) + 1)
        drawn: Tensor = torch.ops.aten.upsample_bilinear2d(pair[None, None], [1, width], False, scale, None)
        return drawn[0, 0, 0]


@dataclass(frozen=True)
class ExactRows:
    """Rows of images of one size."""

    side: int
    filled: int  # columns of the square that become the frame's
    width: int
    square: _Step
    frame: _Step

    @classmethod
    def make(
        cls, low_side: int, side: int, input_size: tuple[int, int], frame_size: tuple[int, int]
    ) -> "ExactRows | None":
        """Return the rows of images of one size; None where torch computes single rows in another way."""
        square, frame = _Step.make(low_side, side), _Step.make(input_size[0], frame_size[0])
        if square is None or frame is None:
            return None
        rows = cls(side, input_size[1], frame_size[1], square, frame)
        noise = torch.randn(low_side, low_side, generator=torch.Generator().manual_seed(0))
        padded = F.interpolate(noise[None, None], (side, side), mode="bilinear", align_corners=False)
        filled = padded[..., : input_size[0], : input_size[1]]
        whole = F.interpolate(filled, frame_size, mode="bilinear", align_corners=False)[0, 0].numpy()
        tried = np.unique(np.linspace(0, frame_size[0] - 1, _TRIED).astype(np.int64)).tolist()
        return rows if all(np.array_equal(rows.row(noise, row), whole[row]) for row in tried) else None

    def row(self, logits: Tensor, row: int) -> NDArray[np.float32]:
        """Return a row (width) of the frame from logits (256, 256)."""
        with torch.inference_mode():
            near = [
                self.square.row(logits[[self.square.before[at], self.square.after[at]]], at, self.side)
                for at in (int(self.frame.before[row]), int(self.frame.after[row]))
            ]
            drawn: NDArray[np.float32] = self.frame.row(torch.stack(near)[:, : self.filled], row, self.width).numpy()
            return drawn
