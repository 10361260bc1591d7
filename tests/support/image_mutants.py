"""Images changed as damage or an attacker changes them: bits, bytes, sizes, blocks of metadata, two files in one."""

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from tests.support.bad_images import animation, exif, frames, heic, photograph, png_chunk, swapped_profile

_RECOGNIZED = 0.7  # share of images whose first bytes remain, so that the container's decoder gets them
_SIZES = ((64, 48), (96, 72), (131, 67), (48, 160))
_NUMBERS = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_WORDS = (
    *(bytes((0xFF, marker)) for marker in (0xD8, 0xD9, 0xDA, 0xC0, 0xC2, 0xC4, 0xE1, 0xE2)),
    *b"IDAT IEND acTL fcTL fdAT iCCP eXIf tRNS PLTE zTXt iTXt VP8L VP8X ALPH ANIM ANMF EXIF ICCP".split(),
    *(b"VP8 ", b"XMP ", b"II*\0", b"MM\0*", b"Exif\0\0", b"MPF\0", b"ICC_PROFILE\0", b"Adobe"),
    *(b"http://ns.adobe.com/xap/1.0/\0", b"NETSCAPE2.0", b"\x21\xf9\x04", b"\x2c\0\0\0\0"),
    *b"acsp mft2 para curv".split(),
)
_CHUNKS = b"iCCP eXIf tRNS PLTE zTXt iTXt tEXt acTL fcTL fdAT gAMA cHRM sRGB pHYs IHDR IDAT tIME".split()
_TAGS = (
    *(254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 296, 317, 320, 322, 324, 325, 330, 338, 339),
    *(347, 513, 514, 700, 34665, 34675, 50706),
)


@dataclass(frozen=True)
class ImageMutant:
    """A changed image and what was done to it."""

    how: str
    data: bytes


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _small(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    return photograph().resize(size).convert(mode)


@cache
def sources() -> tuple[tuple[str, bytes], ...]:
    """Small whole images of every container that Pillow can write, with and without metadata, by their names."""
    made: dict[str, bytes] = {}
    text = PngInfo()
    text.add_text("Comment", "a text " * 30, zip=True)
    text.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta xmlns:x='adobe:ns:meta/'/>", zip=True)
    first, *others = (each.resize((64, 48)) for each in frames(3))
    gray16 = Image.fromarray(np.asarray(_small((80, 60), "L")).astype(np.uint16) * 257)
    xmp, profile, small_exif = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>", swapped_profile(), exif(6)
    gray_profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for number, size in enumerate(_SIZES):
        image = _small(size)
        made[f"jpeg{number}"] = _saved(image, "JPEG", quality=60 + 10 * number)
        made[f"png{number}"] = _saved(image, "PNG")
        made[f"webp{number}"] = _saved(image, "WEBP", lossless=bool(number % 2))
        made[f"gif{number}"] = _saved(image, "GIF")
    image = _small((80, 64))
    made |= {
        "jpeg_meta": _saved(image, "JPEG", exif=small_exif, icc_profile=profile, xmp=xmp, comment=b"a comment"),
        "jpeg_progressive": _saved(image, "JPEG", progressive=True, exif=small_exif),
        "jpeg_gray": _saved(image.convert("L"), "JPEG", icc_profile=gray_profile),
        "jpeg_cmyk": _saved(image.convert("CMYK"), "JPEG"),
        "jpeg_restart": _saved(image, "JPEG", restart_marker_blocks=3, subsampling=0),
        "mpo": _saved(first, "MPO", save_all=True, append_images=others, exif=small_exif),
        "png_meta": _saved(image, "PNG", exif=small_exif, icc_profile=profile, pnginfo=text, dpi=(72, 72)),
        "png_palette": _saved(image.quantize(16), "PNG", transparency=bytes(range(0, 256, 16))),
        "png_alpha": _saved(image.convert("RGBA"), "PNG"),
        "png_one_bit": _saved(image.convert("1"), "PNG", bits=1),
        "png_gray_alpha": _saved(image.convert("LA"), "PNG"),
        "png_gray16": _saved(gray16, "PNG"),
        "apng": _saved(first, "PNG", save_all=True, append_images=others, duration=50),
        "webp_meta": _saved(image, "WEBP", exif=small_exif, icc_profile=profile, xmp=xmp),
        "webp_alpha": _saved(image.convert("RGBA"), "WEBP"),
        "webp_animated": _saved(first, "WEBP", save_all=True, append_images=others),
        "gif_animated": _saved(first, "GIF", save_all=True, append_images=others, comment=b"a comment"),
        "gif_transparent": _saved(image.quantize(32), "GIF", transparency=3, interlace=1),
        "bmp": _saved(image, "BMP"),
        "bmp_palette": _saved(image.quantize(256), "BMP"),
        "bmp_one_bit": _saved(image.convert("1"), "BMP"),
        "bmp_alpha": _saved(image.convert("RGBA"), "BMP"),
        "tiff_gray16": _saved(gray16, "TIFF"),
        "tiff_meta": _saved(image, "TIFF", exif=small_exif, icc_profile=profile, description="text", dpi=(72, 72)),
        "tiff_pages": animation("TIFF", 3),
        "tiff_palette": _saved(image.quantize(16), "TIFF"),
        "tiff_cmyk": _saved(image.convert("CMYK"), "TIFF"),
        "tiff_alpha": _saved(image.convert("RGBA"), "TIFF"),
        "tiff_big": _saved(image, "TIFF", big_tiff=True),
        "tiff_fax": _saved(image.convert("1"), "TIFF", compression="group4"),
        "tiff_float": _saved(image.convert("F"), "TIFF"),
        "tiff_lab": _saved(image.convert("LAB"), "TIFF"),
        "jp2": _saved(image, "JPEG2000"),
        "avif": _saved(image, "AVIF", speed=10),
        "avif_meta": _saved(image, "AVIF", speed=10, exif=small_exif, icc_profile=profile, xmp=xmp),
        "heic": heic("opted_out"),
        "heic_alpha": heic("alpha"),
        "ico": _saved(image, "ICO"),
        "ppm": _saved(image, "PPM"),
        "dds": _saved(image, "DDS"),
    }
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "lzma"):
        made[f"tiff_{compression.removeprefix('tiff_')}"] = _saved(image, "TIFF", compression=compression)
    return tuple(made.items())


