"""COCO run-length encoding of masks: column-major runs, compressed into ASCII."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A count is written in groups of five bits, lowest first; bit 32 says that another group follows, and a set
# bit 16 in the last group says that the number is negative. 48 moves all this into printable ASCII.
_BITS = 5
_GROUPS = 13
_MORE = 0x20
_SIGN = 0x10
_ASCII = 48


@dataclass(frozen=True)
class Rle:
    """A mask in COCO's compressed form.

    Attributes:
        size: (height, width) in pixels.
        counts: lengths of alternating runs of 0 and 1, the first of 0, in column-major order, compressed.
    """

    size: tuple[int, int]
    counts: str


def encode(mask: NDArray[np.bool_]) -> Rle:
    """Encodes a whole mask, (height, width) bool."""
    height, width = mask.shape
    return encode_patch(mask, (0, 0), (height, width))


def encode_patch(patch: NDArray[np.bool_], corner: tuple[int, int], size: tuple[int, int]) -> Rle:
    """Encodes a mask given by its pixels inside a window; all outside the window is background.

    Args:
        patch: (window height, window width) bool.
        corner: (x, y) of the window's top left pixel in the frame.
        size: (height, width) of the frame, which must hold the window.

    Raises ValueError when the window leaves the frame.
    """
    x, y = corner
    height, width = size
    if x < 0 or y < 0 or y + patch.shape[0] > height or x + patch.shape[1] > width:
        raise ValueError(f"a window of {patch.shape} at x={x}, y={y} leaves the frame of {size}")
    return encode_runs(*_column_runs(np.ascontiguousarray(patch.T), x * height + y, height), size)


def encode_runs(starts: NDArray[np.int64], ends: NDArray[np.int64], size: tuple[int, int]) -> Rle:
    """Encodes a mask given by runs of foreground in each column, in column-major order.

    Args:
        starts: (R,) positions y + x * height of the runs' first pixels in the frame.
        ends: (R,) positions after the runs' last pixels.
        size: (height, width) of the frame.
    """
    height, width = size
    # A run that ends at the bottom of a column and goes on at the top of the next is one run.
    joined = starts[1:] == ends[:-1]
    starts = starts[np.concatenate(([True], ~joined))[: starts.size]]
    ends = ends[np.concatenate((~joined, [True]))[: ends.size]]
    borders = np.empty(2 * starts.size + 1, dtype=np.int64)
    borders[:-1:2] = starts
    borders[1::2] = ends
    borders[-1] = height * width
    counts = np.diff(borders, prepend=0)
    if counts.size > 1 and counts[-1] == 0:
        counts = counts[:-1]
    return Rle((height, width), compress(counts))


def decode(rle: Rle) -> NDArray[np.bool_]:
    """The mask, (height, width) bool. Raises ValueError when the counts do not fill the size."""
    height, width = rle.size
    counts = _checked_counts(rle)
    values = np.zeros(counts.size, dtype=np.bool_)
    values[1::2] = True
    return np.ascontiguousarray(np.repeat(values, counts).reshape(width, height).T)


def area(rle: Rle) -> int:
    """Foreground pixels. Raises ValueError when the counts do not fill the size."""
    return int(_checked_counts(rle)[1::2].sum())


def compress(counts: NDArray[np.int64]) -> str:
    """Run lengths, (N,) int64, as ASCII: from the fourth on, the difference to the count two before."""
    rest = counts.astype(np.int64)
    rest[3:] -= counts[1:-2]
    groups = np.zeros((counts.size, _GROUPS), dtype=np.uint8)
    used = np.zeros((counts.size, _GROUPS), dtype=np.bool_)
    pending = np.ones(counts.size, dtype=np.bool_)
    for index in range(_GROUPS):
        low = rest & 0x1F
        rest >>= _BITS
        more = np.where(low & _SIGN, rest != -1, rest != 0)
        groups[:, index] = low | np.where(more, _MORE, 0)
        used[:, index] = pending
        pending = pending & more
        if not pending.any():
            break
    return bytes(groups[used] + _ASCII).decode("ascii")


def decompress(text: str) -> NDArray[np.int64]:
    """Run lengths, (N,) int64, of what `compress` wrote. Raises ValueError for text that it cannot write."""
    symbols = np.frombuffer(text.encode("ascii", errors="replace"), dtype=np.uint8).astype(np.int64) - _ASCII
    if symbols.size == 0:
        return np.zeros(0, dtype=np.int64)
    if symbols.min() < 0 or symbols.max() > 0x3F or symbols[-1] & _MORE:
        raise ValueError("these RLE counts are damaged: a character outside COCO's alphabet, or a cut end")
    last = np.flatnonzero((symbols & _MORE) == 0)
    first = np.concatenate(([0], last[:-1] + 1))
    lengths = last - first + 1
    if lengths.max() >= _GROUPS:
        raise ValueError("these RLE counts are damaged: a number of more than 60 bits")
    shifts = _BITS * (np.arange(symbols.size) - np.repeat(first, lengths))
    counts = np.add.reduceat((symbols & 0x1F) << shifts, first)
    negative = (symbols[last] & _SIGN) != 0
    counts[negative] -= np.int64(1) << (_BITS * lengths[negative])
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts


def _checked_counts(rle: Rle) -> NDArray[np.int64]:
    counts = decompress(rle.counts)
    pixels = rle.size[0] * rle.size[1]
    if counts.size == 0 or counts.min() < 0 or int(counts.sum()) != pixels:
        raise ValueError(
            f"the RLE counts cover {int(counts.sum())} pixels: expected {pixels}, "
            f"for {rle.size[0]} rows of {rle.size[1]}"
        )
    return counts


def _column_runs(columns: NDArray[np.bool_], origin: int, stride: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and exclusive ends of the runs of each column, as positions in the column-major frame.

    `columns` is (columns, pixels); the pixel (c, p) stands at `origin + c * stride + p` of the frame.
    """
    count, length = columns.shape
    padded = np.zeros((count, length + 2), dtype=np.bool_)
    padded[:, 1:-1] = columns
    changes = np.flatnonzero(padded[:, 1:] != padded[:, :-1])
    column, pixel = np.divmod(changes, length + 1)
    positions = origin + column * stride + pixel
    return positions[0::2], positions[1::2]
