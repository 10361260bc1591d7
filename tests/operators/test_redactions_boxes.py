"""Boxes of HEIC and AVIF, whole, damaged and hostile."""

import struct
import time
import zlib

import imagecodecs
import numpy as np
import pytest

from segmint.operators.opt_out import opt_out
from segmint.operators.redactions import boxes, uuids, xmp_items
from tests.support.bad_images import heic
from tests.support.signed_images import image, packet

XMP = packet("<tdm:reservation>1</tdm:reservation>")
MOST = 1 << 20


def box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content) + 8, name) + content


def listed(places: bytes, items: int = 1, behind: bytes = b"", encoding: bytes = b"") -> bytes:
    """A file whose meta box lists XMP items 1 and on, at these places and in this encoding."""
    what = b"mime\0application/rdf+xml\0" + (encoding and encoding + b"\0")
    entries = [box(b"infe", b"\2\0\0\0" + struct.pack(">HH", n + 1, 0) + what) for n in range(items)]
    names = box(b"iinf", bytes(4) + struct.pack(">H", items) + b"".join(entries))
    return box(b"ftyp", b"heic") + box(b"meta", bytes(4) + names + box(b"iloc", places) + behind)


def test_boxes_are_named_with_their_places() -> None:
    large = struct.pack(">I4sQ", 1, b"wide", 20) + b"1234"
    data = box(b"abcd", b"12") + large + struct.pack(">I4s", 0, b"last") + b"rest"
    assert [(name, data[start:stop]) for name, start, stop in boxes(data)] == [
        (b"abcd", b"12"),
        (b"wide", b"1234"),
        (b"last", b"rest"),
    ]
    assert list(uuids(box(b"uuid", b"u" * 16 + b"content"))) == [(b"u" * 16, b"content")]


def test_packets_are_found_in_files_and_inside_the_meta_box() -> None:
    assert list(xmp_items(image("AVIF", XMP), MOST)) == [XMP]
    assert len(list(xmp_items(heic("opted_out"), MOST))) == 1
    assert list(xmp_items(heic("photograph"), MOST)) == []
    inside = struct.pack(">4sBBHHHHHII", b"\1\0\0\0", 0x44, 0, 1, 1, 1, 0, 1, 0, len(XMP))
    assert list(xmp_items(listed(inside, behind=box(b"idat", XMP)), MOST)) == [XMP]


@pytest.mark.parametrize("encoding", [b"compress_zlib", b"deflate", b"gzip", b"br"])
def test_packets_in_an_encoding_are_decoded_or_count_as_opted_out(encoding: bytes) -> None:
    """ISO/IEC 14496-12, 8.11.6.1; libheif writes `compress_zlib`, `deflate` and `br`."""
    window = {b"compress_zlib": 15, b"deflate": -15, b"gzip": 31}
    stored = imagecodecs.brotli_encode(XMP)
    if encoding in window:
        compressor = zlib.compressobj(wbits=window[encoding])
        stored = compressor.compress(XMP) + compressor.flush()
    place = struct.pack(">4sBBHHHHHII", b"\1\0\0\0", 0x44, 0, 1, 1, 1, 0, 1, 0, len(stored))
    file = listed(place, behind=box(b"idat", stored), encoding=encoding)
    assert list(xmp_items(file, MOST)) == [XMP if encoding in window else None]
    found = opt_out(file)
    assert found is not None
    assert found.field == ("tdm:reservation" if encoding in window else "plus:DataMining")


def test_a_packet_that_unpacks_to_too_much_is_not_unpacked_whole() -> None:
    stored = zlib.compress(bytes(4 << 20), 1)
    place = struct.pack(">4sBBHHHHHII", b"\1\0\0\0", 0x44, 0, 1, 1, 1, 0, 1, 0, len(stored))
    (packet,) = xmp_items(listed(place, behind=box(b"idat", stored), encoding=b"deflate"), MOST)
    assert len(packet) <= MOST


@pytest.mark.parametrize("end", range(0, 300, 7))
def test_what_is_cut_has_no_packet_and_is_no_error(end: int) -> None:
    assert all(found in XMP for found in xmp_items(image("AVIF", XMP)[:end], MOST))


def test_no_damage_is_an_error() -> None:
    whole = bytearray(image("AVIF", XMP))
    random = np.random.default_rng(3)
    for _ in range(500):
        data = whole.copy()
        for place in random.integers(0, 700, size=5):
            data[place] = random.integers(256)
        list(xmp_items(bytes(data), MOST))


def test_lists_that_say_more_than_there_is_end_soon() -> None:
    """Extents of no bytes, extents that name the same bytes again and again, and items without end."""
    nothing = struct.pack(">4sBBH", b"\0\0\0\0", 0, 0, 65_535) + struct.pack(">HHH", 1, 0, 65_535) * 65_535
    again = struct.pack(">II", 0, 900_000) * 60_000
    repeated = struct.pack(">4sBBHHHH", b"\0\0\0\0", 0x44, 0, 1, 1, 0, 60_000) + again
    one = struct.pack(">HHII", 0, 1, 0, 900_000)
    items = struct.pack(">4sBBH", b"\0\0\0\0", 0x44, 0, 5000) + b"".join(
        struct.pack(">H", n + 1) + one for n in range(5000)
    )
    started = time.process_time()
    for data in (listed(nothing), listed(repeated), listed(items, 5000), box(b"free", b"") * 1_000_000):
        assert sum(map(len, xmp_items(data, MOST))) <= MOST
    assert time.process_time() - started < 3
