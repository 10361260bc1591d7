"""The table of TIFF layouts: each file gives the pixels that were written, or is refused as unsupported."""

import io
import itertools
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import pytest

from segmint.catalogs.findings import Reason, RejectedError
from segmint.operators.prepare.ingest import decode_photograph
from tests.conftest import read_rgb
from tests.support.bad_images import retagged_tiff
from tests.support.tiffs import DEFLATE, PACKBITS, RAW, tiff

HEIGHT, WIDTH, TILE = 50, 83, 16  # neither side is a multiple of the tile's
Y, X = np.mgrid[:HEIGHT, :WIDTH]
COLORS = np.dstack([X * 3 % 256, Y * 5 % 256, (X + Y) * 2 % 256]).astype(np.uint8)
ALPHA = np.where(X < 20, 255, (X * 7 + Y * 3) % 256).astype(np.uint8)
LEVELS = COLORS[:, :, 2]
GRAY = np.repeat(LEVELS[:, :, None], 3, axis=2)
INK = np.dstack([255 - COLORS, np.zeros_like(ALPHA)])
SPOILED = COLORS[:, ::-1, 0]  # an extra sample that means nothing


def on_white(colors: np.ndarray) -> np.ndarray:
    opacity = ALPHA[:, :, None] / 255
    return colors * opacity + 255 * (1 - opacity)


def premultiplied(colors: np.ndarray) -> np.ndarray:
    return np.round(colors * (ALPHA[:, :, None] / 255)).astype(np.uint8)


@dataclass(frozen=True)
class Kind:
    """Samples of 8 bits, (H, W, N), what they mean, and the pixels that they give, (H, W, 3)."""

    samples: np.ndarray
    photometric: int
    extras: tuple[int, ...]
    pixels: np.ndarray
    tolerance: float = 0.51


KINDS = {
    "gray": Kind(GRAY[:, :, :1], 1, (), GRAY),
    "inverted gray": Kind(255 - GRAY[:, :, :1], 0, (), GRAY),
    "gray, alpha": Kind(np.dstack([LEVELS, ALPHA]), 1, (2,), on_white(GRAY), 1),
    "gray, premultiplied": Kind(np.dstack([premultiplied(GRAY)[:, :, 0], ALPHA]), 1, (1,), on_white(GRAY), 3),
    "gray, extra": Kind(np.dstack([LEVELS, SPOILED]), 1, (0,), GRAY),
    "inverted gray, alpha": Kind(np.dstack([255 - LEVELS, ALPHA]), 0, (2,), on_white(GRAY), 1),
    "RGB": Kind(COLORS, 2, (), COLORS),
    "RGBA": Kind(np.dstack([COLORS, ALPHA]), 2, (2,), on_white(COLORS), 1),
    "RGBA, undeclared": Kind(np.dstack([COLORS, ALPHA]), 2, (), on_white(COLORS), 1),
    "RGBA, premultiplied": Kind(np.dstack([premultiplied(COLORS), ALPHA]), 2, (1,), on_white(COLORS), 3),
    "RGB, extra": Kind(np.dstack([COLORS, SPOILED]), 2, (0,), COLORS),
    "RGB, 2 extras": Kind(np.dstack([COLORS, SPOILED, SPOILED]), 2, (0, 0), COLORS),
    "RGBA, extra": Kind(np.dstack([COLORS, ALPHA, SPOILED]), 2, (2, 0), on_white(COLORS), 1),
    "CMYK": Kind(INK, 5, (), COLORS),
    "CMYK, extra": Kind(np.dstack([INK, SPOILED]), 5, (0,), COLORS),
    "CMYK, alpha": Kind(np.dstack([INK, ALPHA]), 5, (2,), on_white(COLORS), 1),
}

# Layouts that are decoded: kinds with 8 and 16 bits whose samples are together; in uncompressed planes; in compressed
# planes. Decoding others, exactly, would be no fault, but this list shows that they are refused on purpose.
TOGETHER = {
    *itertools.product(KINDS.keys() - {"inverted gray, alpha", "CMYK, alpha"}, [8]),
    *itertools.product(["gray", "inverted gray", "RGB", "RGBA", "RGBA, undeclared", "RGBA, premultiplied"], [16]),
    *itertools.product(["RGB, extra", "CMYK"], [16]),
}
if int(PIL.__version__.partition(".")[0]) < 13:  # older versions can't open these, so they are refused
    TOGETHER -= {("gray, premultiplied", 8), ("gray, extra", 8)}
RAW_PLANES = {*itertools.product(["gray", "RGB", "RGBA", "CMYK"], [8])}
PACKED_PLANES = {*itertools.product(["gray", "inverted gray", "RGB", "RGBA", "CMYK"], [8, 16])}


