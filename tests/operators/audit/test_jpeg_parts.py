"""JPEGs of every kind, taken apart marker by marker."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segmint.operators.audit.jpeg_parts import frame_size, jpeg_parts
from segmint.operators.prepare.release import ReleaseConfig, release
from tests.support.builds import photograph


def jpeg(**options: Any) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(photograph("coffee", (241, 160))).save(sink, "JPEG", **options)
    return sink.getvalue()


@pytest.mark.parametrize("quality", [1, 20, 50, 75, 95, 100])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}, {"optimize": True}])
def test_a_plain_picture_has_a_size_and_nothing_else(quality: int, options: dict[str, Any]) -> None:
    parts = jpeg_parts(jpeg(quality=quality, **options))
    assert (parts.width, parts.height, parts.metadata) == (241, 160, ())


def test_what_we_release_is_plain() -> None:
    released = release(np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8), ReleaseConfig())
    parts = jpeg_parts(released.jpeg)
    assert (parts.width, parts.height, parts.metadata) == (70, 90, ())


def segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(payload) + 2).to_bytes(2, "big") + payload


@pytest.mark.parametrize(
    ("inserted", "named"),
    [
        (segment(0xE1, b"Exif\0\0II"), "EXIF"),
        (segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"), "XMP"),
        (segment(0xE2, b"ICC_PROFILE\0\1\1"), "an ICC profile"),
        (segment(0xE2, b"MPF\0"), "more pictures"),
        (segment(0xED, b"Photoshop 3.0\0"), "Photoshop data"),
        (segment(0xE0, b"JFXX\0\x10"), "a thumbnail"),
        (segment(0xE0, b"JFIF\0" + bytes(7) + b"\1\1" + bytes(3)), "a thumbnail"),
        (segment(0xEB, b"other"), "APP11 data"),
        (segment(0xFE, b"me"), "a comment"),
        (b"\xff\xff" + segment(0xFE, b""), "a comment"),
    ],
)
def test_metadata_is_named(inserted: bytes, named: str) -> None:
    plain = jpeg()
    assert jpeg_parts(plain[:2] + inserted + plain[2:]).metadata == (named,)
    # Before the end too, where decoders that stop at the first scan do not look.
    assert jpeg_parts(plain[:-2] + inserted + plain[-2:]).metadata == (named,)


def test_bytes_after_the_end_are_told() -> None:
    assert jpeg_parts(jpeg() + jpeg()).metadata == (f"{len(jpeg())} bytes after the picture's end",)


def test_every_cut_is_an_error() -> None:
    whole = jpeg(quality=5)
    for length in range(len(whole)):
        with pytest.raises(ValueError, match=r"it |marker"):
            jpeg_parts(whole[:length])


@pytest.mark.parametrize("data", [b"", b"text", b"\xff\xd8\xff\xd9", b"\xff\xd8nothing", b"\xff\xd8\xff\xe0\0\1x"])
def test_what_is_no_jpeg_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"it |marker"):
        jpeg_parts(data)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"comment": b"x" * 300}, {"exif": b"Exif\0\0" + bytes(99)}]
)
def test_the_frame_is_found_in_the_first_bytes(options: dict[str, Any]) -> None:
    data = jpeg(**options)
    assert frame_size(data) == (241, 160)
    known = [frame_size(data[:length]) for length in range(2, len(data))]
    first = known.index((241, 160))
    assert set(known[:first]) == {None}
    assert set(known[first:]) == {(241, 160)}


def test_what_has_no_frame_is_no_jpeg() -> None:
    for data in (b"", b"GIF89a", b"\xff\xd8\xff\xda" + bytes(20), b"\xff\xd8abcdefghijkl"):
        with pytest.raises(ValueError, match=r"frame|begin|marker"):
            frame_size(data)
