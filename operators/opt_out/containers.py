"""Search for XMP packets and C2PA manifests in an image's bytes, tolerating damage and decoding no pixels."""

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from PIL import TiffImagePlugin

from segmint.operators.boxes import uuids, xmp_items

MOST_XMP = 16 << 20
"""Maximum number of bytes of XMP to read per image. Further packets are ignored."""

MOST_PARTS = 100_000
"""Maximum number of segments or chunks to read. For comparison, an image of 250 MB has 30,000."""

_XMP_HEADER = b"http://ns.adobe.com/xap/1.0/\0"
_EXTENSION_HEADER = b"http://ns.adobe.com/xmp/extension/\0"  # followed by a name, the total length, and an offset
_PNG_PROFILE = b"Raw profile type "  # ImageMagick's keyword for XMP, EXIF, or IPTC
_TIFF_PACKETS, _TIFF_C2PA = (700, 34377), 52545  # XMP, and Photoshop's resources, which also contain XMP
_GIF_XMP, _GIF_XMP_END, _GIF_C2PA = b"\x21\xff\x0bXMP DataXMP", b"\x01\xff\xfe", b"\x21\xff\x0bC2PA_GIF"

_C2PA_BOX = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
_XMP_BOX = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")

_PNG_TEXTS, _PNG_PIXELS = (b"iTXt", b"zTXt", b"tEXt"), (b"IDAT", b"fdAT")
_WEBP_PIXELS = (b"VP8 ", b"VP8L", b"ALPH", b"ANMF")

_ENCODED = b"DataMining PROHIBITED"
"""Stands for XMP in an encoding that can't be decoded. Because in doubt, images count as opted out."""

_NO_FILL = re.compile(rb"[^\xff]")

_WORDS = (b"DataMining", b"reservation")
_MENTIONS = (*_WORDS, *(b"\0".join(bytes([each]) for each in word) for word in _WORDS))  # the last two are in UTF-16

Part = tuple[Literal["xmp", "c2pa"], bytes]


@dataclass(frozen=True)
class Metadata:
    """Metadata of an image that may contain an opt-out.

    `packets` contains parts of the file that mention a field of opt-outs. Each packet is either XMP or a larger part
    that contains XMP, such as EXIF. `c2pa` is the image's MIME type if the image contains a C2PA manifest, and None
    otherwise.
    """

    packets: tuple[bytes, ...] = ()
    c2pa: str | None = None


def find_metadata(data: bytes) -> Metadata:
    """Return the metadata of a JPEG, PNG, WebP, TIFF, GIF, HEIC, or AVIF, up to the first damage in its container.

    The packets themselves may be damaged. BMP supports neither XMP nor C2PA.
    """
    if data[4:8] == b"ftyp":
        return _collect("image/avif" if data[8:12] in (b"avif", b"avis") else "image/heic", _in_boxes(data))
    for prefixes, mime, parts in _CONTAINERS:
        if data.startswith(prefixes):
            return _collect(mime, parts(data))
    return Metadata()


def _collect(mime: str, parts: Iterator[Part]) -> Metadata:
    packets: list[bytes] = []
    room = MOST_XMP
    c2pa = None
    for kind, content in parts:
        if kind == "c2pa":
            c2pa = mime
        elif len(content) <= room and any(word in content for word in _MENTIONS):
            packets.append(content)
            room -= len(content)
    return Metadata(tuple(packets), c2pa)


def _in_jpeg(data: bytes) -> Iterator[Part]:
    """Read the segments before the scan (ITU-T T.81, B.1.1). APP11 contains C2PA, and all others may contain XMP.

    XMP is in a separate APP1, in EXIF's tag 700 (APP1), or in Photoshop's resources (APP13).
    """
    extensions: dict[bytes, dict[int, bytes]] = {}  # keyed by name, then by offset
    for marker, content in islice(_jpeg_segments(data), MOST_PARTS):
        if marker == 0xEB and content.startswith(b"JP"):
            yield "c2pa", b""
        elif marker == 0xE1 and content.startswith(_XMP_HEADER):
            yield "xmp", content[len(_XMP_HEADER) :]
        elif marker == 0xE1 and content.startswith(_EXTENSION_HEADER):
            piece = content[len(_EXTENSION_HEADER) :]
            if len(piece) > 40:
                extensions.setdefault(piece[:32], {}).setdefault(int.from_bytes(piece[36:40]), piece[40:])
        elif marker >= 0xE0:
            yield "xmp", content
    for pieces in extensions.values():  # a packet of over 64 KB spans several segments
        yield "xmp", b"".join(piece for _, piece in sorted(pieces.items()))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in (0xD9, 0xDA):  # the end, or the first scan
            return
        if marker == 0xFF:  # fill bytes
            behind = _NO_FILL.search(data, position)
            position = behind.start() - 1 if behind else len(data)
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a length
            position += 2
            continue
        length = int.from_bytes(data[position + 2 : position + 4])
        yield marker, data[position + 4 : position + 2 + length]
        position += 2 + max(length, 2)