def verdict(data: bytes, pixels: np.ndarray, tolerance: float = 0.51) -> str:
    """`exact`, `wrong`, or the reason of a refusal."""
    try:
        decoded = decode_photograph(data)
    except RejectedError as refusal:
        return str(refusal.reason)
    same = decoded.shape == pixels.shape and np.abs(decoded - pixels.astype(np.float64)).max() <= tolerance
    return "exact" if same else "wrong"


def is_decoded(name: str, bits: int, separate: bool, packed: bool, order: str) -> bool:
    if bits == 16 and name == "inverted gray" and order == ">":
        return False
    if not separate:
        return (name, bits) in TOGETHER
    if packed:
        return (name, bits) in PACKED_PLANES
    return (name, bits) in RAW_PLANES


def own_layouts() -> Iterator[tuple[tuple[object, ...], bytes, Kind, bool]]:
    for (name, kind), bits, separate, compression, tile, order in itertools.product(
        KINDS.items(), (8, 16), (False, True), (RAW, DEFLATE, PACKBITS), (None, TILE), "<>"
    ):
        if compression == PACKBITS and (tile or order == ">"):
            continue
        samples = kind.samples if bits == 8 else kind.samples.astype(np.uint16) * 257
        data = tiff(
            samples, bits, kind.photometric, separate=separate, compression=compression, order=order, tile=tile,
            tags={338: (3, list(kind.extras))} if kind.extras else {},
        )  # fmt: skip
        decoded = is_decoded(name, bits, separate, compression != RAW, order)
        yield (name, bits, separate, compression, tile, order), data, kind, decoded


def test_each_layout_gives_its_pixels_or_is_unsupported() -> None:
    unexpected = {}
    for layout, data, kind, decoded in own_layouts():
        found = verdict(data, kind.pixels, kind.tolerance)
        if found != ("exact" if decoded else Reason.UNSUPPORTED_FORMAT):
            unexpected[layout] = found
    assert unexpected == {}


def test_few_bits_palettes_and_reversed_bits_give_their_pixels_or_are_unsupported() -> None:
    found: dict[str, set[str]] = {}
    palettes = np.random.default_rng(1).integers(0, 256, (3, 256))
    for bits, separate, compression, backwards, tile in itertools.product(
        (1, 2, 4, 8, 12, 16), (False, True), (RAW, DEFLATE, PACKBITS), (False, True), (None, TILE)
    ):
        levels = LEVELS.astype(np.int64) * (2**bits) // 256
        layout = {"separate": separate, "compression": compression, "reversed_bits": backwards, "tile": tile}
        expected = np.repeat(levels[:, :, None] * 255 / (2**bits - 1), 3, axis=2)
        group = f"{'separate' if separate else 'together'}, {'raw' if compression == RAW else 'packed'}"
        found.setdefault(f"gray, {group}", set()).add(verdict(tiff(levels, bits, 1, **layout), expected))
        inverted = tiff(2**bits - 1 - levels, bits, 0, **layout)
        found.setdefault(f"inverted, {group}", set()).add(verdict(inverted, expected))
        if bits <= 8:
            palette = palettes[:, : 2**bits]
            data = tiff(levels, bits, 3, tags={320: (3, (palette * 257).ravel().tolist())}, **layout)
            found.setdefault(f"palette, {group}", set()).add(verdict(data, palette[:, levels].transpose(1, 2, 0)))
    assert found == {group: {"exact", "unsupported_format"} for group in found} | {
        "inverted, separate, raw": {"unsupported_format"},
        "palette, separate, raw": {"unsupported_format"},
    }


def refusal(data: bytes) -> str:
    with pytest.raises(RejectedError) as raised:
        decode_photograph(data)
    return str(raised.value.reason)


def test_tags_that_pillow_ignores_are_unsupported() -> None:
    """YCbCr without JPEG, inks that aren't CMYK or are inverted, signed samples, and mixed bits."""
    for photometric, samples, tags in (
        (6, COLORS, {}),
        (6, COLORS, {530: (3, [1, 1])}),
        (6, COLORS, {530: (3, [2, 2])}),
        (5, INK, {332: (3, [2])}),
        (5, INK, {336: (3, [255, 0])}),
        (2, COLORS, {258: (3, [8, 8, 7])}),
        (1, LEVELS, {339: (3, [2])}),
        (1, LEVELS, {339: (3, [4])}),
        (1, LEVELS, {259: (3, [34712])}),
        (8, COLORS, {}),
        (9, COLORS, {}),
    ):
        assert refusal(tiff(samples, 8, photometric, tags=tags)) == Reason.UNSUPPORTED_FORMAT
    for bits in (32, 64):
        assert refusal(tiff(COLORS, bits, 2, tags={339: (3, [3] * 3)})) == Reason.UNSUPPORTED_FORMAT
    big = b"MM\0+\0\x08\0\0" + struct.pack(">Q", 16) + bytes(200)
    assert refusal(big) == Reason.UNSUPPORTED_FORMAT


