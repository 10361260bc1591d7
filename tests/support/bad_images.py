"""Broken, odd and hostile images made from a real photograph, each with the verdict that it must get."""

import hashlib
import io
import json
import math
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin

from segmint.catalogs.findings import Reason

POISON = Path(__file__).parent / "poison"
"""On the PYTHONPATH of a process and its children, this folder makes `deadly_bitmap`s deadly (sitecustomize)."""

CRASH, HANG, EXIT, ALLOCATE = 1, 2, 3, 4


@dataclass(frozen=True)
class BadImage:
    """A file's name and bytes, and the verdict on it: None means accepted."""

    name: str
    data: bytes | None  # None: there is no such object
    reason: Reason | None
    stage: str | None = "ingest"
    columns: dict[str, object] = field(default_factory=dict)  # of its row in the catalog, besides uri and license
    needs_poison: bool = False  # harmless without `POISON`


@dataclass(frozen=True)
class ExpectedVerdict:
    """The expected result of one row of the catalog."""

    image_id: str
    uri: str  # as the catalog writes it
    reason: Reason | None
    stage: str | None  # null for an accepted image


@cache
def photograph() -> Image.Image:
    """scikit-image's cat, Chelsea: 451×300 RGB, no face and no plate."""
    from skimage import data

    return Image.fromarray(np.asarray(data.chelsea()))


@cache
def portrait() -> Image.Image:
    """scikit-image's astronaut: 512×512 RGB, one face."""
    from skimage import data

    return Image.fromarray(np.asarray(data.astronaut()))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """The image as a file of Pillow's format `kind`."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@cache
def jpeg() -> bytes:
    """The photograph as a JPEG."""
    return encode(photograph(), "JPEG", quality=92)


@cache
def png() -> bytes:
    """The photograph as a PNG of many IDAT chunks."""
    return encode(photograph(), "PNG", compress_level=1)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """One PNG chunk with its length and CRC."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bomb(width: int, height: int) -> bytes:
    """A PNG of zeros, 1 bit a pixel: a few kilobytes that say they are huge."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    row = bytes(1 + (width + 7) // 8)
    squeeze = zlib.compressobj(9)
    pixels = b"".join(squeeze.compress(row * 64) for _ in range(height // 64)) + squeeze.flush()
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def flipped(data: bytes, start: int, count: int = 40) -> bytes:
    """The bytes with `count` of them inverted."""
    middle = bytes(byte ^ 0xFF for byte in data[start : start + count])
    return data[:start] + middle + data[start + count :]


@cache
def swapped_profile() -> bytes:
    """A valid RGB profile whose red, green and blue primaries are rotated, so that it visibly changes colors."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack_from(">I", profile, 128)
    entries = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    places = [bytes(profile[entries[tag] + 4 : entries[tag] + 12]) for tag in (b"rXYZ", b"gXYZ", b"bXYZ")]
    for tag, place in zip((b"gXYZ", b"bXYZ", b"rXYZ"), places, strict=True):
        profile[entries[tag] + 4 : entries[tag] + 12] = place
    return bytes(profile)


