"""Ingest: decodes untrusted bytes to upright sRGB pixels, in this process or in another one.

Images that can't be decoded are rejected with an exact reason. The size and format come from the header, before any
pixel is decoded. An image is decoded completely or not at all. The details of a verdict quote only the header, never
pixels or metadata.

Decoder for photographs that users pass in. HEICs are decoded in a child process, because they can crash the decoder.

A single wrong byte in a metadata box crashes libheif as shipped with pi-heif 1.4. All other formats are decoded in this
process, because their decoders never crashed in tests with tens of thousands of mutated files.
"""

import contextlib
import hashlib
import io
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from multiprocessing.util import Finalize
from typing import TypeVar

import numpy as np
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

from segmint.catalogs.findings import Reason, RejectedError
from segmint.infra.arrays import Pixels
from segmint.infra.errors import SegmintError
from segmint.infra.version import installed_version
from segmint.operators.child import Children, Worker
from segmint.operators.prepare.ingest_config import (
    ANY_SIZE,
    CONTROL_TOLERANCE,
    check_png_rows,
    check_whole,
    control_images,
    control_pixels,
    recognize,
)
from segmint.operators.prepare.ingest_config import IngestConfig as IngestConfig
from segmint.operators.prepare.read_image import (
    MODES,
    check_page,
    check_unopened,
    strict_samples,
    to_srgb,
    white_is_zero,
)
from segmint.operators.prepare.read_image import check_strips as check_strips

T = TypeVar("T")

_LACKS_FEATURE = re.compile("Unsupported|cannot handle|unknown raw mode|.* not (yet )?supported")
_DARK_GAMMA = 0.8  # sRGB's is 0.45, and linear samples, which viewers show brighter, have 1
_BMP_BITS = {"1": 1, "L": 8}  # bits per pixel that Pillow reads in these modes


# Maximum number of bytes of a PNG's profile or text. A JPEG's profile has the same maximum. Pillow's default is 1 MiB.
PngImagePlugin.MAX_TEXT_CHUNK = 16 << 20


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
    whether this process can decode control images. If it can, the image is rejected as `corrupt`, or as
    `unsupported_format` if the exception says so. Otherwise, `BrokenDecoderError` is raised. `MemoryError` and
    `ImportError` propagate.
    """
    kind = recognize(data, config.decoded)
    if len(data) > config.max_bytes:
        raise RejectedError(
            Reason.TOO_LARGE, f"{len(data):,} bytes; the limit ingest.max_bytes is {config.max_bytes:,}"
        )
    with _only_our_limit(config):
        pixels = guarded(lambda: _read_pixels(data, kind, config, side), kind)
        width, height = pixels.shape[1::-1]
        if side is not None and kind == "JPEG":  # the only format that is decoded at a reduced scale
            width, height = guarded(lambda: upright_size(open_image(data, kind)), kind)
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
        source = open_image(data, kind)
    except SyntaxError:
        if kind == "TIFF":
            check_unopened(data)
        raise
    _check_size(*source.size, config)
    _check_kind(source, kind, data)
    if kind == "PNG":
        check_png_rows(data)
    key = source.info.get("transparency")
    if kind == "PNG" and source.mode == "L" and isinstance(key, int):  # Pillow scales only pixels to 8 bits
        source.info["transparency"] = key * 255 // (2 ** data[24] - 1)
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
        check_page(source, data)
    elif kind == "JPEG" and source.mode == "CMYK" and "adobe" not in source.info:
        detail = "a CMYK JPEG without Adobe's marker, which doesn't say whether its values are inverted"
        raise RejectedError(Reason.UNSUPPORTED_FORMAT, detail)
    elif kind == "BMP" and _BMP_BITS.get(source.mode, _bmp_bits(data)) != _bmp_bits(data):
        detail = f"a BMP file with {_bmp_bits(data)} bits per pixel and few gray levels"
        raise RejectedError(Reason.UNSUPPORTED_FORMAT, detail)
    elif kind == "PNG" and data[24] == 16 and "transparency" in source.info:
        detail = "a PNG file with 16 bits per sample and a transparent color"
        raise RejectedError(Reason.UNSUPPORTED_FORMAT, detail)
    elif kind == "PNG" and source.info.get("gamma", 0) > _DARK_GAMMA and "icc_profile" not in source.info:
        raise RejectedError(Reason.UNSUPPORTED_FORMAT, "a PNG file whose gAMA chunk says that its samples are linear")
    elif kind != "HEIC" and getattr(
        source, "is_animated", False
    ):  # several images in a HEIC aren't frames; one of them is the primary image
        raise RejectedError(Reason.ANIMATED, f"an animated {kind} file; expected a single frame")


def _bmp_bits(data: bytes) -> int:
    """Return the bits per pixel of a BMP, which are in another place if its header has 12 bytes."""
    return data[24] if data[14] == 12 else data[28]


def _decode_jpeg(source: ImageFile.ImageFile, data: bytes, side: int) -> Pixels:
    """Decode a JPEG to (H, W, 3) uint8 RGB, at the smallest scale with no side under `side`. 0 means full scale.

    simplejpeg produces the same pixels as Pillow. Unlike Pillow, its strict mode reports scan data that ends early or
    is invalid, even if an end marker hides the problem.
    """
    color = {"L": "GRAY", "CMYK": "CMYK"}.get(source.mode, "RGB")
    scale = {"min_height": side, "min_width": side, "min_factor": 1} if side else {}
    samples = strict_samples(data, color, **scale)
    if samples is None:
        return _decode(source, "JPEG")
    icc = source.info.get("icc_profile")
    if color != "RGB" or icc:
        picture = _as_picture(samples, source)
        del samples  # frees hundreds of megabytes before the conversion
        samples = to_srgb(picture, icc)
    return _upright(samples, _orientation(source))


def _as_picture(samples: Pixels, source: ImageFile.ImageFile) -> Image.Image:
    if source.mode == "CMYK":
        samples = 255 - samples  # Adobe's marker means that ink is stored inverted
    return Image.fromarray(samples[:, :, 0] if source.mode == "L" else samples, mode=source.mode)


def _decode(source: ImageFile.ImageFile, kind: str) -> Pixels:
    """Decode with Pillow to (H, W, 3) uint8 RGB."""
    source.load()
    picture: Image.Image = source
    if isinstance(source, TiffImagePlugin.TiffImageFile) and source.mode.startswith("I;16") and white_is_zero(source):
        picture = Image.fromarray(65535 - np.asarray(source))
    return _upright(to_srgb(picture, source.info.get("icc_profile"), kind), _orientation(source))


def _orientation(source: ImageFile.ImageFile) -> int:
    """Return the EXIF orientation, 1 to 8, or 1 if it is missing or the metadata can't be read."""
    try:
        value = source.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - broken metadata raises anything, and says nothing about the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def stored_size(source: ImageFile.ImageFile) -> tuple[int, int]:
    """Return the stored (width, height) of a picture. Pillow's `size` of a TIFF may be that of the turned one."""
    if isinstance(source, TiffImagePlugin.TiffImageFile):
        return source.tag_v2[ExifTags.Base.ImageWidth], source.tag_v2[ExifTags.Base.ImageLength]
    return source.size


