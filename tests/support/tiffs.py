"""Writer of uncompressed and simply compressed TIFFs in layouts that Pillow doesn't write."""

import struct
import zlib
from collections.abc import Mapping

import numpy as np

RAW, DEFLATE, PACKBITS = 1, 8, 32773
_CODES = {1: "B", 3: "H", 4: "I"}
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

Values = tuple[int, list[int]]  # the type of a tag's values, and the values


def tiff(
    samples: np.ndarray,
    bits: int,
    photometric: int,
    *,
    separate: bool = False,
    compression: int = RAW,
    reversed_bits: bool = False,
    order: str = "<",
    tile: int | None = None,
    rows: int = 16,
    tags: Mapping[int, Values | None] | None = None,
) -> bytes:
    """A TIFF of `samples`, (H, W, N) or (H, W), each of `bits`. `tags` replace those that are written otherwise."""
    height, width = samples.shape[:2]
    samples = samples.reshape(height, width, -1)
    count = samples.shape[2]
    planes = [samples[:, :, index : index + 1] for index in range(count)] if separate else [samples]
    parts = []
    for plane in planes:
        for top in range(0, height, tile or rows):
            if tile is None:
                parts.append(packed_rows(plane[top : top + rows], bits, order))
                continue
            for left in range(0, width, tile):
                piece = plane[top : top + tile, left : left + tile]
                padding = ((0, tile - piece.shape[0]), (0, tile - piece.shape[1]), (0, 0))
                parts.append(packed_rows(np.pad(piece, padding), bits, order))
    if compression == DEFLATE:
        parts = [zlib.compress(part) for part in parts]
    if compression == PACKBITS:
        parts = [_packbits(part) for part in parts]
    if reversed_bits:
        parts = [part.translate(_REVERSED) for part in parts]
    parts = [part + bytes(len(part) % 2) for part in parts]
    starts = np.cumsum([8, *map(len, parts)]).tolist()
    entries: dict[int, Values | None] = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * count), 259: (3, [compression]),
        262: (3, [photometric]), 266: (3, [2]) if reversed_bits else None, 277: (3, [count]),
        284: (3, [2 if separate else 1]),
    }  # fmt: skip
    if tile is None:
        entries |= {273: (4, starts[:-1]), 278: (4, [rows]), 279: (4, [len(part) for part in parts])}
    else:
        entries |= {322: (4, [tile]), 323: (4, [tile]), 324: (4, starts[:-1]), 325: (4, [len(part) for part in parts])}
    written = {tag: value for tag, value in sorted((entries | dict(tags or {})).items()) if value is not None}
    behind = starts[-1] + 2 + 12 * len(written) + 4
    directory, rest = struct.pack(order + "H", len(written)), b""
    for tag, (kind, values) in written.items():
        content = struct.pack(f"{order}{len(values)}{_CODES[kind]}", *values)
        if len(content) > 4:
            place = struct.pack(order + "I", behind + len(rest))
            rest += content + bytes(len(content) % 2)
            content = place
        directory += struct.pack(order + "HHI4s", tag, kind, len(values), content)
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", starts[-1])
    return header + b"".join(parts) + directory + bytes(4) + rest


def packed_rows(samples: np.ndarray, bits: int, order: str) -> bytes:
    """Rows of samples, each padded to whole bytes."""
    lines = samples.reshape(samples.shape[0], -1)
    if bits >= 8 and bits != 12:
        return lines.astype(f"{order}u{bits // 8}").tobytes()
    each = (lines[:, :, None].astype(int) >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(each.reshape(len(lines), -1).astype(np.uint8), axis=1).tobytes()


def _packbits(data: bytes) -> bytes:
    """Literal runs of up to 128 bytes."""
    runs = [data[start : start + 128] for start in range(0, len(data), 128)]
    return b"".join(bytes([len(run) - 1]) + run for run in runs)
