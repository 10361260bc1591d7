"""Interpolation from low-resolution logits to the crop's pixels, as a few weights per pixel and axis.

Both bilinear steps of `Predictor.upscale` combine into one matrix per axis, and logits in the crop are R L C^T (see
`upscaling.py`). A row of R or C has three adjacent nonzero values: a pixel lies between two of the encoder's 1024
pixels, and each of these between two logits, one of which they share. With `first` and `weights`,

    logit(y, x) = sum over b of C[x, b] * (sum over a of R[y, a] * L[first_y + a, first_x + b])

takes 9 multiplications and no matrix product. A pixel's bits only depend on its nine logits. They do not depend on the
number of masks and pixels computed together, or on the implementation, as long as the sums are in this order and no
multiplication is fused with an addition. Torch's operations and the kernels of `mask_kernels.py` satisfy both.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from segmint.model.automatic.boxes import mask_boxes
from segmint.model.automatic.interpolation import interpolation
from segmint.model.device import upload


@dataclass(frozen=True)
class Taps:
    """Interpolation along one axis, from S low-resolution logits to P pixels, with all tensors on one device.

    Attributes:
        first: (P,) int32, the first logit that a pixel uses.
        weights: (T, P) float32, for that logit and those after it; 0 for logits that a pixel does not use.
        starts: (S,) int32, the first pixel that uses the logit or one after it; P for none.
        stops: (S,) int32, the end (exclusive) of the pixels that use the logit or one before it; 0 for none.
    """

    first: Tensor
    weights: Tensor
    starts: Tensor
    stops: Tensor

    @property
    def pixels(self) -> int:
        """Number of the crop's pixels along the axis, P."""
        return self.first.shape[0]

    def part(self, start: int, stop: int) -> "Taps":
        """Return the taps of the pixels from `start` to `stop` (exclusive)."""
        return Taps(self.first[start:stop], self.weights[:, start:stop], self.starts, self.stops)


@lru_cache(maxsize=256)
def taps_of(side: int, padded: int, filled: int, pixels: int, device: torch.device) -> Taps:
    """Return the taps of `interpolation` with these arguments, memoized because crops of many images share sizes."""
    whole = interpolation(side, padded, filled, pixels)
    count = int((whole.touches[:, 1] - whole.touches[:, 0]).max())
    first = torch.from_numpy(np.minimum(whole.touches[:, 0], side - count))
    weights = whole.weights.gather(1, first[:, None] + torch.arange(count)).T.contiguous()
    starts = np.minimum.accumulate(whole.reached[::-1, 0])[::-1].copy()
    stops = np.maximum.accumulate(whole.reached[:, 1])
    tensors = (first, torch.from_numpy(starts), torch.from_numpy(stops))
    first, low, high = (upload(tensor.to(torch.int32), device) for tensor in tensors)
    return Taps(first, upload(weights, device), low, high)


def interpolate(low: Tensor, rows: Taps, columns: Taps) -> Tensor:
    """Return logits (N, h, w) for the pixels of `rows` and `columns`, from low-resolution logits (N, S, S) float32."""
    down = torch.zeros((), device=low.device)
    for tap, weights in enumerate(rows.weights):
        down = down + low.index_select(1, rows.first + tap) * weights[:, None]
    across = torch.zeros((), device=low.device)
    for tap, weights in enumerate(columns.weights):
        across = across + down.index_select(2, columns.first + tap) * weights
    return across


def reached(low: Tensor, offset: float, rows: Taps, columns: Taps) -> Tensor:
    """Return bounds (N, 4) int32 x0, y0, x1, y1, ends exclusive, outside which no logit of the crop is above -offset.

    A pixel is a mean of logits, so it is only above -offset if it uses one that is. The box of such logits therefore
    bounds all three masks (`upscaling.py`, 1.). If all such logits are in the padding, the result is an empty box.
    """
    x0, y0, x1, y1 = mask_boxes(low > -offset).T
    return torch.stack([columns.starts[x0], rows.starts[y0], columns.stops[x1], rows.stops[y1]], dim=1)
