"""Where packets lie in a container, and what of a damaged or hostile one is read."""

import struct
import zlib

import pytest

from segmint.operators.opt_out import MOST_XMP, Metadata, find_metadata
from tests.support.bad_images import heic
from tests.support.signed_images import MIME, image, packet, signed, training

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow's, of a damaged TIFF

XMP = packet("<tdm:reservation>1</tdm:reservation>")


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def in_png(*chunks: bytes) -> bytes:
    """A PNG with these chunks behind its pixels."""
    whole = image("PNG")
    return whole[:-12] + b"".join(chunks) + whole[-12:]


def test_a_long_packet_is_put_together_from_its_pieces_in_a_jpeg() -> None:
    """XMP specification, part 3, 1.1.3.1: pieces may be in any order."""
    long = packet(f"<tdm:policy>{'x' * 150_000}</tdm:policy><tdm:reservation>1</tdm:reservation>")
    header = b"http://ns.adobe.com/xmp/extension/\0" + b"A" * 32 + struct.pack(">I", len(long))
    pieces = [
        segment(0xE1, header + struct.pack(">I", at) + long[at : at + 60_000]) for at in range(0, len(long), 60_000)
    ]
    data = image("JPEG", XMP)
    assert find_metadata(data[:2] + b"".join(reversed(pieces)) + data[2:]) == Metadata((XMP, long))


def test_odd_markers_of_a_jpeg_hide_nothing() -> None:
    data = image("JPEG", XMP)
    for odd in (b"\xff\xd0", b"\xff\x01", b"\xff" * 3_000_000):
        assert find_metadata(data[:2] + odd + data[2:]) == Metadata((XMP,))


def test_a_piece_that_is_stored_twice_counts_once() -> None:
    header = b"http://ns.adobe.com/xmp/extension/\0" + b"A" * 32 + struct.pack(">II", len(XMP), 0)
    data = image("JPEG")
    assert find_metadata(data[:2] + segment(0xE1, header + XMP) * 2 + data[2:]) == Metadata((XMP,))


def test_a_png_has_packets_in_texts_of_several_kinds() -> None:
    raw = b"\nxmp\n%8d\n%s\n" % (len(XMP), XMP.hex().encode())
    for text in (
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0en\0key\0" + zlib.compress(XMP)),
        chunk(b"zTXt", b"Raw profile type xmp\0\0" + zlib.compress(raw)),
        chunk(b"tEXt", b"Raw profile type xmp\0" + raw),
        chunk(b"tEXt", b"Comment\0" + XMP),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(XMP)),
        chunk(b"tEXt", b"Raw profile type APP1\0" + raw),
        chunk(b"eXIf", XMP),
        chunk(b"tXMP", XMP),  # of an early draft of XMP; exiftool reads it, too
    ):
        assert find_metadata(in_png(text)) == Metadata((XMP,))
    assert find_metadata(in_png(chunk(b"tEXt", b"Comment\0a photograph"))) == Metadata()
    assert find_metadata(image("PNG", XMP, zipped=True)) == Metadata((XMP,))


def test_the_misspelled_name_of_xmp_in_a_webp_is_known() -> None:
    """ImageMagick reads this name, too."""
    data = image("WEBP", XMP)
    assert find_metadata(data.replace(b"XMP ", b"XMP\0", 1)) == Metadata((XMP,))


def test_all_packets_of_a_gif_are_read() -> None:
    silent, data = image("GIF", packet("<tdm:reservation>0</tdm:reservation>")), image("GIF", XMP)
    block = data[data.index(b"\x21\xff\x0bXMP") : -1]
    assert find_metadata(silent[:-1] + block + silent[-1:]).packets[1:] == (XMP,)


@pytest.mark.parametrize("kind", ["AVIF", "HEIC"])
def test_xmp_is_found_in_its_box_of_heic_and_avif(kind: str) -> None:
    """XMP specification, part 3, has this box for all files of boxes; exiftool reads it in HEIC, too."""
    data = heic("photograph") if kind == "HEIC" else image("AVIF")
    uuid = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
    assert find_metadata(data) == Metadata()
    assert find_metadata(data + struct.pack(">I4s", len(XMP) + 24, b"uuid") + uuid + XMP) == Metadata((XMP,))


@pytest.mark.parametrize("kind", MIME)
def test_an_image_that_is_cut_anywhere_is_no_error(kind: str) -> None:
    data = signed(image(kind, XMP), kind, training("cawg", "notAllowed"))
    whole = find_metadata(data)
    assert whole.c2pa == MIME[kind]
    assert any(b"tdm:reservation" in found for found in whole.packets)
    for end in range(0, len(data), len(data) // 200):
        find_metadata(data[:end])


def test_a_text_that_unpacks_to_too_much_is_not_unpacked_whole() -> None:
    bomb = chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(20 << 20)))
    many = in_png(bomb, bomb, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP))
    assert sum(map(len, find_metadata(many).packets)) <= MOST_XMP


@pytest.mark.parametrize(
    "data",
    [
        in_png(chunk(b"zTXt", b"Raw profile type xmp\0\0" + zlib.compress(b"\nxmp\n 3\nzz zz"))),
        in_png(chunk(b"zTXt", b"Raw profile type xmp\0\0no deflate")),
        in_png(chunk(b"iTXt", b"XML:com.adobe.xmp")),
        b"\xff\xd8\xff" + b"\xff" * 1000,
        b"\xff\xd8" + segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + b"A" * 35),
        b"\xff\xd8\xff\xe1\0\0http",
        b"RIFF\xff\xff\xff\xffWEBPXMP \xff\xff\xff\xff",
        b"II*\0\xff\xff\xff\xff",
        b"II+\0\x08\0\0\0" + b"\xff" * 8,
        b"MM\0*",
        b"GIF89a\x21\xff\x0bXMP DataXMP",
        b"",
    ],
)
def test_odd_containers_hold_nothing(data: bytes) -> None:
    assert not any(find_metadata(data).packets)
