"""Counts, boxes, and pixels of masks at the crop's resolution, computed with torch operations on tiles of the crop.

This module never stores full-size masks. It reduces each tile of logits to counts and extremes before it computes the
next tile. Later, it draws only the pixels inside a mask's box. `mask_kernels.py` computes the same bits without tiles.

A crop's logits are R L C^T (see `proposals.py`). Each row of R or C has three adjacent nonzero values, called taps.
There are three because a pixel lies between two of the encoder's 1024 pixels. Each of these two lies between two
logits, and they share one logit. With the taps in `first` and `weights`, the sum

    logit(y, x) = sum over b of C[x, b] * (sum over a of R[y, a] * L[first_y + a, first_x + b])

takes 9 multiplications and no matrix product. The bits of a pixel depend only on its nine logits, and not on how many
masks and pixels are computed together. Different implementations agree as long as they sum in this order and don't fuse
a multiplication with an addition. Both the torch operations and the kernels satisfy this.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from segmint.model.automatic.crops import occupied_boxes
from segmint.model.automatic.proposals import interpolation
from segmint.model.device import upload

# Logits per tile, 128 MB in float32. For any image size and any number of masks in a chunk, this is far below the 2^31
# elements that kernels can index. A pixel's bits don't depend on its tile.
TILE_ELEMENTS = 1 << 25


class Strip(NamedTuple):
    """Columns of one mask inside its box, with the position at which they are drawn.

    Columns are drawn one after another, each followed by one background pixel. The strip therefore takes `columns *
    (height + 1)` pixels, beginning at `start`.
    """

    mask: int
    x: int
    y: int
    columns: int
    height: int
    start: int


@dataclass(frozen=True)
class Taps:
    """Interpolation along one axis, from S low-resolution logits to P pixels. All tensors are on one device.

    Attributes:
        first: (P,) int32, index of the first logit that each pixel uses.
        weights: (T, P) float32, weights of that logit and of the next ones. If a pixel doesn't use a logit, its weight
            is 0.
        starts: (S,) int32, for each logit, the first pixel that uses it or a later logit. P if no pixel does.
        stops: (S,) int32, for each logit, the exclusive end of the pixels that use it or an earlier logit. 0 if no
            pixel does.
    """

    first: Tensor
    weights: Tensor
    starts: Tensor
    stops: Tensor

    @property
    def pixels(self) -> int:
        """Number of pixels of the crop along the axis, P."""
        return self.first.shape[0]

    def part(self, start: int, stop: int) -> "Taps":
        """Select the taps of the pixels from `start` to `stop` (exclusive)."""
        return Taps(self.first[start:stop], self.weights[:, start:stop], self.starts, self.stops)


@lru_cache(maxsize=256)
def taps_of(side: int, padded: int, filled: int, pixels: int, device: torch.device) -> Taps:
    """Copy `host_taps` to a device. The copies are cached, because many crops have equal sizes."""
    found = host_taps(side, padded, filled, pixels)
    parts = (found.first, found.weights, found.starts, found.stops)
    return Taps(*(upload(part, device) for part in parts))


_computing = threading.Lock()


def host_taps(side: int, padded: int, filled: int, pixels: int) -> Taps:
    """Compute the taps for these arguments of `interpolation`, on the CPU. They are cached.

    This takes a millisecond or two, so another thread calls it in advance for the crops of the next image
    (`DeviceCrops.prepare`). The lock makes a thread wait for taps that another one is computing.
    """
    with _computing:
        return _host_taps(side, padded, filled, pixels)


@lru_cache(maxsize=256)
def _host_taps(side: int, padded: int, filled: int, pixels: int) -> Taps:
    whole = interpolation(side, padded, filled, pixels)
    count = int((whole.touches[:, 1] - whole.touches[:, 0]).max())
    first = torch.from_numpy(np.minimum(whole.touches[:, 0], side - count))
    weights = whole.weights.gather(1, first[:, None] + torch.arange(count)).T.contiguous()
    starts = np.minimum.accumulate(whole.reached[::-1, 0])[::-1].copy()
    stops = np.maximum.accumulate(whole.reached[:, 1])
    tensors = (first, torch.from_numpy(starts), torch.from_numpy(stops))
    first, low, high = (tensor.to(torch.int32) for tensor in tensors)
    return Taps(first, weights, low, high)


def interpolate(low: Tensor, rows: Taps, columns: Taps) -> Tensor:
    """Interpolate low-resolution logits (N, S, S) float32 at the pixels of `rows` and `columns`: (N, h, w)."""
    down = torch.zeros((), device=low.device)
    for tap, weights in enumerate(rows.weights):
        down = down + low.index_select(1, rows.first + tap) * weights[:, None]
    across = torch.zeros((), device=low.device)
    for tap, weights in enumerate(columns.weights):
        across = across + down.index_select(2, columns.first + tap) * weights
    return across


def measure(low: Tensor, rows: Taps, columns: Taps, offset: float, wanted: Tensor | None = None) -> Tensor:
    """Measure the masks of logits (N, S, S) float32 without storing the masks, and return (N, 7) int64.

    The first three numbers are the counts of pixels above +offset, 0, and -offset. The others are the box x0, y0, x1,
    y1 of the pixels above 0, ends inclusive, or zeros if there are no such pixels. If `wanted` (N,) bool is False for a
    mask, its logits may be arbitrary, and all seven numbers are 0.
    """
    step = TILE_ELEMENTS // max(columns.pixels, low.shape[2])
    parts = [_measure(low[start:stop], rows, columns, offset) for start, stop in _spans(len(low), step)]
    found = torch.cat([torch.zeros((0, 7), dtype=torch.int64, device=low.device), *parts])
    return found if wanted is None else found * wanted[:, None]


def _measure(low: Tensor, rows: Taps, columns: Taps, offset: float) -> Tensor:
    counts = torch.zeros((len(low), 3), dtype=torch.int64, device=low.device)
    in_rows: list[Tensor] = []
    in_columns = torch.zeros((len(low), columns.pixels), dtype=torch.bool, device=low.device)
    for start, stop in _spans(rows.pixels, TILE_ELEMENTS // (len(low) * max(columns.pixels, low.shape[2]))):
        logits = interpolate(low, rows.part(start, stop), columns)
        over = logits > 0
        masks = (logits > offset, over, logits > -offset)
        counts += torch.stack([torch.count_nonzero(mask, dim=(1, 2)) for mask in masks], dim=1)
        in_rows.append(over.any(dim=2))
        in_columns |= over.any(dim=1)
    return torch.cat([counts, occupied_boxes(torch.cat(in_rows, dim=1), in_columns)], dim=1)


def draw(flat: Tensor, low: Tensor, rows: Taps, columns: Taps, strips: Sequence[Strip]) -> None:
    """Draw strips of the masks of logits (N, S, S) float32 into `flat` (uint8), which they fill completely."""
    for strip in strips:
        x = columns.part(strip.x, strip.x + strip.columns)
        y = rows.part(strip.y, strip.y + strip.height)
        logits = interpolate(low[strip.mask : strip.mask + 1], y, x)[0]
        drawn = flat[strip.start : strip.start + strip.columns * (strip.height + 1)].view(strip.columns, -1)
        drawn[:, :-1] = logits.T > 0
        drawn[:, -1] = 0


def _spans(length: int, step: int) -> Iterator[tuple[int, int]]:
    for start in range(0, length, max(1, step)):
        yield start, min(length, start + max(1, step))