def mutants(count: int, seed: int) -> Iterator[ImageMutant]:
    """Yield `count` changed images, the same for a seed."""
    source = random.Random(seed)
    for _ in range(count):
        name, whole = source.choice(sources())
        data = whole
        changes = [source.choice(_CHANGES) for _ in range(source.choice((1, 1, 1, 2, 3, 5)))]
        for change in changes:
            if not data:
                break
            data = change(data, source)
        if source.random() < _RECOGNIZED:
            data = whole[:12] + data[12:]
        yield ImageMutant(f"{name}: {', '.join(change.__name__.strip('_') for change in changes)}", data)


def _place(data: bytes, source: random.Random) -> int:
    """Return a position, most often in the first bytes, where headers are."""
    return source.randrange(min(len(data), source.choice((32, 128, 600, len(data)))))


def _bits(data: bytes, source: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(source.choice((1, 1, 2, 8, 60))):
        changed[_place(data, source)] ^= 1 << source.randrange(8)
    return bytes(changed)


def _bytes(data: bytes, source: random.Random) -> bytes:
    place, length = _place(data, source), source.choice((1, 2, 4, 16, 200))
    return data[:place] + source.randbytes(length) + data[place + length :]


def _cut(data: bytes, source: random.Random) -> bytes:
    return data[: source.randrange(len(data))]


def _cut_out(data: bytes, source: random.Random) -> bytes:
    place = _place(data, source)
    return data[:place] + data[place + source.choice((1, 2, 4, 30, 500)) :]


def _twice(data: bytes, source: random.Random) -> bytes:
    place, length = _place(data, source), source.choice((2, 12, 60, 900))
    return data[: place + length] + data[place : place + length] * source.choice((1, 1, 3, 40)) + data[place + length :]


def _splice(data: bytes, source: random.Random) -> bytes:
    """The beginning of one image and the end of another."""
    _, other = source.choice(sources())
    return data[: source.randrange(1, len(data) + 1)] + other[source.randrange(len(other)) :]


def _nest(data: bytes, source: random.Random) -> bytes:
    """One image in the middle of another."""
    _, other = source.choice(sources())
    place = _place(data, source)
    return data[:place] + other + data[place:]


def _number(data: bytes, source: random.Random) -> bytes:
    """An edge of a number's range in place of two, four or eight bytes."""
    order, kind = source.choice("<>"), source.choice("HIQ")
    size = struct.calcsize(kind)
    packed = struct.pack(order + kind, source.choice(_NUMBERS) & ((1 << 8 * size) - 1))
    place = _place(data, source)
    return data[:place] + packed + data[place + size :]


def _word(data: bytes, source: random.Random) -> bytes:
    """A marker or a chunk's name, over what is there or between it."""
    word, place = source.choice(_WORDS), _place(data, source)
    return data[:place] + word + data[place + source.choice((0, len(word))) :]


def _directory(data: bytes, source: random.Random) -> bytes:
    """A tag of a TIFF's first directory, also inside EXIF, with another kind, count, number or value."""
    start = max(data.find(b"II*\0"), data.find(b"MM\0*"))
    if start < 0 or start + 8 > len(data):
        return _number(data, source)
    order = "<" if data[start : start + 1] == b"I" else ">"
    (offset,) = struct.unpack_from(f"{order}I", data, start + 4)
    table = start + offset
    if table + 2 > len(data):
        return _bytes(data, source)
    (entries,) = struct.unpack_from(f"{order}H", data, table)
    entry = table + 2 + 12 * source.randrange(max(1, min(entries, 40)))
    if entry + 12 > len(data):
        return _bytes(data, source)
    changed = bytearray(data)
    which = source.randrange(4)
    if which == 0:
        struct.pack_into(f"{order}H", changed, entry, source.choice(_TAGS))
    elif which == 1:
        struct.pack_into(f"{order}H", changed, entry + 2, source.randrange(20))
    elif which == 2:
        struct.pack_into(f"{order}I", changed, entry + 4, source.choice(_NUMBERS))
    else:
        struct.pack_into(f"{order}I", changed, entry + 8, source.choice((*_NUMBERS, offset, len(data), len(data) - 1)))
    return bytes(changed)


def _chunks(data: bytes, source: random.Random) -> bytes:
    """A PNG with a chunk added, and all sums right again, so that what is behind them is reached."""
    if not data.startswith(b"\x89PNG"):
        return _word(data, source)
    position, pieces = 8, []
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        pieces.append((kind, data[position + 8 : position + 8 + min(length, len(data))]))
        position += 12 + length
    contents = (
        b"",
        source.randbytes(source.randrange(1, 40)),
        b"a\0\0" + zlib.compress(source.randbytes(60)),
        b"a\0\0" + zlib.compress(bytes(2_000_000)),
        struct.pack(">IIIIIHHBB", 0, 9, 9, 0, 0, 1, 1, 0, 0),
    )
    added = source.choice(_CHUNKS), source.choice(contents)
    pieces.insert(source.randrange(len(pieces) + 1), added)
    if source.random() < 0.5:
        place = source.randrange(len(pieces))
        if pieces[place][1]:
            pieces[place] = (pieces[place][0], _bits(pieces[place][1], source))
    return data[:8] + b"".join(png_chunk(*piece) for piece in pieces)


def _segments(data: bytes, source: random.Random) -> bytes:
    """A JPEG with one more segment behind its start: odd profiles, EXIF, an index of images, Adobe's marker."""
    if not data.startswith(b"\xff\xd8"):
        return _bits(data, source)
    profile = swapped_profile()
    cut = source.randrange(len(profile))
    segments = (
        (0xE2, b"ICC_PROFILE\0" + bytes((source.randrange(4), source.randrange(4))) + profile[:cut]),
        (0xE2, b"ICC_PROFILE\0" + b"\1\1" + _bits(profile, source)),
        (0xE1, b"Exif\0\0" + _bits(exif(6)[6:], source)),
        (0xE1, b"Exif\0\0" + _directory(exif(source.randrange(20))[6:], source)),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"<x:xmpmeta" * 30),
        (0xE2, b"MPF\0II*\0" + struct.pack("<I", 8) + source.randbytes(60)),
        (0xEE, b"Adobe\0d\0\0\0\0" + bytes((source.randrange(4),))),
        (0xED, b"Photoshop 3.0\0" + b"8BIM\x03\xed" + source.randbytes(40)),
        (0xFE, source.randbytes(50)),
        (0xDD, source.randbytes(2)),
        (0xDB, source.randbytes(65)),
        (0xC4, source.randbytes(40)),
        (0xCC, source.randbytes(4)),
        (0xDC, source.randbytes(2)),
    )
    kind, content = source.choice(segments)
    content = content[:65_533]
    return data[:2] + bytes((0xFF, kind)) + struct.pack(">H", len(content) + 2) + content + data[2:]


def _profile(data: bytes, source: random.Random) -> bytes:
    """An embedded profile's numbers changed, where it is not packed."""
    place = data.find(b"acsp")
    if place < 36:
        return _bytes(data, source)
    changed = bytearray(data)
    for _ in range(source.choice((1, 3, 12))):
        struct.pack_into(
            ">I", changed, min(place - 36 + 4 * source.randrange(140), len(data) - 4), source.choice(_NUMBERS)
        )
    return bytes(changed)


_CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_bits, _bits, _bytes, _cut, _cut_out, _twice, _splice, _nest, _number, _number, _word, _directory, _directory),
    *(_chunks, _segments, _profile),
)
