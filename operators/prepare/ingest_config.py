"""Configuration of ingest: the containers to decode, how they are recognized, and the limits for an image.

Control images that every working decoder can decode, so that a decoding error can be blamed on an image's bytes.
"""

import base64
import io
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image, ImageCms
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from segmint.catalogs.findings import Reason, RejectedError
from segmint.infra.arrays import Pixels
from segmint.infra.errors import UsageError
from segmint.infra.units import Bytes, Seconds
from segmint.infra.version import VERSION
from segmint.operators.opt_out import MOST_PARTS, png_chunks
from segmint.operators.redactions import boxes

SUPPORTED = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "HEIC")
"""Containers that segmint can decode. For any other known container, the verdict states its name."""

_PIXELS = frozenset({b"meta", b"moov", b"mdat"})
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_SAMPLES = {2: 3, 4: 2, 6: 4}  # samples per pixel by color type, if there are several
_BMP_HEADER_SIZES = frozenset({12, 40, 52, 56, 64, 108, 124})
_SVG = re.compile(rb"<(?:[a-z]+:)?svg[\s>]", re.IGNORECASE)
_HTML = re.compile(rb"\s*<(?:!doctype html|html|head|body)", re.IGNORECASE)
_MARKUP = re.compile(rb"\s*<(?:!doctype|html|head|body|\?xml|!--|[a-z]+[\s>])", re.IGNORECASE)
_REFUSED_FRAMES = frozenset({0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7})
"""Markers of JPEG frames that are hierarchical, lossless with arithmetic coding, or JPEG-LS."""

_HEIF_BRANDS = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"heim": "HEIC",
    b"heis": "HEIC",
    b"hevc": "HEIC",
    b"hevx": "HEIC",
    b"mif1": "HEIF",
    b"msf1": "HEIF",
    b"crx ": "Canon CR3",
}
_IMAGE_BRANDS = {"AVIF": frozenset({b"avif", b"avis"}), "HEIC": frozenset({b"heic", b"heix"})}
_REFUSED_PREFIXES = (
    (b"%PDF-", "PDF"),
    (b"8BPS", "Photoshop (PSD)"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"II\xbc", "JPEG XR"),
    (b"MM\x00+", "big-endian BigTIFF"),
    (b"\x00\x00\x01\x00", "icon (ICO)"),
    (b"DDS ", "DirectDraw (DDS)"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"qoif", "QOI"),
    (b"FUJIFILMCCD-RAW", "camera raw (RAF)"),
    (b"IIU\x00", "camera raw (RW2)"),
    (b"IIRO", "camera raw (ORF)"),
    (b"gimp xcf", "GIMP (XCF)"),
    (b"\x59\xa6\x6a\x95", "Sun raster"),
)
_NETPBM = re.compile(rb"P[1-7][\s#]")


def recognize(data: bytes, formats: Sequence[str] = SUPPORTED) -> str:
    """Return the container of an object, one of `formats`, from its bytes. File names and content types don't matter.

    Raises `RejectedError`. The reason is `empty_object` if there are no bytes, `unsupported_format` if the image format
    is known but not decoded, and `not_an_image` otherwise.
    """
    if not data:
        raise RejectedError(Reason.EMPTY_OBJECT, "the object holds no bytes")
    kind = _supported(data) or _boxed(data, formats)
    if kind in formats:
        return str(kind)
    refused = kind or _refused(data)
    if refused is not None and refused in formats:
        refused += " sequence"
    expected = f"expected one of {', '.join(formats)}"
    if refused is not None:
        raise RejectedError(Reason.UNSUPPORTED_FORMAT, f"a {refused} file; {expected}")
    found = "markup text such as HTML" if _MARKUP.match(data[:256]) else "bytes that begin like no known picture"
    raise RejectedError(Reason.NOT_AN_IMAGE, f"{found}; {expected}")


def _supported(data: bytes) -> str | None:
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(_PNG_SIGNATURE):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:4] in {b"II*\x00", b"MM\x00*", b"II+\x00"}:
        return "TIFF"
    if data[:6] in {b"GIF87a", b"GIF89a"}:
        return "GIF"
    # "BM" alone would match many text files.
    if data[:2] == b"BM" and len(data) >= 18 and _little(data, 14) in _BMP_HEADER_SIZES:
        return "BMP"
    return None


def _refused(data: bytes) -> str | None:
    for prefix, name in _REFUSED_PREFIXES:
        if data.startswith(prefix):
            return name
    if data[4:8] == b"ftyp":
        return _HEIF_BRANDS.get(data[8:12])
    if _NETPBM.match(data[:3]):
        return "Netpbm"
    start = data[:4096].removeprefix(b"\xef\xbb\xbf")
    is_svg = _MARKUP.match(start) and _SVG.search(start) and not _HTML.match(start)
    return "SVG" if is_svg else None


