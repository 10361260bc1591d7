"""Validation of external masks' run lengths: COCO's compressed form, in the canonical encoding that segmint writes."""

import numpy as np
from numpy.typing import NDArray

_BITS = 5
_MOST_GROUPS = 12
_MORE = 0x20
_SIGN = 0x10
_VALUE = 0x1F
_ASCII = 48
_LAST_SYMBOL = 0x3F

_Ints = NDArray[np.int64]


def canonical_area(counts: str, size: tuple[int, int]) -> int:
    """Return the number of pixels in a mask of `size` (height, width) with the compressed run lengths `counts`.

    Equal masks must have equal counts, so only the canonical encoding is valid. Raises `ValueError` in any of these
    cases: the text contains a character outside the alphabet or ends too early, a number takes more groups than
    necessary, a run after the first one is empty, or the runs don't fill the size.
    """
    runs = _numbers(counts)
    runs[1::2] = np.cumsum(runs[1::2])  # each number from the fourth on is the difference from the run two before
    runs[2::2] = np.cumsum(runs[2::2])
    pixels = size[0] * size[1]
    if runs.min() < 0 or runs.max() > pixels or int(runs.sum()) != pixels:
        raise ValueError(f"the runs do not fill {size[1]} x {size[0]} pixels")
    if (runs[1:] == 0).any():
        raise ValueError("a run without pixels after the first")
    return int(runs[1::2].sum())


def _numbers(counts: str) -> _Ints:
    # Non-ASCII characters become bytes outside the alphabet.
    data = counts.encode("utf-8", errors="surrogatepass")
    symbols = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - _ASCII
    if symbols.size == 0:
        raise ValueError("no run lengths")
    if symbols.min() < 0 or symbols.max() > _LAST_SYMBOL or symbols[-1] & _MORE:
        raise ValueError("a character outside COCO's alphabet, or a truncated end")
    last = np.flatnonzero((symbols & _MORE) == 0)
    first = np.concatenate(([0], last[:-1] + 1))
    groups = last - first + 1
    if groups.max() > _MOST_GROUPS:
        raise ValueError("a number of more than 60 bits")
    long = last[groups > 1]
    needless = np.where(symbols[long - 1] & _SIGN, _VALUE, 0)  # a group that only repeats the sign of the previous one
    if (symbols[long] & _VALUE == needless).any():
        raise ValueError("a number in more groups than it needs")
    shifts = _BITS * (np.arange(symbols.size) - np.repeat(first, groups))
    numbers: _Ints = np.add.reduceat((symbols & _VALUE) << shifts, first)
    negative = (symbols[last] & _SIGN) != 0
    numbers[negative] -= np.int64(1) << (_BITS * groups[negative])
    return numbers
