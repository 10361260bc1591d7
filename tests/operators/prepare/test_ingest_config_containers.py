"""Containers are recognized by their bytes, and PNGs are checked to the end."""

import struct

import pytest

from segmint.catalogs.findings import Reason, RejectedError
from segmint.operators.prepare.ingest_config import SUPPORTED, check_whole, recognize
from tests.support.bad_images import encode, flipped, heic, photograph, png, png_chunk


def reason_of(data: bytes) -> Reason:
    with pytest.raises(RejectedError) as verdict:
        recognize(data)
    return verdict.value.reason


FIRST = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")


def boxed(brand: bytes, *compatible: bytes) -> bytes:
    return struct.pack(">I4s4sI", 16 + 4 * len(compatible), b"ftyp", brand, 0) + b"".join(compatible)


@pytest.mark.parametrize("kind", SUPPORTED)
def test_every_supported_container_is_recognized(kind: str) -> None:
    data = heic("photograph") if kind == "HEIC" else encode(photograph().resize((90, 60)), kind)
    assert recognize(data) == kind
    others = tuple(each for each in SUPPORTED if each != kind)
    with pytest.raises(RejectedError, match=f"; expected one of {', '.join(others)}$") as verdict:
        recognize(data, others)
    assert verdict.value.reason is Reason.UNSUPPORTED_FORMAT


def test_a_file_of_the_common_brand_says_its_codec_among_the_others() -> None:
    assert recognize(boxed(b"mif1", b"miaf", b"heic")) == "HEIC"
    assert recognize(boxed(b"mif1", b"avif", b"mif1")) == "AVIF"
    for data, name in (
        (boxed(b"mif1", b"miaf"), "HEIF"),
        (boxed(b"hevc", b"heic"), "HEIC sequence"),
        (boxed(b"msf1"), "HEIF"),
    ):
        with pytest.raises(RejectedError, match=f": a {name} file"):
            recognize(data)


def test_a_format_that_is_left_out_is_named() -> None:
    for brand, name in ((b"heic", "HEIC"), (b"avif", "AVIF"), (b"mif1", "HEIF")):
        with pytest.raises(RejectedError) as verdict:
            recognize(boxed(brand, b"heic", b"avif"), FIRST)
        assert verdict.value.detail == f"a {name} file; expected one of JPEG, PNG, WEBP, TIFF, BMP, GIF"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.EMPTY_OBJECT),
        (b"\xff\xd8", Reason.NOT_AN_IMAGE),
        (b"BM is how this text begins, and so may others", Reason.NOT_AN_IMAGE),
        (b"<html><p>a page about <svg> files</p></html>", Reason.NOT_AN_IMAGE),
        (b"how to write an <svg> tag", Reason.NOT_AN_IMAGE),
        (b"RIFF\x24\x00\x00\x00WAVEfmt ", Reason.NOT_AN_IMAGE),
        (b"\x00\x00\x00\x18ftypisom", Reason.NOT_AN_IMAGE),
        (b"\x00\x00\x00\x18ftypcrx ", Reason.UNSUPPORTED_FORMAT),
        (b"\xef\xbb\xbf<svg xmlns='x'/>", Reason.UNSUPPORTED_FORMAT),
        (b"P6\n3 2\n255\n", Reason.UNSUPPORTED_FORMAT),
    ],
)
def test_other_bytes_get_the_reason_that_fits(data: bytes, reason: Reason) -> None:
    assert reason_of(data) is reason


def test_an_intact_png_passes_with_any_bytes_after_it() -> None:
    check_whole(png(), "PNG")
    check_whole(png() + b"appended", "PNG")


def test_damage_in_an_ancillary_chunk_is_ignored() -> None:
    remark = png_chunk(b"tEXt", b"Title\x00a photograph")
    end = png().rindex(b"IEND") - 4
    for chunk in (remark, flipped(remark, 14, 1)):
        check_whole(png()[:end] + chunk + png()[end:], "PNG")


@pytest.mark.parametrize("position", [20, 60, 100_000])
def test_a_flipped_byte_is_found(position: int) -> None:
    with pytest.raises(RejectedError, match="wrong CRC") as verdict:
        check_whole(flipped(png(), position, 1), "PNG")
    assert verdict.value.reason is Reason.CORRUPT


def test_an_impossible_length_is_corrupt_and_not_truncated() -> None:
    with pytest.raises(RejectedError, match="impossible length") as verdict:
        check_whole(png()[:8] + struct.pack(">I", 2**31) + png()[12:], "PNG")
    assert verdict.value.reason is Reason.CORRUPT
