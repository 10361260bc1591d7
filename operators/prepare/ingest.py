"""Ingest: decodes untrusted bytes to upright sRGB pixels, or rejects them with an exact reason.

The size and format come from the header, before any pixel is decoded. An image is decoded completely or not at all. The
details of a verdict quote only the header, never pixels or metadata.
"""

import contextlib
import hashlib
import io
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from segmint.catalogs.reasons import Reason, RejectedError
from segmint.infra.errors import SegmintError
from segmint.infra.version import installed_version
from segmint.operators.prepare.color import MODES, to_srgb
from segmint.operators.prepare.containers import check_whole, recognize, without_large_metadata
from segmint.operators.prepare.control import CONTROL_TOLERANCE, control_images, control_pixels
from segmint.operators.prepare.ingest_config import IngestConfig as IngestConfig

T = TypeVar("T")
Pixels = NDArray[np.uint8]

# libjpeg's warnings about damaged scan data, which other decoders hide by filling in gray.
_JPEG_ENDS_EARLY = ("Premature end of JPEG file", "Corrupt JPEG data: premature end of data segment")
_JPEG_IS_DAMAGED = "Corrupt JPEG data"

_METADATA_LIMIT = "MAX_TEXT_"  # part of Pillow's error messages about a profile or texts over a megabyte

_REDUCED_RESOLUTION = 1  # bit of TIFF's NewSubfileType
_NEW_SUBFILE_TYPE, _DNG_VERSION = 254, 50706
_MOST_PAGES = 1000  # maximum number of reduced copies of the first page
_JPEG_COMPRESSION, _JPEG_TABLES = 7, 347
_DEFLATE = (8, 32946)
_LARGEST_TILE = 1 << 20  # pixels by which a tile may exceed its image


class BrokenDecoderError(SegmintError):
    """Raised when a decoder fails on every image in this process. No image is to blame."""


@dataclass(frozen=True)
class IngestedImage:
    """A decoded image. `image` is (H, W, 3) uint8 RGB, sRGB, upright, and opaque."""

    image: Pixels
    source_width: int  # pixels of the upright source; equal to those of `image`, except at a reduced scale
    source_height: int


def ingest(data: bytes, config: IngestConfig, side: int | None = None) -> IngestedImage:
    """Decode one image. With `side`, a large JPEG may be decoded at reduced scale, with no side under `side` pixels.

    Raises `RejectedError` with `empty_object`, `not_an_image`, `unsupported_format`, `too_large` (bytes or pixels),
    `too_small`, `animated`, `truncated`, or `corrupt`. If a decoder raises any other exception, this function checks
    whether this process can decode control images. If it can, the image is rejected as `corrupt`. Otherwise,
    `BrokenDecoderError` is raised. `MemoryError` and `ImportError` propagate.
    """
    kind = recognize(data, config.decoded)
    if len(data) > config.max_bytes:
        raise RejectedError(
            Reason.TOO_LARGE, f"{len(data):,} bytes; the limit ingest.max_bytes is {config.max_bytes:,}"
        )
    with _only_our_limit(config):
        pixels = _guarded(lambda: _read_pixels(data, kind, config, side), kind)
        width, height = pixels.shape[1::-1]
        if side is not None and kind == "JPEG":  # the only format that is decoded at a reduced scale
            width, height = _guarded(lambda: _upright_size(open_image(data, kind)), kind)
    return IngestedImage(image=pixels, source_width=width, source_height=height)


