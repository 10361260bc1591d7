"""Files that are small but exhaust a reader: by the sizes in their headers, or by their content."""

import io
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from PIL import Image

from segmint.catalogs.findings import Reason
from tests.support.bad_images import animation, encode, photograph, png, png_chunk

_ENDLESS = frozenset({Reason.TIMED_OUT, Reason.OUT_OF_MEMORY})


@dataclass(frozen=True)
class Bomb:
    """A function that makes a file, and the verdicts that it may get: by its header, or by the end of the child."""

    name: str
    make: Callable[[], bytes]
    reasons: frozenset[Reason]
    endless: bool = False  # whether a deadline alone ends it


def bombs() -> tuple[Bomb, ...]:
    """Every bomb; files are made on demand."""
    large, corrupt = frozenset({Reason.TOO_LARGE}), frozenset({Reason.CORRUPT})
    return (
        Bomb("png_of_4_exapixels", lambda: _png_saying(2**31 - 1, 2**31 - 1), large),
        Bomb("jpeg_of_4_gigapixels", lambda: jpeg_saying(65_535, 65_535), large),
        Bomb("gif_of_4_gigapixels", _largest_gif, large),
        Bomb("bmp_of_4_exapixels", _largest_bmp, large),
        Bomb("tiff_of_16_exapixels", lambda: _tiff([{256: 2**32 - 1, 257: 2**32 - 1}]), large | corrupt),
        Bomb("webp_of_4_gigapixels", _largest_webp, large | corrupt | _ENDLESS),
        Bomb("png_text_of_64_megabytes", lambda: _png_with(b"zTXt", b"Comment\0\0", 1, 64 << 20), corrupt),
        Bomb("png_profile_of_64_megabytes", lambda: _png_with(b"iCCP", b"icc\0\0", 1, 64 << 20), corrupt),
        Bomb("png_of_100_texts", lambda: _png_with(b"zTXt", b"Comment\0\0", 100, 1 << 20), corrupt),
        Bomb("tiff_of_5000_pages", lambda: _tiff([{}, *[{254: 1}] * 5_000]), frozenset({Reason.UNSUPPORTED_FORMAT})),
        Bomb("tiff_tiles_of_4_gigapixels", _tiff_tiles, corrupt | _ENDLESS | {Reason.TRUNCATED}),
        Bomb("jpeg_of_9000_scans", _jpeg_of_scans, _ENDLESS, endless=True),
    )


def tiff_whose_pages_go_round() -> bytes:
    """A TIFF whose second page is followed by itself."""
    return _tiff([{}, {254: 1}], last_next=lambda starts: starts[-1])


def hostile_tar(name: str, kind: bytes) -> bytes:
    """A tar of one member.

    It is a link to a file outside (`2`), a sparse file of 8 GB that takes no byte (`S`), or the header of a file of
    1 GB (`0`).
    """
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd" if kind == b"2" else ""
    member.size = 1 << 30 if kind == b"0" else 0
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    if kind == b"S":
        size = b"%011o\0" % (8**11 - 1)
        header[386:410] = size + b"%011o\0" % 0
        header[483:495] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    return bytes(header) + bytes(1024)


def _png_saying(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def _png_with(kind: bytes, before: bytes, count: int, size: int) -> bytes:
    """A photograph with chunks of zeros, packed, before its pixels."""
    chunk = png_chunk(kind, before + zlib.compress(bytes(size), 9))
    place = png().index(b"IDAT") - 4
    return png()[:place] + chunk * count + png()[place:]


def jpeg_saying(width: int, height: int) -> bytes:
    """A small baseline JPEG whose header says that it has so many pixels; decoders take up to 65,500 a side."""
    data = bytearray(encode(photograph(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _largest_gif() -> bytes:
    data = bytearray(encode(photograph(), "GIF"))
    data[6:10] = b"\xff\xff\xff\xff"
    return bytes(data)


def _largest_bmp() -> bytes:
    data = bytearray(encode(photograph(), "BMP"))
    data[18:26] = struct.pack("<ii", 2**31 - 1, 2**31 - 1)
    return bytes(data)


def _largest_webp() -> bytes:
    """Small frames on a canvas of 65,535 x 65,535 pixels, 16 GB."""
    data = bytearray(animation("WEBP", 2))
    place = data.index(b"VP8X") + 12
    data[place : place + 6] = (65_534).to_bytes(3, "little") * 2
    return bytes(data)


def _jpeg_of_scans() -> bytes:
    """The last scan of a progressive JPEG, over and over: each goes through all of 6000 x 6000 pixels."""
    data = encode(Image.new("L", (6000, 6000), 90), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 9000 + data[-2:]


def _tiff_tiles() -> bytes:
    """A picture of 100 x 100 pixels in one tile of 65,520 x 65,520."""
    packed = zlib.compress(bytes(100_000))
    tags = {259: 8, 322: 65_520, 323: 65_520, 324: 8, 325: len(packed), 256: 100, 257: 100}
    return _tiff([tags], pixels=packed, without=(273, 278, 279))


def _tiff(
    pages: Iterable[dict[int, int]],
    pixels: bytes = bytes(10_000),
    without: tuple[int, ...] = (),
    last_next: Callable[[list[int]], int] = lambda _: 0,
) -> bytes:
    """A TIFF of grey pages of 100 x 100 pixels that share their samples, each with these tags changed."""
    plain = {256: 100, 257: 100, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 100, 279: len(pixels)}
    tables = [sorted(({tag: v for tag, v in plain.items() if tag not in without} | page).items()) for page in pages]
    starts, position = [], 8 + len(pixels)
    for table in tables:
        starts.append(position)
        position += 2 + 12 * len(table) + 4
    stream = io.BytesIO()
    stream.write(struct.pack("<2sHI", b"II", 42, starts[0]) + pixels)
    for table, following in zip(tables, [*starts[1:], last_next(starts)], strict=True):
        stream.write(struct.pack("<H", len(table)))
        for tag, value in table:
            stream.write(struct.pack("<HHII", tag, 4, 1, value))
        stream.write(struct.pack("<I", following))
    return stream.getvalue()
