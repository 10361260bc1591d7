"""Untrusted bytes become complete upright sRGB pixels, or get the exact reason why not."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from segmint.catalogs.reasons import Reason, RejectedError
from segmint.operators.prepare.ingest import IngestConfig, Ingested, ingest
from tests.support import bad_images
from tests.support.bad_images import Sample, encode, half_transparent, photograph, samples

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
def test_every_kind_of_file_gets_its_exact_verdict(sample: Sample) -> None:
    assert sample.data is not None
    assert reason(sample.data) == sample.reason


@pytest.mark.parametrize("sample", [s for s in DECODED if s.reason is None], ids=lambda sample: sample.name)
def test_every_accepted_file_gives_plain_pixels(sample: Sample) -> None:
    assert sample.data is not None
    result = ingest(sample.data, CONFIG)
    assert result.image.dtype == np.uint8
    assert result.image.flags.c_contiguous
    assert result.image.shape == (result.source_height, result.source_width, 3)


@pytest.mark.parametrize("sample", DECODED, ids=lambda sample: sample.name)
def test_verdicts_are_the_same_sentence_each_time_and_hold_no_metadata(sample: Sample) -> None:
    assert sample.data is not None
    if sample.reason is None:
        return
    details = []
    for _ in range(2):
        with pytest.raises(RejectedError) as verdict:
            ingest(sample.data, CONFIG)
        details.append(verdict.value.detail)
    assert details[0] == details[1]
    assert len(details[0]) < 250
    assert "SEGMINT" not in details[0]
    assert "object at" not in details[0]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_cut_anywhere_is_refused(mode: str, options: dict[str, object]) -> None:
    data = encode(photograph().resize((96, 72)).convert(mode), "JPEG", **options)
    assert reason(data) is None
    assert {reason(data[:length]) for length in range(3, len(data))} == {Reason.TRUNCATED}


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
    ],
    ids=str,
)
def test_other_files_cut_anywhere_are_refused(kind: str, options: dict[str, object]) -> None:
    data = encode(photograph().resize((96, 72)), kind, **options)
    assert {reason(data[:length]) for length in range(20, len(data), 7)} == {Reason.TRUNCATED}


@settings(max_examples=150)
@given(kind=st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"]), seed=st.integers(0, 2**32 - 1))
def test_damage_never_raises_anything_but_a_verdict(kind: str, seed: int) -> None:
    data = bytearray(encode(photograph().resize((96, 72)), kind))
    random = np.random.default_rng(seed)
    for position in random.integers(0, min(len(data), 4000), size=random.integers(1, 30)):
        data[position] = random.integers(256)
    reason(bytes(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_turned_upright_as_exif_asks(kind: str, orientation: int) -> None:
    lossless = {"lossless": True} if kind == "WEBP" else {}
    exif = bad_images.exif(orientation)
    stored = encode(photograph(), kind, exif=exif, **lossless)
    with Image.open(io.BytesIO(stored)) as opened:
        expected = pixels(ImageOps.exif_transpose(opened))
    result = ingest(stored, CONFIG)
    assert np.array_equal(result.image, expected)
    assert (result.source_width, result.source_height) == ((300, 451) if orientation >= 5 else (451, 300))


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


def test_cmyk_keeps_its_colors_with_and_without_adobes_inversion() -> None:
    cmyk = photograph().convert("CMYK")
    adobe = encode(cmyk, "JPEG", quality=98)
    assert distance(read(adobe), pixels(photograph())) < 2
    # Without the marker, the same samples mean the opposite.
    marker = adobe.index(b"\xff\xee")
    length = int.from_bytes(adobe[marker + 2 : marker + 4], "big")
    plain = encode(Image.fromarray(255 - np.asarray(cmyk), "CMYK"), "JPEG", quality=98)
    plain = plain[:marker] + plain[marker + 2 + length :]
    assert distance(read(plain), pixels(photograph())) < 2


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
    assert isinstance(ingest(data, exact), Ingested)


def test_pixels_beyond_pillows_own_limit_are_decoded_when_ours_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert read(bad_images.png()).shape == (300, 451, 3)
    assert read(bad_images.jpeg()).shape == (300, 451, 3)


def test_camera_raw_files_are_not_read_as_their_thumbnails() -> None:
    thumbnail = photograph().resize((160, 120))
    for tags in ({254: 1}, {50706: b"\x01\x04\x00\x00"}):
        assert reason(encode(thumbnail, "TIFF", tiffinfo=tags)) is Reason.UNSUPPORTED_FORMAT