def test_one_number_of_bits_counts_for_all_samples() -> None:
    for compression in (RAW, DEFLATE):
        data = tiff(COLORS, 8, 2, compression=compression, tags={258: (3, [8])})
        assert verdict(data, COLORS) == "exact"


def test_a_palette_with_values_of_8_bits_is_unsupported() -> None:
    """Pillow divides them by 256, which makes the image black."""
    ramp = list(range(256))
    for scale, expected in ((257, "exact"), (256, "exact"), (1, Reason.UNSUPPORTED_FORMAT)):
        palette = {320: (3, [value * scale for value in ramp * 3])}
        for compression in (RAW, DEFLATE):
            assert verdict(tiff(LEVELS, 8, 3, compression=compression, tags=palette), GRAY) == expected


def test_a_further_page_that_pillow_cannot_open_is_a_page() -> None:
    data = tiff(COLORS, 8, 2)
    page = {256: WIDTH, 257: HEIGHT, 258: 8, 262: 9, 277: 1}  # of a kind of L*a*b*
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in page.items())
    (place,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, place)
    chained = bytearray(data)
    struct.pack_into("<I", chained, place + 2 + 12 * count, len(data))
    assert verdict(data, COLORS) == "exact"
    with pytest.raises(RejectedError, match="several pages") as refusal:
        decode_photograph(bytes(chained) + struct.pack("<H", len(page)) + directory + bytes(4))
    assert refusal.value.reason == Reason.UNSUPPORTED_FORMAT


def test_compression_that_the_decoder_lacks_is_unsupported() -> None:
    assert refusal(tiff(COLORS, 8, 2, tags={259: (3, [50001])})) == Reason.UNSUPPORTED_FORMAT


def test_an_uncompressed_strip_has_the_bytes_of_its_pixels() -> None:
    row = WIDTH * 3
    whole = [16 * row] * 3 + [2 * row]
    assert verdict(tiff(COLORS, 8, 2, tags={279: (4, [size + 1 for size in whole])}), COLORS) == "exact"
    for changed in (0, 3):
        sizes = [size - (index == changed) for index, size in enumerate(whole)]
        with pytest.raises(RejectedError, match=f"strip or tile {changed + 1} is damaged or incomplete; expected 83×"):
            decode_photograph(tiff(COLORS, 8, 2, tags={279: (4, sizes)}))
    for compression in (RAW, DEFLATE):  # GDAL leaves out empty tiles so
        data = tiff(COLORS, 8, 2, compression=compression, tags={273: (4, [8, 0, 0, 0]), 279: (4, [16 * row, 0, 0, 0])})
        data = data.ljust(20_000, b"\0")
        assert refusal(data) == Reason.UNSUPPORTED_FORMAT


def test_damage_in_a_layout_that_is_not_decoded_is_damage() -> None:
    data = tiff(np.dstack([LEVELS, ALPHA]), 16, 1, tags={338: (3, [2])})
    assert refusal(data) == Reason.UNSUPPORTED_FORMAT
    assert refusal(retagged_tiff(273, 4, struct.pack("<I", 8), 1, data)) == Reason.CORRUPT
    assert refusal(retagged_tiff(279, 4, struct.pack("<4I", *[1 << 20] * 4), 4, data)) == Reason.TRUNCATED


