"""Keyed random numbers, which are the same for a mask on any device and in any process.

To get a number, this module applies the output function of SplitMix64 (Steele, Lea and Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014) to a key and a counter. The function uses only integers, so CPUs and GPUs
compute the same bits. torch's generators aren't suitable: their numbers differ between devices and, because the
generators have a state, depend on earlier draws.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# Constants of SplitMix64 as signed 64-bit integers. torch's integers wrap around like unsigned integers in C.
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)

_FRACTION_BITS = 52  # the half that is added below uses the last of float64's 53 bits


def draw_keys(seed: int, step: int, masks: Sequence[int], iteration: int) -> Tensor:
    """Return the keys of one iteration for N masks, (N,) int64 on the CPU. All arguments must be under 2^63."""
    key = random_bits(random_bits(torch.zeros(1, dtype=torch.int64), seed), step)
    return random_bits(random_bits(key, torch.tensor(masks, dtype=torch.int64)), iteration)


def random_bits(keys: Tensor, counters: Tensor | int) -> Tensor:
    """Return 64 random bits, as int64, for each pair of a key and a counter. Keys and counters broadcast."""
    z = keys + (torch.as_tensor(counters, dtype=torch.int64, device=keys.device) + 1) * _STEP
    z = (z ^ _shift_right(z, 30)) * _FIRST
    z = (z ^ _shift_right(z, 27)) * _SECOND
    return z ^ _shift_right(z, 31)


def uniforms(keys: Tensor, count: int) -> Tensor:
    """Draw `count` uniform numbers in the open interval (0, 1) for each key (N,), as (N, count) float64."""
    bits = random_bits(keys[:, None], torch.arange(count, device=keys.device))
    return (_shift_right(bits, 64 - _FRACTION_BITS) + 0.5) / (1 << _FRACTION_BITS)


def highest_pixels(regions: Tensor, keys: Tensor) -> Tensor:
    """Choose one pixel of each region with uniform probability: the highest one in the noise field of the region's key.

    `regions` is (N, H, W) bool, and `keys` is (N,) int64. Returns indices into the flattened H x W, (N,) int64, with -1
    for empty regions. A key always has the same noise field. If rounding makes the masks of two workers differ, they
    still click on the same pixel, unless it's one of the few pixels in which the masks differ. The noise is computed
    only for pixels inside the regions.
    """
    mask, pixel = regions.flatten(1).nonzero().unbind(1)
    height = random_bits(keys.to(regions.device)[mask], pixel)
    lowest = torch.iinfo(torch.int64).min
    peaks = torch.full((len(regions),), lowest, device=regions.device).scatter_reduce(0, mask, height, "amax")
    chosen = height == peaks[mask]
    found = torch.full((len(regions),), -1, device=regions.device)
    # Two pixels may have the same height, although with 2^64 heights, this is very unlikely. Reduce by amax so that
    # they don't race.
    return found.scatter_reduce(0, mask[chosen], pixel[chosen], "amax")


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Shift right logically. torch's own shift extends the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
