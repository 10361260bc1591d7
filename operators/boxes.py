"""Parser of the boxes in HEIC and AVIF files (ISO/IEC 14496-12) that tolerates damaged, untrusted bytes."""

import struct
import zlib
from collections.abc import Iterator
from itertools import islice

_MOST = 100_000  # maximum boxes, items, and extents that are read
_XMP_TYPE = b"application/rdf+xml"
_ZLIB_OR_GZIP, _DEFLATE = 47, -15  # window sizes for zlib


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each box between `start` and `end` in `data`, and the start and end of the box's content.

    A box may declare an end beyond the data.
    """
    end = len(data) if end is None else min(end, len(data))
    for _ in range(_MOST):
        if start + 8 > end:
            return
        size, name = struct.unpack_from(">I4s", data, start)
        header = 8
        if size == 1 and start + 16 <= end:  # a 64-bit size follows
            header, (size,) = 16, struct.unpack_from(">Q", data, start + 8)
        stop = end if size == 0 else start + max(size, header)
        yield name, start + header, stop
        start = stop


def xmp_items(data: bytes, most: int) -> Iterator[bytes | None]:
    """Yield the XMP and EXIF items that the meta box lists (8.11.3, 8.11.6), up to `most` bytes in total.

    None stands for an item in an encoding that can't be decoded.
    """
    for name, start, stop in boxes(data):
        if name == b"meta":
            inside = {kind: (begin, end) for kind, begin, end in boxes(data, start + 4, stop)}
            try:
                yield from _packets(data, inside, most)
            except (struct.error, IndexError):
                return


def _packets(data: bytes, inside: dict[bytes, tuple[int, int]], most: int) -> Iterator[bytes | None]:
    if b"iinf" not in inside or b"iloc" not in inside:
        return
    wanted = dict(_xmp_numbers(data, *inside[b"iinf"]))
    stored = inside.get(b"idat", (len(data), len(data)))[0]
    for number, is_inside, extents in _places(data, inside[b"iloc"][0]):
        most -= sum(length for _, length in extents) if number in wanted else 0
        if number in wanted and most >= 0:
            shift = stored if is_inside else 0
            packet = b"".join(data[shift + at : shift + at + length] for at, length in extents)
            decoded = _inflate(packet, most) if wanted[number] else packet
            most -= len(decoded or b"") - len(packet)
            yield decoded


def _inflate(packet: bytes, most: int) -> bytes | None:
    """Decompress an item up to `most` bytes. The names of encodings aren't reliable, so the format is tried."""
    for window in (_ZLIB_OR_GZIP, _DEFLATE):
        try:
            return zlib.decompressobj(window).decompress(packet, most) if most > 0 else b""
        except zlib.error:
            continue
    return None


def _xmp_numbers(data: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield the number of each XMP and EXIF item, and the name of its encoding, which is empty for plain text."""
    short = data[start] == 0
    for name, begin, stop in boxes(data, start + (6 if short else 8), end):
        if name != b"infe" or data[begin] not in (2, 3):
            continue
        number = _whole(data, begin + 4, 2 if data[begin] == 2 else 4)
        entry = data[begin + (8 if data[begin] == 2 else 10) : stop]
        _, media_type, encoding, *_ = [*entry[4:].split(b"\0"), b"", b""]
        if entry[:4] == b"Exif":
            yield number, b""
        elif entry[:4] == b"mime" and media_type == _XMP_TYPE:
            yield number, encoding


def _places(data: bytes, start: int) -> Iterator[tuple[int, bool, list[tuple[int, int]]]]:
    """Yield each item's number, whether its offsets are relative to the idat box, and its extents (offset, length)."""
    version, sizes = data[start], _whole(data, start + 4, 2)
    offset_size, length_size, base_size, index_size = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    wide = 4 if version == 2 else 2
    count, at = _whole(data, start + 6, wide), start + 6 + wide
    left = _MOST  # entries may have no bytes, so their number isn't bounded by the data's size
    for _ in range(min(count, _MOST)):
        number, at = _whole(data, at, wide), at + wide
        method = 0
        if version in (1, 2):
            method, at = _whole(data, at, 2) & 15, at + 2
        base, at = _whole(data, at + 2, base_size), at + 2 + base_size
        pieces, at = _whole(data, at, 2), at + 2
        extents = []
        left -= pieces
        if left < 0:
            return
        for _ in range(pieces):
            at += index_size if version in (1, 2) else 0
            extents.append((base + _whole(data, at, offset_size), _whole(data, at + offset_size, length_size)))
            at += offset_size + length_size
        yield number, method == 1, extents


def _whole(data: bytes, start: int, size: int) -> int:
    piece = data[start : start + size]
    if len(piece) != size:
        raise struct.error("the data end here")
    return int.from_bytes(piece, "big")


def uuids(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the type and the content of each top-level `uuid` box."""
    for name, start, stop in islice(boxes(data), _MOST):
        if name == b"uuid":
            yield data[start : start + 16], data[start + 16 : stop]