def upright_size(source: ImageFile.ImageFile) -> tuple[int, int]:
    """Return the (width, height) of a picture that is turned upright."""
    width, height = stored_size(source)
    return (height, width) if _orientation(source) >= 5 else (width, height)


def upright_pixels(source: ImageFile.ImageFile) -> Pixels:
    """Return the RGB pixels of a picture that is turned upright. Unlike Pillow, this reads no other EXIF tags."""
    pixels = np.asarray(source.convert("RGB"))
    return _upright(pixels, _orientation(source))


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn stored pixels upright according to the EXIF orientation (EXIF 2.3, table 6): transpose, then mirror."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def guarded(step: Callable[[], T], kind: str) -> T:
    """Run a decoding step. If it raises an exception and control images decode, turn the exception into a verdict."""
    try:
        return step()
    except (MemoryError, ImportError, RejectedError):
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise anything, from OSError to IndexError
        require_decoder(kind)
        if isinstance(error, Image.DecompressionBombError):
            detail = f"a frame inside the {kind} file is over a decoder's limit"
            raise RejectedError(Reason.TOO_LARGE, detail) from None
        message = clean_message(str(error))
        if "truncated" in message.lower():
            raise RejectedError(Reason.TRUNCATED, f"the {kind} ends early: {message}") from None
        if _LACKS_FEATURE.match(message):
            raise RejectedError(Reason.UNSUPPORTED_FORMAT, f"a {kind} file: {message}") from None
        raise RejectedError(Reason.CORRUPT, f"the {kind} cannot be decoded: {message}") from None


@cache
def require_decoder(kind: str) -> None:
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


_MEMORY = 4 << 30  # bytes that a photograph may use in the child (Linux)

_lock = threading.Lock()
_children: dict[int, Children[Pixels]] = {}  # keyed by process id, because a forked process needs its own children


def decode_photograph(data: bytes) -> Pixels:
    """Decode a photograph to (H, W, 3) uint8 RGB, in sRGB, upright, and opaque. Thread-safe.

    The child starts with the first HEIC and ends with this process. Raises the same errors as `ingest`. If the HEIC
    decoder dies, the reason is `killed_worker`, `timed_out`, or `out_of_memory`. Raises `ChildFaultError` if no child
    can start.
    """
    if recognize(data, ANY_SIZE.decoded) != "HEIC":
        return _decode_whole(data)
    return _started().run(data)


def _started() -> Children[Pixels]:
    with _lock:
        if os.getpid() not in _children:
            children = Children(_decoder, timeout_s=ANY_SIZE.timeout_s, memory_limit=_MEMORY)
            Finalize(None, children.close, exitpriority=0)  # unlike `atexit`, also works in a multiprocessing child
            _children[os.getpid()] = children
        return _children[os.getpid()]


def _decoder() -> Worker[Pixels]:
    return _decode_whole


def _decode_whole(data: bytes) -> Pixels:
    return ingest(data, ANY_SIZE).image