def exif(orientation: int) -> bytes:
    """EXIF with an orientation, a GPS position, an owner and a comment."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010F] = "SEGMINT-CAMERA"
    tags[0x9286] = "SEGMINT-COMMENT"
    tags[0x8825] = {1: "N", 2: (48.0, 51.0, 29.0), 3: "E", 4: (2.0, 17.0, 40.0)}
    return tags.tobytes()


def frames(count: int) -> list[Image.Image]:
    """The photograph, shifted a little from frame to frame."""
    pixels = np.asarray(photograph().resize((150, 100)))
    return [Image.fromarray(np.roll(pixels, 7 * index, axis=1)) for index in range(count)]


HEIC = ("photograph", "alpha", "ten_bit", "turned_5", "turned_6", "two")
"""Small HEIC files in `heic/`, which libheif wrote with x265 from scikit-image's coffee (CC0): the library that reads
them here cannot write."""


def heic(name: str) -> bytes:
    """One of `HEIC`, or `opted_out`, whose XMP forbids training: 96 by 64 pixels, some stored on their side."""
    return (Path(__file__).parent / "heic" / f"{name}.heic").read_bytes()


def resized_box(data: bytes, width: int, height: int) -> bytes:
    """A HEIC or AVIF whose header says another size."""
    place = data.index(b"ispe") + 8
    return data[:place] + struct.pack(">II", width, height) + data[place + 8 :]


def animation(kind: str, count: int) -> bytes:
    """Frames as one file."""
    first, *others = frames(count)
    return encode(first, kind, save_all=True, append_images=others, duration=80)


def palette_with_alpha() -> bytes:
    """A palette PNG in which every second palette entry is half transparent."""
    image = photograph().quantize(64)
    return encode(image, "PNG", transparency=bytes(255 if index % 2 else 128 for index in range(64)))


def sixteen_bit_grey() -> Image.Image:
    """The photograph's luminance, spread over the whole range of 16 bits."""
    grey = np.asarray(photograph().convert("L")).astype(np.float64)
    spread = (grey - grey.min()) / (grey.max() - grey.min()) * 65535
    return Image.fromarray(spread.round().astype(np.uint16))


def half_transparent() -> Image.Image:
    """The photograph, fading to transparent from left to right."""
    image = photograph().copy()
    fade = np.tile(np.linspace(255, 0, image.width).round().astype(np.uint8), (image.height, 1))
    image.putalpha(Image.fromarray(fade))
    return image


def deadly_bitmap(deed: int) -> bytes:
    """A bitmap in run-length encoding, which `POISON` makes its decoder crash, hang, exit or allocate for ever."""
    side, palette = 80, bytes([deed, deed, deed, 0]) + bytes(4 * 255)
    pixels = b"".join(bytes([side, 0, 0, 0]) for _ in range(side)) + b"\x00\x01"
    offset = 54 + len(palette)
    header = struct.pack("<2sIHHI", b"BM", offset + len(pixels), 0, 0, offset)
    return header + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(pixels), 0, 0, 256, 0) + palette + pixels


def bmp_with_unused_alpha(header: int = 108) -> bytes:
    """Return the photograph as a 32-bit BMP with an alpha channel of zeros. The header has the given size in bytes."""
    samples = np.dstack([np.asarray(photograph())[::-1, :, ::-1], np.zeros((300, 451), np.uint8)])
    fields = struct.pack("<IiiHHIIiiII", header, 451, 300, 1, 32, 3, samples.size, 0, 0, 0, 0)
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    start = 14 + header
    head = struct.pack("<2sIHHI", b"BM", start + samples.size, 0, 0, start)
    return head + (fields + masks).ljust(header, b"\0") + samples.tobytes()


def tiff_with_thumbnail() -> bytes:
    """A TIFF whose second page is a smaller copy of the first, marked as such."""
    stream = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(stream, True) as writer:
        photograph().save(writer, "TIFF")
        writer.newFrame()
        photograph().resize((90, 60)).save(writer, "TIFF", tiffinfo={254: 1})
    return stream.getvalue()


def retagged_tiff(tag: int, kind: int, value: bytes, count: int = 1, data: bytes | None = None) -> bytes:
    """A little-endian TIFF with one tag of its first page replaced: of type `kind`, with `count` values in `value`."""
    tiff = bytearray(data or encode(photograph(), "TIFF"))
    (place,) = struct.unpack_from("<I", tiff, 4)
    (length,) = struct.unpack_from("<H", tiff, place)
    starts = [place + 2 + 12 * index for index in range(length)]
    entries = {struct.unpack_from("<H", tiff, start)[0]: bytes(tiff[start : start + 12]) for start in starts}
    if len(value) > 4:
        tiff += bytes(len(tiff) % 2) + value
        value = struct.pack("<I", len(tiff) - len(value))
    entries[tag] = struct.pack("<HHI4s", tag, kind, count, value)
    tiff += bytes(len(tiff) % 2)
    struct.pack_into("<I", tiff, 4, len(tiff))
    return bytes(tiff) + struct.pack("<H", len(entries)) + b"".join(entries[key] for key in sorted(entries)) + bytes(4)


