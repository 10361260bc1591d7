"""JPEGs of every kind: their size from their first bytes, and names of metadata."""

import io
from typing import Any

import pytest
from PIL import Image

from segmint.operators.audit.privacy import frame_size, metadata_names
from tests.support.builds import photograph


def jpeg(**options: Any) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(photograph("coffee", (241, 160))).save(sink, "JPEG", **options)
    return sink.getvalue()


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
        (segment(0xFE, b"me"), "a comment"),
        (b"\xff\xff" + segment(0xFE, b""), "a comment"),
    ],
)
def test_metadata_is_named(inserted: bytes, named: str) -> None:
    plain = jpeg()
    assert metadata_names(plain) == []
    assert metadata_names(plain[:2] + inserted + plain[2:]) == [named]


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