COMPRESSIONS = (None, "lzw", "deflate", "packbits", "zstd", "lzma", "jpeg")


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_each_layout_of_another_writer_gives_its_pixels_or_is_unsupported() -> None:
    """Every compression with and without its predictor, written by tifffile and imagecodecs."""
    import tifffile

    names = {0: "miniswhite", 1: "minisblack", 2: "rgb", 5: "separated"}
    unexpected, counts = {}, {"exact": 0, "unsupported_format": 0}
    for (name, kind), bits, separate, compression, tile, order, predictor, big in itertools.product(
        KINDS.items(), (8, 16), (False, True), COMPRESSIONS, (None, (TILE, TILE)), "<>", (False, True), (False, True)
    ):
        if predictor and compression not in ("lzw", "deflate", "zstd", "lzma"):
            continue
        if big and compression not in (None, "deflate"):
            continue
        if name == "RGBA, undeclared" or (compression == "jpeg" and (bits == 16 or kind.extras)):
            continue
        if kind.samples.shape[2] == 1 and separate:
            continue
        samples = kind.samples if bits == 8 else kind.samples.astype(np.uint16) * 257
        if samples.shape[2] == 1:
            samples = samples[:, :, 0]
        elif separate:
            samples = np.moveaxis(samples, 2, 0)
        stream = io.BytesIO()
        tifffile.imwrite(
            stream, samples, photometric=names[kind.photometric], extrasamples=kind.extras or None, byteorder=order,
            planarconfig=("separate" if separate else "contig") if kind.samples.shape[2] > 1 else None,
            compression=compression, predictor=predictor or None, bigtiff=big, tile=tile, metadata=None,
            rowsperstrip=None if tile else 16, compressionargs={"level": 100} if compression == "jpeg" else None,
        )  # fmt: skip
        decoded = is_decoded(name, bits, separate, compression is not None, order)
        decoded = decoded and not (big and order == ">")
        pixels, tolerance = kind.pixels, 12 if compression == "jpeg" else kind.tolerance
        if compression == "jpeg" and name == "RGB" and not separate:
            pixels, tolerance = tifffile.imread(io.BytesIO(stream.getvalue())), 0  # its chroma is subsampled
        found = verdict(stream.getvalue(), pixels, tolerance)
        if found != ("exact" if decoded else Reason.UNSUPPORTED_FORMAT):
            unexpected[name, bits, separate, compression, tile, order, predictor, big] = found
        else:
            counts[found] += 1
    assert unexpected == {}
    assert min(counts.values()) > 500


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_each_face_of_a_photograph_is_redacted_or_the_photograph_is_refused(weights: None, photos: Path) -> None:
    """Once in each layout that was decoded to other pixels, and once for each way of decoding."""
    from segmint.operators.prepare.deidentify import DeidentifyConfig, PlatesConfig, build_detectors
    from segmint.operators.prepare.ingest import IngestConfig
    from segmint.operators.prepare.prepare import PrepareConfig, RefusedError, prepare_image
    from segmint.operators.prepare.release import CropLayers, ReleaseConfig

    deidentify = DeidentifyConfig(plates=PlatesConfig(detector="none"))
    config = PrepareConfig(IngestConfig(), deidentify, ReleaseConfig(), CropLayers(0, 512 / 1500))
    detectors = build_detectors(deidentify)
    colors = read_rgb(photos / "multiface.jpg")
    deep, opaque = colors.astype(np.uint16) * 257, np.full(colors.shape[:2], 255, np.uint8)
    gray = colors[:, :, 1]
    alpha = {338: (3, [2])}
    refused = [
        *(tiff(deep, 16, 2, separate=True, order=order, tile=tile) for order in "<>" for tile in (None, 64)),
        tiff(np.dstack([deep, opaque.astype(np.uint16) * 257]), 16, 2, separate=True, tags=alpha),
        tiff(np.dstack([65535 - deep, np.zeros_like(deep[:, :, 0])]), 16, 5, separate=True),
        tiff(np.dstack([gray, opaque]), 8, 1, separate=True, compression=DEFLATE, tags=alpha),
        tiff(np.dstack([colors, opaque]), 8, 2, separate=True, compression=DEFLATE),
        tiff(np.dstack([colors, opaque]), 8, 2, separate=True, tile=64),
        tiff(255 - gray, 8, 0, separate=True),
        tiff(colors, 8, 2, separate=True, reversed_bits=True),
        tiff(gray.astype(int) * 16, 12, 1),
    ]
    for data in refused:
        with pytest.raises(RefusedError, match="unsupported_format"):
            prepare_image(data, config=config, detectors=detectors)
    decoded = [
        (photos / "multiface.jpg").read_bytes()[:-2],  # by simplejpeg
        tiff(colors, 8, 2, separate=True),  # by Pillow
        tiff(deep, 16, 2, separate=True, compression=DEFLATE),  # by libtiff
        tiff(65535 - gray.astype(np.uint16) * 257, 16, 0),  # inverted by segmint
    ]
    truth = json.loads((photos / "truth.json").read_text())["multiface.jpg"]["faces"]
    assert len(truth) == 6
    for data in decoded:
        regions = prepare_image(data, config=config, detectors=detectors).regions
        for x, y, width, height in (face["box"] for face in truth):
            left, top, right, bottom = x + width / 8, y + height / 8, x + width * 7 / 8, y + height * 7 / 8
            assert any(
                each.x <= left and each.y <= top and each.x + each.w >= right and each.y + each.h >= bottom
                for each in regions
            ), (x, y)
