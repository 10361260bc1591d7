"""Untrusted bytes become complete upright sRGB pixels, or get the exact reason why not."""

import io
import math
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, PngImagePlugin
from pydantic import ValidationError

from segmint.catalogs.findings import Reason, RejectedError
from segmint.operators.prepare.ingest import (
    BrokenDecoderError,
    IngestConfig,
    IngestedImage,
    decode_photograph,
    guarded,
    ingest,
    require_decoder,
)
from segmint.operators.prepare.ingest_config import SUPPORTED
from tests.support import bad_images
from tests.support.bad_images import HEIC, BadImage, encode, half_transparent, heic, photograph, samples

# Pillow warns about the damage in these files.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

CONFIG = IngestConfig()
DECODED = [sample for sample in samples() if sample.data is not None and sample.stage in {None, "ingest"}]


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def read(data: bytes) -> np.ndarray:
    return ingest(data, CONFIG).image


def distance(left: np.ndarray, right: np.ndarray) -> float:
    """Mean absolute difference in levels of 255."""
    return float(np.abs(left.astype(np.float64) - right).mean())


def reason(data: bytes, config: IngestConfig = CONFIG) -> Reason | None:
    try:
        ingest(data, config)
    except RejectedError as verdict:
        return verdict.reason
    return None


@pytest.mark.parametrize("sample", DECODED, ids=lambda sample: sample.name)
def test_every_kind_of_file_gets_its_exact_verdict(sample: BadImage) -> None:
    """Plain pixels, or the same sentence each time, which holds no metadata."""
    assert sample.data is not None
    if sample.reason is None:
        result = ingest(sample.data, CONFIG)
        assert result.image.dtype == np.uint8
        assert result.image.flags.c_contiguous
        assert result.image.shape == (result.source_height, result.source_width, 3)
        return
    details = []
    for _ in range(2):
        with pytest.raises(RejectedError) as verdict:
            ingest(sample.data, CONFIG)
        assert verdict.value.reason == sample.reason
        details.append(verdict.value.detail)
    assert details[0] == details[1]
    assert len(details[0]) < 250
    assert "SEGMINT" not in details[0]
    assert "object at" not in details[0]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("at_each_byte", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_jpeg_cut_anywhere_is_refused(mode: str, options: dict[str, object], at_each_byte: bool) -> None:
    data = encode(photograph().resize((96, 72)).convert(mode), "JPEG", **options)
    assert reason(data) is None
    step = 1 if at_each_byte or (mode == "RGB" and not options) else 7
    lengths = {*range(3, len(data) - 2, step), *range(len(data) - 8, len(data) - 2)}
    assert {reason(data[:length]) for length in lengths} == {Reason.TRUNCATED}
    for missing in (1, 2):  # of the end marker
        assert np.array_equal(read(data[:-missing]), read(data))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg"}),
        ("BMP", {}),
        ("AVIF", {"speed": 10}),
    ],
    ids=str,
)
def test_other_files_cut_anywhere_are_refused(kind: str, options: dict[str, object]) -> None:
    data = encode(photograph().resize((96, 72)), kind, **options)
    assert {reason(data[:length]) for length in range(20, len(data), 7)} == {Reason.TRUNCATED}


@pytest.mark.parametrize("name", HEIC)
def test_a_heic_cut_anywhere_is_refused(name: str) -> None:
    data = heic(name)
    assert {reason(data[:length]) for length in range(20, len(data), 11)} == {Reason.TRUNCATED}


