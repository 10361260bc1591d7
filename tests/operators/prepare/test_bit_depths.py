"""The tables of bit depths, alpha channels, and orientations of other containers than TIFF's layouts."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFilter

from segmint.catalogs.findings import Reason, RejectedError
from segmint.operators.prepare.ingest_config import check_png_rows
from tests.operators.prepare.test_read_image_tiff import (
    ALPHA,
    COLORS,
    GRAY,
    HEIGHT,
    LEVELS,
    WIDTH,
    X,
    on_white,
    verdict,
)
from tests.support import bad_images
from tests.support.bad_images import encode, png_chunk
from tests.support.tiffs import packed_rows, tiff

UNSUPPORTED = str(Reason.UNSUPPORTED_FORMAT)


def png(samples: np.ndarray, bits: int, color_type: int, chunks: bytes = b"") -> bytes:
    """A PNG of samples, (H, W) or (H, W, N), each of `bits`."""
    rows = b"".join(b"\0" + packed_rows(row[None], bits, ">") for row in samples)
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, color_type, 0, 0, 0)
    parts = png_chunk(b"IHDR", header) + chunks + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def scaled(samples: np.ndarray, bits: int) -> np.ndarray:
    return samples * 255 / (2**bits - 1)


def hidden(pixels: np.ndarray, where: np.ndarray) -> np.ndarray:
    """`pixels`, white `where` they are transparent."""
    return np.where(where[:, :, None], 255, pixels)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_each_kind_of_png_gives_its_pixels_or_is_unsupported(bits: int) -> None:
    levels = LEVELS.astype(np.int64) * (2**bits) // 256
    gray = np.repeat(scaled(levels, bits)[:, :, None], 3, axis=2)
    assert verdict(png(levels, bits, 0), gray) == "exact"
    key = int(levels[10, 30])
    found = verdict(png(levels, bits, 0, png_chunk(b"tRNS", struct.pack(">H", key))), hidden(gray, levels == key))
    assert found == (UNSUPPORTED if bits == 16 else "exact")
    if bits <= 8:
        palette = np.random.default_rng(1).integers(0, 256, (2**bits, 3))
        chunk = png_chunk(b"PLTE", palette.astype(np.uint8).tobytes())
        assert verdict(png(levels, bits, 3, chunk), palette[levels]) == "exact"
        clear = np.where(np.arange(2**bits) % 3 == 1, 255, 0)
        found = verdict(
            png(levels, bits, 3, chunk + png_chunk(b"tRNS", clear.astype(np.uint8).tobytes())),
            hidden(palette[levels], clear[levels] == 0),
        )
        assert found == "exact"
    if bits >= 8:
        colors, alpha = (
            COLORS.astype(np.int64) * (257 if bits == 16 else 1),
            ALPHA.astype(np.int64) * (257 if bits == 16 else 1),
        )
        assert verdict(png(colors, bits, 2), COLORS) == "exact"
        key_color = colors[10, 30]
        found = verdict(
            png(colors, bits, 2, png_chunk(b"tRNS", struct.pack(">3H", *key_color))),
            hidden(COLORS, (colors == key_color).all(axis=2)),
        )
        assert found == (UNSUPPORTED if bits == 16 else "exact")
        assert verdict(png(np.dstack([colors, alpha]), bits, 6), on_white(COLORS), 1) == "exact"
        assert verdict(png(np.dstack([colors[:, :, 2], alpha]), bits, 4), on_white(GRAY), 1) == "exact"


def repacked(data: bytes, rows: bytes) -> bytes:
    """A PNG with other rows in its pixel data, and with valid chunks."""
    start = data.index(b"IDAT") - 4
    return data[:start] + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["1", "L", "P", "RGB", "RGBA"])
def test_a_png_whose_compressed_rows_end_early_is_truncated(kind: str) -> None:
    """Each chunk has the right checksum, and decoders leave the missing rows black."""
    data = encode(Image.fromarray(COLORS).convert(kind), "PNG")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    rows = zlib.decompress(data[data.index(b"IDAT") + 4 : -16])
    assert verdict(repacked(data, rows), expected, 255) == "exact"
    assert verdict(repacked(data, rows + b"more"), expected, 255) == "exact"
    for part in (rows[:-1], rows[: len(rows) // 2], b""):
        assert verdict(repacked(data, part), expected) == str(Reason.TRUNCATED)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (5, 3), (3, 9), (16, 16), (47, 33)])
@pytest.mark.parametrize("bits", [1, 2, 8])
def test_an_interlaced_png_may_not_end_early_either(width: int, height: int, bits: int) -> None:
    image = np.arange(height * width).reshape(height, width) % 2**bits
    whole = png(image, bits, 0)
    passes = [image[0::8, 0::8], image[0::8, 4::8], image[4::8, 0::4], image[0::4, 2::4], image[2::4, 0::2],
              image[0::2, 1::2], image[1::2, 0::1]]  # fmt: skip
    rows = [b"\0" + packed_rows(row[None], bits, ">") for part in passes if part.size for row in part]
    interlaced = whole[:8] + png_chunk(b"IHDR", whole[16:28] + b"\1") + whole[33:]
    check_png_rows(repacked(interlaced, b"".join(rows)))
    with pytest.raises(RejectedError, match="the PNG's compressed pixels end early"):
        check_png_rows(repacked(interlaced, b"".join(rows[: len(rows) // 3])))


def test_a_png_for_apps_on_ios_is_unsupported() -> None:
    data = bad_images.png()
    assert verdict(data[:8] + png_chunk(b"CgBI", b"\x50\0\x20\x06") + data[8:], GRAY) == UNSUPPORTED


def bmp(
    samples: np.ndarray, bits: int, header: int = 40, palette: np.ndarray | None = None, masks: tuple[int, ...] = ()
) -> bytes:
    """A BMP of (H, W) numbers or (H, W, N) bytes from the top down (bottom up with a header of 12 bytes)."""
    height, width = samples.shape[:2]
    lines = [packed_rows(row[None], min(bits, 8) if samples.dtype != np.uint16 else 16, "<") for row in samples]
    content = b"".join(line + bytes(-len(line) % 4) for line in (lines[::-1] if header == 12 else lines))
    colors = b"" if palette is None else b"".join(bytes(color[::-1]) + bytes(header > 12) for color in palette)
    used = 0 if palette is None else len(palette)
    if header == 12:
        fields = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        scheme = 3 if masks else 0
        fields = struct.pack("<IiiHHIIiiII", header, width, -height, 1, bits, scheme, len(content), 0, 0, used, 0)
        fields = (fields + struct.pack(f"<{len(masks)}I", *masks)).ljust(header, b"\0")
    start = 14 + len(fields) + len(colors)
    return struct.pack("<2sIHHI", b"BM", start + len(content), 0, 0, start) + fields + colors + content


def test_each_palette_of_a_bmp_gives_its_pixels_or_is_unsupported() -> None:
    """Pillow reads 4 or 8 bits as 1 if the palette is black and white, and 4 as 8 if it counts from black."""
    refused = set()
    for bits, header in itertools.product((1, 4, 8), (12, 40)):
        for count in {2, 3, 2**bits} if header == 40 and bits > 1 else {2**bits}:
            levels = (LEVELS.astype(np.int64) * 7 + X) % count
            ramp = np.linspace(0, 255, count).astype(np.uint8)
            palettes = {
                "gray": ramp, "inverted": ramp[::-1], "dark": np.arange(count, dtype=np.uint8),
                "color": np.random.default_rng(3).integers(0, 256, (count, 3)).astype(np.uint8),
            }  # fmt: skip
            for name, palette in palettes.items():
                colors = palette if palette.ndim == 2 else np.repeat(palette[:, None], 3, axis=1)
                found = verdict(bmp(levels, bits, header, colors), colors[levels])
                assert found in ("exact", UNSUPPORTED), (bits, header, count, name)
                if found != "exact":
                    refused.add((bits, count, name))
    assert refused == {(4, 2, "gray"), (8, 2, "gray"), (4, 3, "dark"), (4, 16, "dark")}


@pytest.mark.parametrize("header", [12, 40])
def test_a_bmp_whose_pixels_begin_inside_its_header_is_corrupt(header: int) -> None:
    data = bmp(COLORS[:, :, ::-1], 24, header)
    assert verdict(data, COLORS) == "exact"
    for start in (0, 14, 13 + header):
        assert verdict(data[:10] + struct.pack("<I", start) + data[14:], COLORS) == str(Reason.CORRUPT)


def test_each_depth_of_a_bmp_gives_its_pixels_or_is_unsupported() -> None:
    blue_first = COLORS[:, :, ::-1]
    assert verdict(bmp(blue_first, 24), COLORS) == "exact"
    assert verdict(bmp(blue_first, 24, 12), COLORS) == "exact"
    assert verdict(bmp(np.dstack([blue_first, ALPHA]), 32), COLORS) == "exact"  # reserved bytes
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    for header in (56, 108, 124):
        for alpha, pixels in ((ALPHA, on_white(COLORS)), (ALPHA * 0, COLORS), (ALPHA * 0 + 255, COLORS)):
            assert verdict(bmp(np.dstack([blue_first, alpha]), 32, header, masks=masks), pixels, 1) == "exact"
    parts = COLORS.astype(np.uint16)
    fifteen = (parts[:, :, 0] >> 3 << 10) | (parts[:, :, 1] >> 3 << 5) | (parts[:, :, 2] >> 3)
    assert verdict(bmp(fifteen, 16), COLORS, 8) == "exact"
    for masks in ((0xF00, 0xF0, 0xF, 0xF000), (0xFF, 0xFF00, 0xFF0000)):
        assert verdict(bmp(fifteen, 16, 108, masks=masks), COLORS) == UNSUPPORTED
    assert verdict(bmp(LEVELS.astype(np.int64) % 4, 2, 40, GRAY[:4, 0]), GRAY) == UNSUPPORTED


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF", "GIF"])
def test_a_photograph_that_is_transparent_everywhere_is_refused(kind: str) -> None:
    """All of its pixels would be white."""
    options: dict[str, object] = {"WEBP": {"lossless": True, "exact": True}, "AVIF": {"speed": 10}}.get(kind, {})
    clear = Image.fromarray(np.dstack([COLORS, ALPHA * 0]))
    assert verdict(encode(clear, kind, **options), COLORS) == UNSUPPORTED
    clear.putpixel((3, 4), (9, 9, 9, 255))
    assert verdict(encode(clear, kind, **options), COLORS) == "wrong"  # white, except for a pixel


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    pixels = pixels[::-1] if orientation in (3, 4, 7, 8) else pixels
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


@pytest.mark.parametrize("orientation", range(2, 9))
def test_each_depth_of_a_tiff_is_turned_upright(orientation: int) -> None:
    tags = {274: (3, [orientation])}
    inverted = 65535 - LEVELS.astype(np.uint16) * 257
    for data, pixels in (
        (tiff(COLORS, 8, 2, separate=True, tags=tags), COLORS),
        (tiff(COLORS.astype(np.uint16) * 257, 16, 2, compression=8, tags=tags), COLORS),
        (tiff(LEVELS.astype(np.uint16) * 257, 16, 1, order=">", tags=tags), GRAY),
        (tiff(inverted, 16, 0, tile=16, tags=tags), GRAY),
        (tiff(np.dstack([COLORS, ALPHA]), 8, 2, tags={**tags, 338: (3, [2])}), on_white(COLORS)),
    ):
        assert verdict(data, turned(pixels, orientation), 1) == "exact"


@pytest.mark.long
def test_each_depth_of_jpegs_and_avifs_gives_its_pixels_or_is_unsupported() -> None:
    import imagecodecs

    size = (WIDTH * 3, HEIGHT * 3)
    soft = np.asarray(Image.fromarray(COLORS).resize(size).filter(ImageFilter.GaussianBlur(4)))
    fade = np.tile(np.linspace(255, 0, size[0]).round().astype(np.uint8), (size[1], 1))
    gray = np.repeat(soft[:, :, :1], 3, axis=2)
    faded = soft * (fade[:, :, None] / 255) + 255 * (1 - fade[:, :, None] / 255)

    def deep(samples: np.ndarray, bits: int) -> np.ndarray:
        return np.ascontiguousarray(samples if bits == 8 else samples.astype(np.uint16) << (bits - 8))

    found = {}
    for bits in (8, 12, 16):
        expected = "exact" if bits == 8 else UNSUPPORTED
        lossless = imagecodecs.jpeg8_encode(deep(soft, bits), lossless=True, bitspersample=bits)
        found["lossless JPEG", bits] = verdict(lossless, soft, 6), expected
        lossless = imagecodecs.ljpeg_encode(deep(soft[:, :, 0], bits).astype(np.uint16), bitspersample=bits)
        found["lossless gray JPEG", bits] = verdict(lossless, gray, 1), expected
        if bits < 16:
            data = imagecodecs.jpeg8_encode(deep(soft, bits), 95, bitspersample=bits)
            found["JPEG", bits] = verdict(data, soft, 12), expected
            data = imagecodecs.jpeg8_encode(deep(soft[:, :, 0], bits), 95, bitspersample=bits)
            found["gray JPEG", bits] = verdict(data, gray, 12), expected
    for sampling in ("444", "440", "422", "420", "411"):
        found["JPEG", sampling] = verdict(imagecodecs.jpeg8_encode(soft, 95, subsampling=sampling), soft, 30), "exact"
    found["two components", 8] = verdict(imagecodecs.jpeg8_encode(soft[:, :, :2].copy(), 95), soft), UNSUPPORTED
    for name in ("jpegls", "jpegxl", "jpegxr", "jpeg2k"):
        found[name, 8] = verdict(getattr(imagecodecs, f"{name}_encode")(soft), soft), UNSUPPORTED
    for bits in (8, 10, 12):
        for name, samples, pixels in (
            ("RGB", soft, soft),
            ("gray", soft[:, :, 0], gray),
            ("alpha", np.dstack([soft, fade]), faded),
        ):
            data = imagecodecs.avif_encode(deep(samples, bits), level=95, bitspersample=bits)
            found[f"AVIF {name}", bits] = verdict(data, pixels, 12), "exact"
    assert {key: value for key, value in found.items() if value[0] != value[1]} == {}


def test_a_png_with_linear_samples_is_unsupported() -> None:
    for gamma, found in ((45_455, "exact"), (55_556, "exact"), (100_000, UNSUPPORTED)):
        assert verdict(png(COLORS, 8, 2, png_chunk(b"gAMA", struct.pack(">I", gamma))), COLORS) == found