def pixels_sha256(image: Pixels) -> str:
    """Return the SHA-256 of a decoded image's size, its pixels, (H, W, 3) uint8 RGB, and the decoders' versions.

    Different versions of a decoder can produce different pixels. With the versions in the digest, images that were
    decoded by different versions never share a digest.
    """
    digest = hashlib.sha256(f"{image.shape[1]}x{image.shape[0]} {_decoders()}\n".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


@cache
def _decoders() -> str:
    jpeg, color = features.version_feature("libjpeg_turbo"), features.version("littlecms2")
    packages = (installed_version(name) for name in ("pillow", "simplejpeg", "pi-heif"))
    return " ".join(map(str, (*packages, jpeg, color)))


@contextlib.contextmanager
def _only_our_limit(config: IngestConfig) -> Iterator[None]:
    """Make Pillow reject frames that exceed the pixel limit in `config`.

    Pillow's own limit is a global variable, and Pillow rejects only images over twice that limit. Its readers for TIFF,
    WebP, and GIF apply the limit to each frame.
    """
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = -(-config.max_pixels // 2)
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _read_pixels(data: bytes, kind: str, config: IngestConfig, side: int | None = None) -> Pixels:
    check_whole(data, kind)
    try:
        return _read_whole(data, kind, config, side=side)
    except ValueError as error:
        if kind != "PNG" or _METADATA_LIMIT not in str(error):
            raise
    bare, profile = without_large_metadata(data)
    return _read_whole(bare, kind, config, profile)


def _read_whole(
    data: bytes, kind: str, config: IngestConfig, profile: bytes | None = None, side: int | None = None
) -> Pixels:
    source = open_image(data, kind)
    if profile is not None:
        source.info["icc_profile"] = profile
    _check_size(*source.size, config)
    _check_kind(source, kind, data)
    return _decode_jpeg(source, data, side or 0) if kind == "JPEG" else _decode(source, kind)


def _check_size(width: int, height: int, config: IngestConfig) -> None:
    if width * height > config.max_pixels:
        raise RejectedError(
            Reason.TOO_LARGE,
            f"{width}×{height} is {width * height:,} pixels; the limit ingest.max_pixels is {config.max_pixels:,}",
        )
    if min(width, height) < config.min_short_side:
        raise RejectedError(
            Reason.TOO_SMALL,
            f"{width}×{height}; the limit ingest.min_short_side is {config.min_short_side} pixels",
        )


def _check_kind(source: ImageFile.ImageFile, kind: str, data: bytes) -> None:
    if source.mode not in MODES:
        raise RejectedError(
            Reason.UNSUPPORTED_FORMAT,
            f"a {kind} file with samples of kind {source.mode}, which have no defined white",
        )
    if isinstance(source, TiffImagePlugin.TiffImageFile):
        if data[8:10] == b"CR" or _DNG_VERSION in source.tag_v2 or _is_reduced(source):
            raise RejectedError(Reason.UNSUPPORTED_FORMAT, "a camera's raw file, of which TIFF holds a thumbnail")
        check_strips(source, data)
        if _has_further_pages(source):
            raise RejectedError(Reason.UNSUPPORTED_FORMAT, "a TIFF file of several pages; expected one")
    elif kind != "HEIC" and getattr(
        source, "is_animated", False
    ):  # several images in a HEIC aren't frames; one of them is the primary image
        raise RejectedError(Reason.ANIMATED, f"an animated {kind} file; expected a single frame")


def _is_reduced(source: TiffImagePlugin.TiffImageFile) -> bool:
    """Return whether the current page declares itself a reduced copy of another page."""
    kind = source.tag_v2.get(_NEW_SUBFILE_TYPE, 0)
    if not isinstance(kind, int):
        raise RejectedError(Reason.CORRUPT, f"the TIFF's tag {_NEW_SUBFILE_TYPE} is not a whole number")
    return bool(kind & _REDUCED_RESOLUTION)


def _has_further_pages(source: TiffImagePlugin.TiffImageFile) -> bool:
    """Return whether the file contains another page that isn't a reduced copy of the first."""
    page = 0
    try:
        while True:
            page += 1
            source.seek(page)
            if page > _MOST_PAGES:
                raise RejectedError(Reason.CORRUPT, f"the TIFF has over {_MOST_PAGES:,} reduced copies of its page")
            if not _is_reduced(source):
                return True
    except EOFError:
        return False
    finally:
        source.seek(0)


def _decode_jpeg(source: ImageFile.ImageFile, data: bytes, side: int) -> Pixels:
    """Decode a JPEG to (H, W, 3) uint8 RGB, at the smallest scale with no side under `side`. 0 means full scale.

    simplejpeg produces the same pixels as Pillow. Unlike Pillow, its strict mode reports scan data that ends early or
    is invalid, even if an end marker hides the problem.
    """
    color = {"L": "GRAY", "CMYK": "CMYK"}.get(source.mode, "RGB")
    scale = {"min_height": side, "min_width": side, "min_factor": 1} if side else {}
    samples = _strict_samples(data, color, **scale)
    if samples is None:
        return _decode(source, "JPEG")
    icc = source.info.get("icc_profile")
    if color != "RGB" or icc:
        picture = _as_picture(samples, source)
        del samples  # frees hundreds of megabytes before the conversion
        samples = to_srgb(picture, icc)
    return _upright(samples, _orientation(source))


def _strict_samples(data: bytes, color: str, **scale: int) -> Pixels | None:
    """Decode a JPEG. Return None if it is intact but unusual, such as with odd sampling factors or unknown markers."""
    try:
        return np.asarray(simplejpeg.decode_jpeg(data, color, strict=True, **scale))
    except ValueError as error:
        message = str(error)
        if message.startswith(_JPEG_ENDS_EARLY):
            raise RejectedError(Reason.TRUNCATED, f"the JPEG's data ends early: {message}") from None
        if message.startswith(_JPEG_IS_DAMAGED):
            raise RejectedError(Reason.CORRUPT, f"the JPEG's data is damaged: {message}") from None
        return None


def _as_picture(samples: Pixels, source: ImageFile.ImageFile) -> Image.Image:
    if source.mode == "CMYK" and "adobe" in source.info:
        samples = 255 - samples  # Adobe's marker means that ink is stored inverted
    return Image.fromarray(samples[:, :, 0] if source.mode == "L" else samples, mode=source.mode)


def _decode(source: ImageFile.ImageFile, kind: str) -> Pixels:
    """Decode with Pillow to (H, W, 3) uint8 RGB."""
    source.load()
    picture: Image.Image = source
    if source.mode.startswith("I;16") and _white_is_zero(source):
        picture = Image.fromarray(65535 - np.asarray(source))
    if kind == "JPEG" and source.mode == "CMYK" and "adobe" not in source.info:
        picture = Image.fromarray(255 - np.asarray(source), mode="CMYK")  # Pillow treats every CMYK image as Adobe's
    return _upright(to_srgb(picture, source.info.get("icc_profile")), _orientation(source))


def _white_is_zero(source: ImageFile.ImageFile) -> bool:
    """Return whether a TIFF's PhotometricInterpretation is 0, which Pillow supports for 8 bits but not for 16."""
    tag = TiffImagePlugin.PHOTOMETRIC_INTERPRETATION
    return isinstance(source, TiffImagePlugin.TiffImageFile) and source.tag_v2.get(tag) == 0


def check_strips(source: TiffImagePlugin.TiffImageFile, data: bytes) -> None:
    """Check that a TIFF lists all of its strips or tiles, and that the data contains them undamaged.

    Decoders don't check this. They draw unlisted strips in black, fill in the missing pixels of incomplete JPEG strips,
    and ignore deflate's checksum. Only strips with deflate or JPEG compression are checked for damage.
    """
    tags = source.tag_v2
    try:
        width, height = int(tags[256]), int(tags[257])
        offsets, counts = (324, 325) if 324 in tags else (273, 279)
        side, rows = (tags[322], tags[323]) if offsets == 324 else (width, min(tags.get(278, height), height))
        planes = tags.get(277, 1) if tags.get(284) == 2 else 1
        wanted = -(-width // side) * -(-height // rows) * planes
        starts, sizes = tags.get(offsets, ()), tags.get(counts, ())
        strips = [(int(start), int(start + size)) for start, size in zip(starts, sizes, strict=False)]
    except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError):
        raise RejectedError(Reason.CORRUPT, "the TIFF's tags of its strips or tiles are not whole numbers") from None
    if max((end for _, end in strips), default=0) > len(data):
        raise RejectedError(Reason.TRUNCATED, f"the TIFF ends after {len(data)} bytes, before its pixels do")
    if len(starts) != wanted or len(sizes) not in (0, wanted):
        detail = f"the TIFF lists {len(starts)} strips or tiles with {len(sizes)} sizes; expected {wanted}"
        raise RejectedError(Reason.CORRUPT, detail)
    if side * rows > width * height + _LARGEST_TILE:
        raise RejectedError(Reason.CORRUPT, f"the TIFF's tiles are {side}×{rows}, and its image is {width}×{height}")
    compression = tags.get(259)
    if compression in _DEFLATE:
        largest = side * rows * sum(tags.get(258, (1,))) // 8
        for number, (start, end) in enumerate(strips, 1):
            unpacker = zlib.decompressobj()
            with contextlib.suppress(zlib.error):
                unpacker.decompress(data[start:end], largest + 1)  # with one more byte, zlib compares the checksum
            if not unpacker.eof:
                raise RejectedError(Reason.CORRUPT, f"the TIFF's strip or tile {number} is damaged or incomplete")
    if compression != _JPEG_COMPRESSION or planes > 1:
        return
    tables = tags.get(_JPEG_TABLES, b"")[:-2]  # without the end marker
    for number, (start, end) in enumerate(strips):
        part = tables + data[start + 2 : end] if tables else data[start:end]
        with contextlib.suppress(ValueError):  # the decoder decides
            high, wide, *_ = simplejpeg.decode_jpeg_header(part)
            lines = rows if offsets == 324 else min(rows, height - number * rows)
            if wide != side or not lines <= high <= rows:
                detail = f"the TIFF's JPEG strip or tile {number + 1} is {wide}×{high}; expected {side}×{lines}"
                raise RejectedError(Reason.CORRUPT, detail)
            _strict_samples(part, "GRAY")


def _orientation(source: ImageFile.ImageFile) -> int:
    """Return the EXIF orientation, 1 to 8, or 1 if it is missing or the metadata can't be read."""
    try:
        value = source.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - broken metadata raises anything, and says nothing about the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright_size(source: ImageFile.ImageFile) -> tuple[int, int]:
    width, height = source.size
    return (height, width) if _orientation(source) >= 5 else (width, height)


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn stored pixels upright according to the EXIF orientation (EXIF 2.3, table 6): transpose, then mirror."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _guarded(step: Callable[[], T], kind: str) -> T:
    """Run a decoding step. If it raises an exception and control images decode, turn the exception into a verdict."""
    try:
        return step()
    except (MemoryError, ImportError, RejectedError):
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise anything, from OSError to IndexError
        _require_decoder(kind)
        if isinstance(error, Image.DecompressionBombError):
            detail = f"a frame inside the {kind} file is over a decoder's limit"
            raise RejectedError(Reason.TOO_LARGE, detail) from None
        message = clean_message(str(error))
        if "truncated" in message.lower():
            raise RejectedError(Reason.TRUNCATED, f"the {kind} ends early: {message}") from None
        raise RejectedError(Reason.CORRUPT, f"the {kind} cannot be decoded: {message}") from None


@cache
def _require_decoder(kind: str) -> None:
    """Raise `BrokenDecoderError` if this process can't decode the control images of a format. Success is cached."""
    try:
        for data in control_images(kind):
            _check_control(_read_pixels(data, kind, IngestConfig()))
            _check_control(_decode(open_image(data, kind), kind))  # unusual JPEGs take this path
    except MemoryError:
        raise
    except Exception as error:
        raise BrokenDecoderError(
            f"this process can't decode a {kind} that it just encoded, so no image was rejected: "
            f"{type(error).__name__}: {error}. Reinstall the packages in the versions of constraints.txt"
        ) from error


def _check_control(pixels: Pixels) -> None:
    wanted = control_pixels()
    if pixels.shape != wanted.shape or np.abs(pixels.astype(np.int16) - wanted).mean() > CONTROL_TOLERANCE:
        raise ValueError("it comes out as another picture")


def clean_message(message: str) -> str:
    """Shorten a decoder's message to one line and remove object addresses, so that it is equal on every machine."""
    return re.sub(r"<[^>]*0x[0-9a-f]+>", "it", " ".join(message.split()))[:120] or "no message"


# Open by class instead of `Image.open`. The container is known, and a JPEG with more images after the first (MPO)
# must stay a JPEG.
_READERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}


def open_image(data: bytes, kind: str) -> ImageFile.ImageFile:
    """Open an image and read its header. Raise `RejectedError` (`truncated`) if the data ends inside the header."""
    stream = _RecordingStream(data)
    try:
        return _reader(kind)(stream)
    finally:
        if stream.ran_out:
            detail = f"the {kind} ends after {len(data)} bytes, inside its header"
            raise RejectedError(Reason.TRUNCATED, detail) from None


@cache
def _reader(kind: str) -> type[ImageFile.ImageFile]:
    if kind != "HEIC":
        return _READERS[kind]
    from pi_heif.as_plugin import HeifImageFile  # 5 MB of libraries that few datasets need

    reader: type[ImageFile.ImageFile] = HeifImageFile
    return reader


class _RecordingStream(io.BytesIO):
    """Byte stream that records whether a reader requested more bytes than the stream contains."""

    ran_out = False

    def read(self, size: int | None = -1, /) -> bytes:
        piece = super().read(size)
        self.ran_out |= size is not None and size > len(piece)
        return piece