@settings(max_examples=150)
@given(kind=st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"]), seed=st.integers(0, 2**32 - 1))
def test_damage_never_raises_anything_but_a_verdict(kind: str, seed: int) -> None:
    data = bytearray(encode(photograph().resize((96, 72)), kind))
    random = np.random.default_rng(seed)
    for position in random.integers(0, min(len(data), 4000), size=random.integers(1, 30)):
        data[position] = random.integers(256)
    reason(bytes(data))


TIFF_TYPES = {  # each with a value that no tag expects
    1: b"\xff", 2: b"abc\x00", 3: b"\x01\x00", 4: b"\xff" * 4, 5: b"\x01\x00\x00\x00" + bytes(4), 7: b"zzzz",
    9: struct.pack("<i", -5), 10: struct.pack("<ii", -1, 2), 11: struct.pack("<f", math.inf),
    12: struct.pack("<d", math.nan), 16: b"\x00" * 7 + b"\x80",
}  # fmt: skip


@pytest.mark.parametrize("kind", TIFF_TYPES)
def test_a_tag_of_any_type_is_never_anything_but_a_verdict(kind: int) -> None:
    small = encode(photograph().resize((96, 72)), "TIFF")
    tags = [254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 282, 284, 317, 320, 322, 323, 324, 325]
    for tag in [*tags, 330, 338, 339, 347, 513, 514, 529, 530, 532, 700, 34665, 34675, 50706]:
        for count in (0, 1):
            reason(bad_images.retagged_tiff(tag, kind, TIFF_TYPES[kind], count, small))


def in_strips(kept: int) -> bytes:
    """The photograph as an uncompressed TIFF of 30 strips, of which the first `kept` are listed."""
    data, row = encode(photograph(), "TIFF"), 3 * photograph().width
    with Image.open(io.BytesIO(data)) as opened:
        start = opened.tag_v2[273][0]
    data = bad_images.retagged_tiff(278, 4, struct.pack("<I", 10), 1, data)
    starts = struct.pack(f"<{kept}I", *(start + 10 * row * index for index in range(kept)))
    data = bad_images.retagged_tiff(273, 4, starts, kept, data)
    return bad_images.retagged_tiff(279, 4, struct.pack("<I", 10 * row) * kept, kept, data)


def test_a_tiff_that_lacks_strips_is_refused_and_not_filled_with_black() -> None:
    assert np.array_equal(read(in_strips(30)), pixels(photograph()))
    for kept in (1, 29):
        with pytest.raises(RejectedError, match=f"lists {kept} strips or tiles with {kept} sizes; expected 30"):
            read(in_strips(kept))


def test_jpeg_strips_of_a_tiff_are_whole() -> None:
    data = encode(photograph(), "TIFF", compression="jpeg", strip_size=8192)
    with Image.open(io.BytesIO(data)) as opened:
        starts, sizes = opened.tag_v2[273], opened.tag_v2[279]
    assert reason(data) is None
    halves = struct.pack(f"<{len(sizes)}I", *(size // 2 for size in sizes))
    assert reason(bad_images.retagged_tiff(279, 4, halves, len(sizes), data)) is Reason.TRUNCATED
    for tag, value in ((278, 1000), (273, starts[0]), (279, sizes[0])):
        data = bad_images.retagged_tiff(tag, 4, struct.pack("<I", value), 1, data)
    with pytest.raises(RejectedError, match="strip or tile 1 is damaged or incomplete; expected 451×300 pixels"):
        read(data)


def test_flipped_bits_are_found_wherever_a_container_has_a_checksum() -> None:
    """docs/catalogs.md says which have one."""
    small = photograph().resize((96, 72))
    for options in ({"compression": "tiff_adobe_deflate"}, {"compression": "tiff_adobe_deflate", "tiffinfo": {317: 2}}):
        data = encode(small, "TIFF", **options)
        for place in range(100, len(data) - 400, 797):
            assert reason(bad_images.flipped(data, place, 1)) is Reason.CORRUPT


def with_pages(count: int) -> bytes:
    """The photograph as a TIFF with this many reduced copies after it, each of 9 gray pixels."""
    data = bytearray(encode(photograph(), "TIFF"))
    data += bytes(len(data) % 2)
    (place,) = struct.unpack_from("<I", data, 4)
    struct.pack_into("<I", data, place + 2 + 12 * struct.unpack_from("<H", data, place)[0], len(data))
    tags = ((254, 1), (256, 9), (257, 1), (262, 1), (273, 8), (279, 9))
    for left in reversed(range(count)):
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        behind = len(data) + 2 + len(entries) + 4
        data += struct.pack("<H", len(tags)) + entries + struct.pack("<I", behind if left else 0)
    return bytes(data)


END_OF_HEADER = bad_images.png().index(b"IDAT") - 4
EMPTY_PARTS = {
    "segments": (bad_images.jpeg(), 2, b"\xff\xfe\0\2"),
    "fill bytes": (bad_images.jpeg(), 2, b"\xff"),
    "chunks": (bad_images.png(), END_OF_HEADER, bad_images.png_chunk(b"tEXt", b"")),
}


@pytest.mark.parametrize("name", EMPTY_PARTS)
def test_empty_parts_are_counted_before_pillow_reads_them(name: str) -> None:
    data, place, part = EMPTY_PARTS[name]
    assert reason(data[:place] + part * 1000 + data[place:]) is None
    with pytest.raises(RejectedError, match=r"has over 100,000 (segments|chunks)"):
        read(data[:place] + part * 200_000 + data[place:])


def test_reduced_copies_in_a_tiff_are_counted() -> None:
    assert reason(with_pages(3)) is None
    with pytest.raises(RejectedError, match="over 1,000 reduced copies"):
        read(with_pages(1500))


def hostile(seed: int) -> bytes:
    """A picture of any container, encoding and mode, damaged in one of several ways."""
    random = np.random.default_rng(seed)
    pictures = {mode: photograph().resize((96, 72)).convert(mode) for mode in ("RGB", "L", "1", "P", "CMYK", "RGBA")}
    kind, mode, options = ENCODINGS[random.integers(len(ENCODINGS))]
    metadata = {"exif": bad_images.exif(6)} if random.integers(2) and kind in {"JPEG", "PNG", "WEBP"} else {}
    data = bytearray(heic(mode) if kind == "HEIC" else encode(pictures[mode], kind, **options, **metadata))
    for _ in range(random.integers(1, 4)):
        deed, place = random.integers(5), int(random.integers(len(data)))
        size = int(random.integers(1, 40))
        if deed == 0:
            data[place : place + size] = random.bytes(len(data[place : place + size]))
        elif deed == 1:
            data[place : place + 4] = [b"\xff\xff\xff\xff", b"\x00" * 4, b"\x80\x00\x00\x00"][random.integers(3)]
        elif deed == 2:
            del data[place : place + size]
        elif deed == 3:
            data[place:place] = data[place : place + size] * int(random.integers(1, 4))
        else:  # in the header, where the structure is
            data[int(random.integers(min(len(data), 400)))] = int(random.integers(256))
    return bytes(data)


ENCODINGS: list[tuple[str, str, dict[str, object]]] = [
    *(("JPEG", mode, options) for mode in ("RGB", "L", "CMYK") for options in ({}, {"progressive": True})),
    *(("PNG", mode, {}) for mode in ("RGB", "L", "1", "P", "RGBA")),
    *(("WEBP", mode, options) for mode in ("RGB", "RGBA") for options in ({}, {"lossless": True})),
    *(("TIFF", mode, {}) for mode in ("RGB", "L", "1", "P", "CMYK", "RGBA")),
    *(("TIFF", "RGB", {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")),
    ("TIFF", "1", {"compression": "group4"}),
    *(("BMP", mode, {}) for mode in ("RGB", "L", "1", "P")),
    *(("GIF", mode, {}) for mode in ("L", "P")),
    *(("AVIF", mode, {"speed": 10}) for mode in ("RGB", "RGBA", "L")),
    *(("HEIC", name, {}) for name in HEIC),
]


@pytest.mark.parametrize(
    ("seeds", "decode"),
    [
        (range(300), read),
        # Decodes HEICs in a child process, because damaged ones can crash libheif.
        pytest.param(range(300, 100_000), decode_photograph, marks=[pytest.mark.long, pytest.mark.timeout(3600)]),
    ],
    ids=["300", "100,000"],
)
def test_no_damage_to_any_container_is_anything_but_a_verdict(
    seeds: range, decode: Callable[[bytes], np.ndarray]
) -> None:
    for seed in seeds:
        with suppress(RejectedError):
            decode(hostile(seed))


def test_a_profile_or_a_text_of_megabytes_refuses_no_png() -> None:
    """Pillow refuses metadata over a megabyte; the profile still counts, and so does the orientation."""
    plain = read(encode(photograph(), "PNG"))
    swapped = encode(photograph(), "PNG", icc_profile=bad_images.large_profile(), exif=bad_images.exif(3))
    assert distance(read(swapped)[::-1, ::-1], np.roll(plain, -1, axis=2)) < 2
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "x" * 2_000_000, zip=True)
    texts.add_itxt("Title", "y" * 2_000_000, "en", "Title", zip=True)
    written = encode(photograph(), "PNG", pnginfo=texts)
    assert np.array_equal(read(written), plain)
    small = ingest(written, IngestConfig(), 64)  # as a curation decodes it
    assert (small.source_width, small.source_height) == plain.shape[1::-1]
    end = bad_images.png().rindex(b"IEND") - 4
    late = bad_images.png_chunk(b"zTXt", b"a\x00\x00" + zlib.compress(bytes(2_000_000)))
    assert np.array_equal(read(bad_images.png()[:end] + late + bad_images.png()[end:]), plain)


def test_a_decoder_that_fails_on_everything_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError("encoder error -2")

    require_decoder.cache_clear()
    monkeypatch.setattr(Image.Image, "crop", broken)
    with pytest.raises(BrokenDecoderError, match=r"can't decode a PNG that it just encoded.*encoder error -2"):
        ingest(bad_images.png(), CONFIG)
    monkeypatch.undo()
    with pytest.raises(RejectedError, match="cannot be decoded"):
        guarded(broken, "PNG")


def test_an_import_that_fails_refuses_nothing() -> None:
    def broken() -> None:
        raise ImportError("libtiff.so")

    with pytest.raises(ImportError, match="libtiff"):
        guarded(broken, "TIFF")


@pytest.mark.parametrize("kind", SUPPORTED)
def test_each_container_has_control_images_that_are_decoded(kind: str) -> None:
    require_decoder.cache_clear()
    require_decoder(kind)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_pictures_are_turned_upright_as_exif_asks(kind: str, orientation: int) -> None:
    lossless: dict[str, object] = {"WEBP": {"lossless": True}, "AVIF": {"speed": 10}}.get(kind, {})
    exif = bad_images.exif(orientation)
    stored = encode(photograph(), kind, exif=exif, **lossless)
    with Image.open(io.BytesIO(stored)) as opened:
        expected = pixels(ImageOps.exif_transpose(opened))
    result = ingest(stored, CONFIG)
    assert np.array_equal(result.image, expected)
    assert (result.source_width, result.source_height) == ((300, 451) if orientation >= 5 else (451, 300))


def test_a_heic_has_the_pixels_of_its_photograph_upright_once() -> None:
    """Its boxes turn it, and its EXIF, which says so again, is not asked (ISO/IEC 23008-12, annex A)."""
    stored = pixels(Image.fromarray(skimage.data.coffee()).resize((96, 64)))
    for name, expected in (
        ("photograph", stored),
        ("ten_bit", stored),
        ("two", stored),  # the second of its images is the primary one; the first is turned by 180 degrees
        ("turned_6", np.rot90(stored, -1)),
        ("turned_5", stored.transpose(1, 0, 2)),
    ):
        result = ingest(heic(name), CONFIG)
        assert distance(result.image, expected) < 4, name
        assert (result.source_width, result.source_height) == expected.shape[1::-1]
    faded = read(heic("alpha"))
    assert distance(faded[:, :8], stored[:, :8]) < 15
    assert (faded[:, -1] > 245).all()


def test_avif_keeps_colors_and_applies_a_profile() -> None:
    plain = read(encode(photograph(), "AVIF", speed=10, quality=95, subsampling="4:4:4"))
    assert distance(plain, pixels(photograph())) < 3
    profile = bad_images.swapped_profile()
    swapped = read(encode(photograph(), "AVIF", speed=10, quality=95, subsampling="4:4:4", icc_profile=profile))
    assert distance(swapped, np.roll(plain, -1, axis=2)) < 3


def test_containers_that_are_not_among_the_formats_are_refused() -> None:
    first = IngestConfig(formats=("GIF", "JPEG"))
    assert first.formats == ("JPEG", "GIF")  # in one order, since the list is part of a dataset's identity
    assert reason(bad_images.jpeg(), first) is None
    for data in (heic("photograph"), bad_images.png(), encode(photograph(), "AVIF", speed=10)):
        assert reason(data, first) is Reason.UNSUPPORTED_FORMAT
    for wrong in ([], ["jpeg"], "JPEG", ["JPEG", "JXL"], [3]):
        with pytest.raises(ValidationError, match=r"expected auto or a list of JPEG.*, as in \[JPEG, PNG\]"):
            IngestConfig(formats=wrong)


def test_jpeg_pixels_are_those_of_pillow() -> None:
    for options in ({}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}):
        data = encode(photograph(), "JPEG", **options)
        with Image.open(io.BytesIO(data)) as opened:
            assert np.array_equal(read(data), pixels(opened))


def test_lossless_files_keep_every_pixel() -> None:
    for kind, options in (("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        assert np.array_equal(read(encode(photograph(), kind, **options)), pixels(photograph()))


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    deep = bad_images.sixteen_bit_grey()
    expected = np.round(np.asarray(deep) / 257.0).astype(np.uint8)
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(read(encode(deep, kind))[:, :, 1], expected)
    assert (expected.min(), expected.max()) == (0, 255)


def test_a_sixteen_bit_tiff_may_store_white_as_zero() -> None:
    deep = bad_images.sixteen_bit_grey()
    negative = Image.fromarray(65535 - np.asarray(deep))
    stored = encode(negative, "TIFF", tiffinfo={262: 0})
    assert distance(read(stored), read(encode(deep, "PNG"))) < 0.6


def test_transparency_is_composited_on_white() -> None:
    color = np.asarray(half_transparent()).astype(np.float64)
    alpha = color[:, :, 3:] / 255
    expected = color[:, :, :3] * alpha + 255 * (1 - alpha)
    result = read(encode(half_transparent(), "PNG"))
    assert np.abs(result - expected).max() <= 1
    assert (result[:, -1] == 255).all()


def test_cmyk_keeps_its_colors_and_is_refused_without_adobes_marker() -> None:
    """Without the marker, some programs write inverted values and others don't, so one of them would be a negative."""
    cmyk = photograph().convert("CMYK")
    adobe = encode(cmyk, "JPEG", quality=98)
    assert distance(read(adobe), pixels(photograph())) < 2
    marker = adobe.index(b"\xff\xee")
    length = int.from_bytes(adobe[marker + 2 : marker + 4], "big")
    for values in (cmyk, Image.fromarray(255 - np.asarray(cmyk), "CMYK")):
        plain = encode(values, "JPEG", quality=98)
        with pytest.raises(RejectedError, match="a CMYK JPEG without Adobe's marker") as verdict:
            read(plain[:marker] + plain[marker + 2 + length :])
        assert verdict.value.reason is Reason.UNSUPPORTED_FORMAT


def test_a_profile_is_applied() -> None:
    plain = read(encode(photograph(), "PNG"))
    swapped = read(encode(photograph(), "PNG", icc_profile=bad_images.swapped_profile()))
    # Its red primary is sRGB's blue, and so on: the channels are rotated.
    assert distance(swapped, plain) > 20
    assert distance(swapped, np.roll(plain, -1, axis=2)) < 2


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_srgb_profiles_and_broken_ones_leave_the_pixels_alone(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = read(encode(photograph(), kind, **options))
    for profile in (srgb, b"no profile", srgb[:200], bad_images.swapped_profile()[:-2000]):
        assert np.array_equal(read(encode(photograph(), kind, icc_profile=profile, **options)), plain)


def test_a_profile_of_another_color_space_is_ignored() -> None:
    grey = photograph().convert("L")
    tagged = read(encode(grey, "JPEG", icc_profile=bad_images.swapped_profile()))
    assert np.array_equal(tagged, read(encode(grey, "JPEG")))


def test_verdicts_name_the_limit() -> None:
    data = bad_images.jpeg()
    for config, key, expected in (
        (IngestConfig(max_pixels=451 * 300 - 1), "ingest.max_pixels", Reason.TOO_LARGE),
        (IngestConfig(min_short_side=301), "ingest.min_short_side", Reason.TOO_SMALL),
        (IngestConfig(max_bytes=len(data) - 1), "ingest.max_bytes", Reason.TOO_LARGE),
    ):
        with pytest.raises(RejectedError, match=key) as verdict:
            ingest(data, config)
        assert verdict.value.reason is expected
    exact = IngestConfig(max_pixels=451 * 300, min_short_side=300, max_bytes=len(data))
    assert isinstance(ingest(data, exact), IngestedImage)


def test_pixels_beyond_pillows_own_limit_are_decoded_when_ours_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"):
        assert read(encode(photograph(), kind)).shape == (300, 451, 3), kind
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_camera_raw_files_are_not_read_as_their_thumbnails() -> None:
    thumbnail = photograph().resize((160, 120))
    for tags in ({254: 1}, {50706: b"\x01\x04\x00\x00"}):
        assert reason(encode(thumbnail, "TIFF", tiffinfo=tags)) is Reason.UNSUPPORTED_FORMAT