def _boxed(data: bytes, formats: Sequence[str]) -> str | None:
    """Return AVIF or HEIC for a single image in boxes (ISO/IEC 23008-12) if `formats` includes it.

    A file with the generic brand `mif1` states its codec among its compatible brands. Sequences have other brands.
    """
    if data[4:8] != b"ftyp":
        return None
    brands = [data[8:12]]
    if brands == [b"mif1"]:
        end = min(int.from_bytes(data[:4], "big"), 256)
        brands = [data[start : start + 4] for start in range(16, end - 3, 4)]
    kinds = {kind for kind, own in _IMAGE_BRANDS.items() if kind in formats and not own.isdisjoint(brands)}
    return min(kinds, default=None)


def check_whole(data: bytes, kind: str) -> None:
    """Check the number of a container's parts. If the format's decoder doesn't check the declared length, check it too.

    Raises `RejectedError` (`truncated`, `corrupt`, `unsupported_format`).
    """
    if kind == "JPEG":
        _check_jpeg(data)
    if kind == "PNG":
        _check_png(data)
    if kind == "WEBP" and _little(data, 4) + 8 > len(data):
        raise RejectedError(
            Reason.TRUNCATED, f"the WEBP ends after {len(data)} bytes; its header says {_little(data, 4) + 8}"
        )
    if kind == "BMP" and _little(data, 10) < 14 + _little(data, 14):
        raise RejectedError(Reason.CORRUPT, "the BMP's pixels begin inside its header")
    if kind in _IMAGE_BRANDS:
        _check_boxes(data, kind)


def _check_boxes(data: bytes, kind: str) -> None:
    """Walk the top-level boxes (ISO/IEC 14496-12, 4.2) until both the image's metadata and its data have been found.

    Later boxes are ignored, because phones append many of them. Raises `RejectedError` (`truncated`) if the bytes end
    before the metadata and data have been found.
    """
    seen: set[bytes] = set()
    for name, _, stop in boxes(data):
        if name in _PIXELS and stop > len(data):
            raise RejectedError(
                Reason.TRUNCATED, f"the {kind} ends after {len(data)} bytes; its {name.decode()} box needs {stop}"
            )
        seen.add(name)
    if b"mdat" not in seen or seen.isdisjoint(_PIXELS - {b"mdat"}):
        raise RejectedError(Reason.TRUNCATED, f"the {kind} ends after {len(data)} bytes, before its pixels do")


def _check_jpeg(data: bytes) -> None:
    """Check the kind of frame, and limit the number of segments, fill bytes, and stray bytes before the scan.

    Pillow reads them one by one.
    """
    position = 2
    for _ in range(MOST_PARTS):
        if position + 4 > len(data) or data[position : position + 2] in (b"\xff\xd9", b"\xff\xda"):
            return
        marker = data[position + 1]
        if data[position] == 0xFF and marker in _REFUSED_FRAMES:
            raise RejectedError(Reason.UNSUPPORTED_FORMAT, f"a JPEG with a frame of kind FF{marker:02X}")
        has_length = data[position] == 0xFF and 0xC0 <= marker < 0xFF and not 0xD0 <= marker <= 0xD8
        position += 2 + int.from_bytes(data[position + 2 : position + 4]) if has_length else 1
    raise RejectedError(Reason.CORRUPT, f"the JPEG has over {MOST_PARTS:,} segments and stray bytes before its pixels")


def _check_png(data: bytes) -> None:
    """Walk a PNG's chunks to the end (PNG specification, section 5), because decoders don't check CRCs of pixel data.

    Raises `RejectedError` with `truncated` if the bytes end before the IEND chunk does, with `corrupt` if the CRC of a
    critical chunk is wrong, and with `unsupported_format` for Apple's variant of PNG.
    """
    if data[12:16] == b"CgBI":
        raise RejectedError(Reason.UNSUPPORTED_FORMAT, "a PNG in the variant for apps on iOS")
    view = memoryview(data)
    position = len(_PNG_SIGNATURE)
    for _ in range(MOST_PARTS):
        length, kind = 0, b""
        if position + 8 <= len(view):
            length, kind = struct.unpack_from(">I4s", view, position)
        start, stop = position + 8, position + 8 + length
        if length >= 2**31:
            raise RejectedError(Reason.CORRUPT, f"the PNG's chunk at byte {position} has an impossible length")
        if stop + 4 > len(view):
            detail = f"the PNG ends after {len(view)} bytes; its chunk at byte {position} needs {stop + 4}"
            raise RejectedError(Reason.TRUNCATED, detail)
        (stored,) = struct.unpack_from(">I", view, stop)
        is_critical = not kind[0] & 0x20
        if is_critical and zlib.crc32(view[start - 4 : stop]) != stored:
            name = kind.decode("ascii", "replace") if kind.isalpha() else "unnamed"
            raise RejectedError(Reason.CORRUPT, f"the PNG's {name} chunk at byte {position} has a wrong CRC")
        if kind == b"IEND":
            return
        position = stop + 4
    raise RejectedError(Reason.CORRUPT, f"the PNG has over {MOST_PARTS:,} chunks")


def check_png_rows(data: bytes) -> None:
    """Check that a PNG whose header was read, and that passed `check_whole`, contains the rows of its pixels.

    Decoders leave missing rows black. Interlaced pixels have up to one byte per row more, which isn't checked. Raises
    `RejectedError` (`truncated`), or `zlib.error` for damaged data.
    """
    width, height, bits, color = struct.unpack_from(">IIBB", data, 16)
    size = height * (1 + (width * bits * _PNG_SAMPLES.get(color, 1) + 7) // 8)
    packed = b"".join(data[start:stop] for kind, start, stop in png_chunks(data) if kind == b"IDAT")
    if len(zlib.decompressobj().decompress(packed, size)) < size:
        raise RejectedError(Reason.TRUNCATED, "the PNG's compressed pixels end early")


def _little(data: bytes, offset: int) -> int:
    (value,) = struct.unpack_from("<I", data, offset)
    return int(value)


def _formats(value: Any) -> Any:
    if value == "auto":
        return value
    if isinstance(value, list | tuple) and value and all(each in SUPPORTED for each in value):
        return tuple(each for each in SUPPORTED if each in value)
    raise ValueError(f"expected auto or a list of {', '.join(SUPPORTED)}, as in [JPEG, PNG]")


class IngestConfig(BaseModel):
    """The `ingest:` part of a configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    formats: Annotated[Literal["auto"] | tuple[str, ...], BeforeValidator(_formats)] = "auto"
    """Names of the containers to decode.

    `auto` means the containers with which the dataset was created or, in a new dataset, all containers.
    """
    max_pixels: int = Field(250_000_000, gt=0)  # width × height
    min_short_side: int = Field(64, gt=0)  # pixels
    max_bytes: Bytes = Field(256 * 2**20, gt=0)  # size limit of the encoded object
    timeout_s: Seconds = Field(120.0, gt=0)  # time limit for decoding, de-identifying, and encoding one image

    @property
    def decoded(self) -> tuple[str, ...]:
        """The containers of `formats`. For `auto`, these are the containers of a new dataset."""
        return SUPPORTED if isinstance(self.formats, str) else self.formats


ANY_SIZE = IngestConfig(min_short_side=1)
"""Limits for an image that a user names directly. It has no minimum size."""


def formats_of(identity: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the containers that a dataset with this identity decodes.

    Raises `UsageError` if this version of segmint doesn't support one of them.
    """
    part = identity.get("ingest")
    recorded = part.get("formats") if isinstance(part, Mapping) else None
    if isinstance(recorded, list | tuple) and recorded and all(each in SUPPORTED for each in recorded):
        return tuple(recorded)
    raise UsageError(
        f"the dataset was created with ingest.formats {recorded!r}, but segmint {VERSION} only decodes "
        f"{', '.join(SUPPORTED)}. Use the version that created it, or a later one."
    )


CONTROL_TOLERANCE = 8
"""Maximum mean difference between a decoded control image and `control_pixels`, in levels of 255.

The tolerance is needed because JPEG is lossy.
"""

_ENCODINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "JPEG": ({"quality": 95}, {"quality": 95, "progressive": True}),
    "PNG": ({},),
    "WEBP": ({"lossless": True}, {"quality": 95}),
    "TIFF": ({}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}, {"compression": "jpeg"}),
    "BMP": ({},),
    "GIF": ({},),
    "AVIF": ({"quality": 95, "speed": 10}, {"quality": 95, "speed": 10, "subsampling": "4:4:4"}),
}
# `control_pixels` encoded by libheif 1.23.6 with x265, because the library that reads HEIC cannot write it.
_HEIC = (
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAVZtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAAAA"
    "AERAAAEAAQAAAAABegABAAAAAAAAACMAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA1mlwcnAAAAC3"
    "aXBjbwAAAHhodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQArQgEBA3AAAAMAkAAAAwAA"
    "AwAeoCCBBZbqSSmubgIaDAgAAAMAyAAAAwAIQGIAAQAHRAHBcrAiQAAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAABBw"
    "aXhpAAAAAAMICAgAAAAXaXBtYQAAAAAAAAABAAEEgQIDBAAAACttZGF0AAAAHygBrwY4W4jl7b/rFw1SxK/u6iZ7Sr+/1EsDzv9+1Pg="
)
_HAVE_NO_PROFILE = frozenset({"BMP", "GIF"})


def control_images(kind: str) -> list[bytes]:
    """Encode `control_pixels` in each common encoding of a container, with a color profile if it supports one."""
    if kind == "HEIC":
        return [base64.b64decode(_HEIC)]
    picture = Image.fromarray(control_pixels())
    profile = {} if kind in _HAVE_NO_PROFILE else {"icc_profile": _profile()}
    encoded = []
    for options in _ENCODINGS[kind]:
        stream = io.BytesIO()
        picture.save(stream, kind, **options, **profile)
        encoded.append(stream.getvalue())
    return encoded


@cache
def control_pixels() -> Pixels:
    """Return four gray squares, (64, 64, 3) uint8 RGB. Every container can store them almost exactly."""
    pixels = np.full((64, 64, 3), 40, np.uint8)
    pixels[:32, 32:] = 100
    pixels[32:, :32] = 160
    pixels[32:, 32:] = 220
    return pixels


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
