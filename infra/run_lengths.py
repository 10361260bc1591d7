"""COCO's compressed run lengths, as ASCII text."""

import numpy as np
from numpy.typing import NDArray

# A count is written in groups of five bits, lowest bits first. The bit with value 32 means that another group follows.
# In the last group, the bit with value 16 means that the number is negative. Adding 48 turns each group into a
# printable ASCII character.
BITS = 5
GROUPS = 13
MORE = 0x20
SIGN = 0x10
ASCII = 48
LAST_SYMBOL = 0x3F


def compress(counts: NDArray[np.int64]) -> str:
    """Compress run lengths, (N,) int64, to ASCII.

    From the fourth run on, a length is stored as the difference from the length two runs earlier.
    """
    rest = counts.astype(np.int64)
    rest[3:] -= counts[1:-2]
    groups = np.zeros((counts.size, GROUPS), dtype=np.uint8)
    used = np.zeros((counts.size, GROUPS), dtype=np.bool_)
    pending = np.ones(counts.size, dtype=np.bool_)
    for index in range(GROUPS):
        low = rest & 0x1F
        rest >>= BITS
        more = np.where(low & SIGN, rest != -1, rest != 0)
        groups[:, index] = low | np.where(more, MORE, 0)
        used[:, index] = pending
        pending = pending & more
        if not pending.any():
            break
    return bytes(groups[used] + ASCII).decode("ascii")


def decompress(text: str) -> NDArray[np.int64]:
    """Decompress text that `compress` wrote into run lengths, (N,) int64. Raises ValueError for any other text."""
    # The bytes of non-ASCII text are outside the alphabet, so they are rejected below.
    data = text.encode("utf-8", errors="surrogatepass")
    symbols = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - ASCII
    if symbols.size == 0:
        return np.zeros(0, dtype=np.int64)
    if symbols.min() < 0 or symbols.max() > LAST_SYMBOL or symbols[-1] & MORE:
        raise ValueError("these RLE counts are damaged: a character outside COCO's alphabet, or a truncated end")
    last = np.flatnonzero((symbols & MORE) == 0)
    first = np.concatenate(([0], last[:-1] + 1))
    lengths = last - first + 1
    if lengths.max() >= GROUPS:
        raise ValueError("these RLE counts are damaged: a number of more than 60 bits")
    shifts = BITS * (np.arange(symbols.size) - np.repeat(first, lengths))
    counts = np.add.reduceat((symbols & 0x1F) << shifts, first)
    negative = (symbols[last] & SIGN) != 0
    counts[negative] -= np.int64(1) << (BITS * lengths[negative])
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts
