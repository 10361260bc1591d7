"""Codec for Label Studio's run lengths, which apply thi.ng's rle-pack format to the mask's RGBA pixels.

The format is a stream of bits, starting with the highest bit of each byte. It begins with a header: the number of
values (32 bits), the size of a value in bits minus one (5 bits), and the sizes in bits of four kinds of lengths, each
minus one (4 bits each). The header is followed by records. Each record contains a bit that is 1 for a run, the kind of
its length (2 bits), and the length minus one. After that, a run contains its value once, and any other record contains
`length` values.
"""

import contextlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmint.operators.annotations.image import Size, UnreadableMaskError

_CHANNELS = 4  # values per pixel; the last one is its opacity
_HEADER = 32 + 5 + 4 * 4  # bits

# As Label Studio's SDK writes: values of 8 bits, and lengths of up to 8, 16, 256, and 65,536 values.
_VALUE_BITS = 8
_LENGTH_BITS = np.array([3, 4, 8, 16])
_LENGTHS = 1 << _LENGTH_BITS
_SETTINGS = int(f"{_VALUE_BITS - 1:05b}" + "".join(f"{bits - 1:04b}" for bits in _LENGTH_BITS), 2)


def encode_runs(mask: NDArray[np.bool_]) -> list[int]:
    """Encode a mask, (height, width) bool, to the same bytes as Label Studio's `mask2rle` for the values 255 and 0."""
    flat = np.asarray(mask, dtype=bool).ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(starts, append=flat.size) * _CHANNELS
    kinds = np.searchsorted(_LENGTHS[:-1], lengths)
    pieces = -(-lengths // _LENGTHS[-1])  # only lengths of the longest kind may need several records
    last = np.cumsum(pieces) - 1
    kind, value = np.repeat(kinds, pieces), np.repeat(flat[starts], pieces) * 255
    length = np.full(kind.size, _LENGTHS[-1])
    length[last] = lengths - (pieces - 1) * _LENGTHS[-1]
    bits = _LENGTH_BITS[kind]
    records = ((((1 << 2 | kind) << bits) | (length - 1)) << _VALUE_BITS) | value
    fields = np.concatenate([[flat.size * _CHANNELS, _SETTINGS], records])
    widths = np.concatenate([[32, _HEADER - 32], 3 + bits + _VALUE_BITS])
    ends = np.cumsum(widths)
    below = np.repeat(ends, widths) - 1 - np.arange(ends[-1])  # distance of each bit from its field's lowest
    packed = np.packbits((np.repeat(fields, widths) >> below & 1).astype(np.uint8)).tolist()
    return packed if ends[-1] % 8 else [*packed, 0]  # the SDK adds one to eight zeros


def decode_runs(runs: Any, size: Size) -> NDArray[np.bool_]:
    """Decode a mask of `size` (height, width) to bool. A pixel is true unless it is fully transparent.

    Values may have 1 to 32 bits, and lengths 1 to 16. Raises `UnreadableMaskError` for damaged run lengths. If the
    number of pixels doesn't match `size`, raises it before decoding.
    """
    height, width = size
    data = _bytes(runs)
    count, total = height * width * _CHANNELS, 8 * len(data)
    announced = int.from_bytes(data[:4])
    if announced != count:
        raise UnreadableMaskError(f"its run lengths have {announced} values: expected {height} x {width} x 4")
    padded = data + bytes(8)  # 57 bits can be read at any position, and a record's fields take at most 51
    settings = int.from_bytes(padded[:8]) >> (64 - _HEADER)
    value_bits = (settings >> 16 & 31) + 1
    length_bits = [(settings >> shift & 15) + 1 for shift in (12, 8, 4, 0)]
    bits: NDArray[np.uint8] | None = None  # bits of all bytes, unpacked when the first literal values occur
    opaque = np.zeros(height * width, dtype=bool)
    done, at = 0, _HEADER
    while done < count:
        ahead = int.from_bytes(padded[at >> 3 : (at >> 3) + 8]) << (at & 7) & 0xFFFF_FFFF_FFFF_FFFF
        is_run, each = ahead >> 63, length_bits[ahead >> 61 & 3]
        end = done + 1 + (ahead >> (61 - each) & (1 << each) - 1)
        start = at + 3 + each
        at = start + value_bits * (1 if is_run else end - done)
        if at > total:
            raise UnreadableMaskError(f"its run lengths are cut off after {done} of {count} values")
        if end > count:
            raise UnreadableMaskError(f"its run lengths continue after their {count} values")
        # Every fourth value overall is the opacity of a pixel.
        if not is_run:
            bits = np.unpackbits(np.frombuffer(data, np.uint8)) if bits is None else bits
            values: NDArray[np.bool_] = bits[start:at].reshape(-1, value_bits).max(axis=1) > 0
            opaque[done // _CHANNELS : end // _CHANNELS] = values[_CHANNELS - 1 - done % _CHANNELS :: _CHANNELS]
        elif ahead >> (61 - each - value_bits) & (1 << value_bits) - 1:
            opaque[done // _CHANNELS : end // _CHANNELS] = True
        done = end
    return opaque.reshape(size)


def _bytes(runs: Any) -> bytes:
    if isinstance(runs, list):  # bytes() of a number would return that many zeros
        with contextlib.suppress(TypeError, ValueError):
            return bytes(runs)
    raise UnreadableMaskError("its run lengths are not a list of numbers from 0 to 255")