def _in_png(data: bytes) -> Iterator[Part]:
    """Read all chunks (PNG specification, section 5) but pixels, because XMP has been in chunks of several names."""
    room = MOST_XMP  # bytes left for inflated texts
    for kind, start, stop in islice(png_chunks(data), MOST_PARTS):
        if kind == b"caBX":
            yield "c2pa", b""
        elif kind not in _PNG_PIXELS:
            packet = _png_packet(kind, data[start:stop], room)
            room -= len(packet) if kind in (b"iTXt", b"zTXt") else 0
            yield "xmp", packet


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind of each chunk of a PNG, and where its content starts and stops."""
    position = 8
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        yield kind, position + 8, position + 8 + length
        position += 12 + length


def _png_packet(kind: bytes, content: bytes, room: int) -> bytes:
    if kind not in _PNG_TEXTS:
        return content
    keyword, _, text = content.partition(b"\0")
    is_packed = kind == b"zTXt" or (kind == b"iTXt" and text[:1] == b"\1")
    if kind == b"iTXt":
        text = b"\0".join(text[2:].split(b"\0", 2)[2:])  # after the language and the translated keyword
    try:
        if is_packed:
            text = zlib.decompressobj().decompress(text[kind == b"zTXt" :], room) if room > 0 else b""
        return bytes.fromhex(b"".join(text.split()[2:]).decode()) if keyword.startswith(_PNG_PROFILE) else text
    except (zlib.error, ValueError):
        return b""


def _in_webp(data: bytes) -> Iterator[Part]:
    """Read all RIFF chunks but pixels, because some software misspells the name of XMP."""
    position = 12
    for _ in range(MOST_PARTS):
        if position + 8 > len(data):
            return
        kind, length = struct.unpack_from("<4sI", data, position)
        if kind == b"C2PA":
            yield "c2pa", b""
        elif kind not in _WEBP_PIXELS:
            yield "xmp", data[position + 8 : position + 8 + length]
        position += 8 + length + length % 2


def _in_tiff(data: bytes) -> Iterator[Part]:
    """Read the tags of the first page."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 8 if data[2] != 43 and data[3] != 43 else 16])
        stream = io.BytesIO(data)
        stream.seek(tags.next)
        tags.load(stream)
        packets, has_c2pa = [tags.get(tag) for tag in _TIFF_PACKETS], _TIFF_C2PA in tags
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - Pillow raises anything for a damaged TIFF, which says nothing
        return
    if has_c2pa:
        yield "c2pa", b""
    for packet in packets:
        if isinstance(packet, bytes | str):
            yield "xmp", packet if isinstance(packet, bytes) else packet.encode("latin-1")  # as Pillow decodes text


def _in_gif(data: bytes) -> Iterator[Part]:
    """Find the application extensions. A packet is stored verbatim, and the trailer after it makes readers skip it."""
    if _GIF_C2PA in data:
        yield "c2pa", b""
    for part in data.split(_GIF_XMP, MOST_PARTS)[1:]:
        yield "xmp", part.partition(_GIF_XMP_END)[0]


def _in_boxes(data: bytes) -> Iterator[Part]:
    """Read the items of HEIC and AVIF, and the boxes of XMP (XMP, part 3) and C2PA (C2PA specification, A.5)."""
    for kind, content in uuids(data):
        if kind == _C2PA_BOX:
            yield "c2pa", b""
        elif kind == _XMP_BOX:
            yield "xmp", content
    for packet in xmp_items(data, MOST_XMP):
        yield "xmp", _ENCODED if packet is None else packet


_CONTAINERS: tuple[tuple[bytes | tuple[bytes, ...], str, Callable[[bytes], Iterator[Part]]], ...] = (
    (b"\xff\xd8\xff", "image/jpeg", _in_jpeg),
    (b"\x89PNG\r\n\x1a\n", "image/png", _in_png),
    (b"RIFF", "image/webp", _in_webp),
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "image/tiff", _in_tiff),
    ((b"GIF87a", b"GIF89a"), "image/gif", _in_gif),
)
