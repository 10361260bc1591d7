"""Random numbers by key: the same for a mask on any device, in any process, whatever else was drawn before.

They are the output function of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014) of a key and a counter. Integers alone are computed, so that CPUs and GPUs get the same bits. A generator
of torch has a state, and its numbers depend on the device and on how many were drawn.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# The constants of SplitMix64, as signed 64-bit integers; torch's integers wrap around, as C's unsigned ones do.
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)

_FRACTION_BITS = 52  # with the half that is added below, float64's 53


def draw_keys(seed: int, step: int, masks: Sequence[int], iteration: int) -> Tensor:
    """The (N,) int64 keys of one iteration for N masks, on the CPU; all arguments are under 2^63."""
    key = random_bits(random_bits(torch.zeros(1, dtype=torch.int64), seed), step)
    return random_bits(random_bits(key, torch.tensor(masks, dtype=torch.int64)), iteration)


def random_bits(keys: Tensor, counters: Tensor | int) -> Tensor:
    """64 random bits, as int64, for each pair of a key and a counter; the two broadcast."""
    z = keys + (torch.as_tensor(counters, dtype=torch.int64, device=keys.device) + 1) * _STEP
    z = (z ^ _shift_right(z, 30)) * _FIRST
    z = (z ^ _shift_right(z, 27)) * _SECOND
    return z ^ _shift_right(z, 31)


def uniforms(keys: Tensor, count: int) -> Tensor:
    """(N, count) float64 between 0 and 1, neither of them included, for keys (N,)."""
    bits = random_bits(keys[:, None], torch.arange(count, device=keys.device))
    return (_shift_right(bits, 64 - _FRACTION_BITS) + 0.5) / (1 << _FRACTION_BITS)


def highest_pixels(regions: Tensor, keys: Tensor) -> Tensor:
    """One pixel of each region, uniformly: the one that is highest in the fixed noise field of its key.

    `regions` (N, H, W) bool, `keys` (N,) int64. Returns (N,) int64 indices into the flattened H x W, and -1 for an
    empty region. A region that differs in a few pixels has the same highest pixel, unless it is among those: two
    workers whose masks differ by rounding click on the same pixel. Only pixels of the regions are computed.
    """
    mask, pixel = regions.flatten(1).nonzero().unbind(1)
    height = random_bits(keys.to(regions.device)[mask], pixel)
    lowest = torch.iinfo(torch.int64).min
    peaks = torch.full((len(regions),), lowest, device=regions.device).scatter_reduce(0, mask, height, "amax")
    chosen = height == peaks[mask]
    found = torch.full((len(regions),), -1, device=regions.device)
    # By amax, so that two pixels of one height, which 2^64 heights hardly ever give, do not race.
    return found.scatter_reduce(0, mask[chosen], pixel[chosen], "amax")


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Shift in zeros from the left; torch's own shift repeats the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