def large_profile() -> bytes:
    """A valid profile that changes colors visibly, with two megabytes of padding behind its tags."""
    profile = swapped_profile() + bytes(2_000_000)
    return struct.pack(">I", len(profile)) + profile[4:]


def _broken() -> Iterable[BadImage]:
    yield BadImage("zero_bytes.jpg", b"", Reason.EMPTY_OBJECT)
    yield BadImage("html.jpg", b"<!DOCTYPE html><html><body>404 Not Found</body></html>", Reason.NOT_AN_IMAGE)
    yield BadImage(
        "xml_error.jpg", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", Reason.NOT_AN_IMAGE
    )
    yield BadImage("random.jpg", np.random.default_rng(1).bytes(20_000), Reason.NOT_AN_IMAGE)
    yield BadImage("text_bm.bmp", b"BMW dealers and their opening hours, a list\n" * 9, Reason.NOT_AN_IMAGE)
    for name, data in (("svg", b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="9"/>'),
                       ("pdf", b"%PDF-1.7\n1 0 obj<<>>endobj\n%%EOF"), ("psd", b"8BPS\x00\x01" + bytes(60)),
                       ("cr3", b"\x00\x00\x00\x18ftypcrx \x00\x00\x00\x01crx isom" + bytes(64)),
                       ("jp2", b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(64))):  # fmt: skip
        yield BadImage(f"unsupported.{name}", data, Reason.UNSUPPORTED_FORMAT)
    for missing in (3, 12, 3000, len(jpeg()) // 2):
        yield BadImage(f"jpeg_cut_{missing}.jpg", jpeg()[:-missing], Reason.TRUNCATED)
    yield BadImage("jpeg_cut_header.jpg", jpeg()[:300], Reason.TRUNCATED)
    progressive = encode(photograph(), "JPEG", progressive=True)
    yield BadImage("jpeg_progressive_cut.jpg", progressive[: len(progressive) // 2], Reason.TRUNCATED)
    yield BadImage("jpeg_cut_with_end_marker.jpg", jpeg()[: len(jpeg()) // 2] + b"\xff\xd9", Reason.TRUNCATED)
    garbage = np.random.default_rng(3).bytes(5000)
    yield BadImage("jpeg_magic_then_noise.jpg", b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + garbage, Reason.CORRUPT)
    noise = np.random.default_rng(0).bytes(400).replace(b"\xff", b"\xfe")
    noisy = jpeg()[:20_000] + noise + jpeg()[20_400:]
    yield BadImage("jpeg_noise_inside.jpg", noisy, Reason.CORRUPT)
    yield BadImage("png_cut.png", png()[: len(png()) // 2], Reason.TRUNCATED)
    yield BadImage("png_cut_end.png", png()[:-5], Reason.TRUNCATED)
    yield BadImage("png_corrupt_middle.png", flipped(png(), len(png()) // 2), Reason.CORRUPT)
    yield BadImage("heic_cut.heic", heic("photograph")[:-9], Reason.TRUNCATED)
    yield BadImage(
        "heic_header_alone.heic", b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(64), Reason.TRUNCATED
    )
    yield BadImage("avif_cut.avif", encode(photograph(), "AVIF", speed=10)[:-9], Reason.TRUNCATED)
    webp = encode(photograph(), "WEBP")
    yield BadImage("webp_cut.webp", webp[: len(webp) // 2], Reason.TRUNCATED)
    tiff = encode(photograph(), "TIFF")
    yield BadImage("tiff_cut.tif", tiff[: len(tiff) // 2], Reason.TRUNCATED)
    packed = encode(photograph(), "TIFF", compression="tiff_lzw")
    yield BadImage("tiff_lzw_cut.tif", packed[: len(packed) // 2], Reason.TRUNCATED)
    yield BadImage("bmp_cut.bmp", encode(photograph(), "BMP")[:-999], Reason.TRUNCATED)
    yield BadImage("gif_cut.gif", encode(photograph(), "GIF")[:-999], Reason.TRUNCATED)
    for name, tag, kind, value in (("kind_as_text", 254, 2, b"1\x00"), ("kind_as_rational", 254, 5, bytes(7) + b"\x01"),
                                   ("infinite_strips", 279, 11, struct.pack("<f", math.inf))):  # fmt: skip
        yield BadImage(f"tiff_{name}.tif", retagged_tiff(tag, kind, value), Reason.CORRUPT)


def _out_of_bounds() -> Iterable[BadImage]:
    yield BadImage("bomb.png", png_bomb(20_032, 20_032), Reason.TOO_LARGE)
    yield BadImage("bomb.heic", resized_box(heic("photograph"), 20_032, 20_032), Reason.TOO_LARGE)
    yield BadImage("bomb.avif", resized_box(encode(photograph(), "AVIF", speed=10), 16_000, 16_000), Reason.TOO_LARGE)
    yield BadImage("other_size.heic", resized_box(heic("photograph"), 64, 64), Reason.CORRUPT)
    yield BadImage("one_pixel.png", encode(photograph().resize((1, 1)), "PNG"), Reason.TOO_SMALL)
    yield BadImage("sliver.png", encode(photograph().resize((30_000, 10)), "PNG"), Reason.TOO_SMALL)
    yield BadImage(
        "too_long_for_jpeg.png", encode(photograph().resize((66_000, 64)), "PNG"), Reason.TOO_LARGE, "release"
    )
    yield BadImage("animated.gif", animation("GIF", 3), Reason.ANIMATED)
    yield BadImage("animated.webp", animation("WEBP", 3), Reason.ANIMATED)
    yield BadImage("animated.avif", animation("AVIF", 3), Reason.ANIMATED)
    yield BadImage("animated.png", animation("PNG", 3), Reason.ANIMATED)
    yield BadImage("two_pages.tif", animation("TIFF", 2), Reason.UNSUPPORTED_FORMAT)
    yield BadImage("float.tif", encode(photograph().convert("F"), "TIFF"), Reason.UNSUPPORTED_FORMAT)


def _odd() -> Iterable[BadImage]:
    def accepted(name: str, data: bytes, **columns: object) -> BadImage:
        return BadImage(name, data, None, None, columns)

    yield accepted("plain.jpg", jpeg())
    yield accepted("portrait.jpg", encode(portrait(), "JPEG"))
    yield accepted("progressive.jpg", encode(photograph(), "JPEG", progressive=True))
    yield accepted("cmyk.jpg", encode(photograph().convert("CMYK"), "JPEG"))
    yield accepted("grey.jpg", encode(photograph().convert("L"), "JPEG"))
    yield accepted("trailing_bytes.jpg", jpeg() + b"what a phone appends" * 99)
    yield accepted("rotated_gps.jpg", encode(photograph(), "JPEG", exif=exif(6)))
    yield accepted("swapped_profile.jpg", encode(photograph(), "JPEG", icc_profile=swapped_profile()))
    yield accepted("large_profile.png", encode(photograph(), "PNG", icc_profile=large_profile()))
    yield accepted("broken_profile.jpg", encode(photograph(), "JPEG", icc_profile=b"no profile at all" * 20))
    yield accepted("broken_exif.jpg", encode(photograph(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff"))
    yield accepted("sixteen_bit.png", encode(sixteen_bit_grey(), "PNG"))
    yield accepted("sixteen_bit.tif", encode(sixteen_bit_grey(), "TIFF"))
    yield accepted("alpha.png", encode(half_transparent(), "PNG"))
    yield accepted("palette_alpha.png", palette_with_alpha())
    yield accepted("grey_alpha.png", encode(half_transparent().convert("LA"), "PNG"))
    yield accepted("one_bit.png", encode(photograph().convert("1"), "PNG"))
    yield accepted("still.gif", encode(photograph(), "GIF"))
    yield accepted("still.webp", encode(photograph(), "WEBP"))
    yield accepted("plain.avif", encode(photograph(), "AVIF", speed=10))
    yield accepted("alpha.avif", encode(half_transparent(), "AVIF", speed=10))
    yield accepted("trailing_bytes.avif", encode(photograph(), "AVIF", speed=10) + b"what a phone appends" * 99)
    for name in HEIC:
        yield accepted(f"{name}.heic", heic(name))
    yield accepted("plain.bmp", encode(photograph(), "BMP"))
    yield accepted("thumbnail_inside.tif", tiff_with_thumbnail())
    yield accepted("a name, spaces & Ünïcödé 写真 %41.jpg", jpeg())
    yield accepted("jpeg_named.png", jpeg())
    yield accepted("jpeg_without_end.jpg", jpeg()[:-2])
    yield accepted("unused_alpha.bmp", bmp_with_unused_alpha())
    yield accepted("right_hash.jpg", jpeg(), sha256=hashlib.sha256(jpeg()).hexdigest())


def _by_catalog() -> Iterable[BadImage]:
    yield BadImage("wrong_hash.jpg", jpeg(), Reason.HASH_MISMATCH, "read", {"sha256": "0" * 64})
    yield BadImage("missing.jpg", None, Reason.NOT_FOUND, "read")
    yield BadImage("same_id.jpg", jpeg(), Reason.DUPLICATE_ID, "catalog", {"image_id": "plain.jpg"})
    yield BadImage("other_license.jpg", jpeg(), Reason.LICENSE_NOT_ALLOWED, "catalog", {"license": "CC-BY-NC-4.0"})
    yield BadImage("no_license.jpg", jpeg(), Reason.LICENSE_MISSING, "catalog", {"license": None})
    whole_text = {"license": "Permission is hereby granted, free of charge, to any person " * 4000}
    yield BadImage("license_text.jpg", jpeg(), Reason.LICENSE_NOT_ALLOWED, "catalog", whole_text)
    yield BadImage("line%0Abreak.jpg", None, Reason.URI_NOT_ALLOWED, "read")
    yield BadImage("file:///etc/null%00.jpg", None, Reason.URI_NOT_ALLOWED, "read")
    yield BadImage("s3://vendor/%2e%2e/other.jpg", None, Reason.URI_NOT_ALLOWED, "read")
    yield BadImage("unheard-of://bucket/photo.jpg", None, Reason.URI_NOT_ALLOWED, "read")


def _deadly() -> Iterable[BadImage]:
    yield BadImage("crash.bmp", deadly_bitmap(CRASH), Reason.KILLED_WORKER, "prepare", needs_poison=True)
    yield BadImage("hoard.bmp", deadly_bitmap(ALLOCATE), Reason.OUT_OF_MEMORY, "prepare", needs_poison=True)


@cache
def samples() -> tuple[BadImage, ...]:
    """Every file, in a fixed order; about a second to make."""
    makers: tuple[Callable[[], Iterable[BadImage]], ...] = (_odd, _broken, _out_of_bounds, _by_catalog, _deadly)
    return tuple(sample for maker in makers for sample in maker())


def write_bad_catalog(folder: Path, chosen: Iterable[BadImage] | None = None) -> list[ExpectedVerdict]:
    """Write the files and `catalog.jsonl` next to them; return the expected result of each row, in order.

    The license of every row but two is CC0-1.0, which the policy must allow; those with `needs_poison` need
    `POISON` and a memory limit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    expected, lines = [], []
    for sample in samples() if chosen is None else chosen:
        if sample.data is not None:
            (folder / sample.name).write_bytes(sample.data)
        row = {"uri": sample.name, "image_id": sample.name, "license": "CC0-1.0", **sample.columns}
        lines.append(json.dumps(row, ensure_ascii=False))
        expected.append(ExpectedVerdict(str(row["image_id"]), sample.name, sample.reason, sample.stage))
    (folder / "catalog.jsonl").write_text("\n".join(lines) + "\n")
    return expected
