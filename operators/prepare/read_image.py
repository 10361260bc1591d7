"""Reading of catalog rows' images: from the store, as JPEG or TIFF, and from any color space to sRGB.

Strict decoder of JPEGs, and a check whether a JPEG without its end marker contains all coefficients of its image.
"""

import functools
import io
import itertools
import re
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import simplejpeg
from PIL import Image, ImageCms, ImageSequence
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    COLORMAP,
    COMPRESSION,
    EXTRASAMPLES,
    FILLORDER,
    IMAGELENGTH,
    IMAGEWIDTH,
    JPEGTABLES,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
    ROWSPERSTRIP,
    SAMPLEFORMAT,
    SAMPLESPERPIXEL,
    STRIPBYTECOUNTS,
    STRIPOFFSETS,
    TILEBYTECOUNTS,
    TILELENGTH,
    TILEOFFSETS,
    TILEWIDTH,
    TiffImageFile,
)
from PIL.TiffImagePlugin import ImageFileDirectory_v2 as Tags

from segmint.catalogs.findings import Reason, RejectedError
from segmint.catalogs.layout import bytes_sha256
from segmint.infra.arrays import Pixels
from segmint.infra.storage.errors import NotFoundError, ObjectTooLargeError, StorageFaultError, UnreadableObjectError
from segmint.infra.storage.storage import Storage
from segmint.infra.storage.stores import check_size
from segmint.infra.tars import starts_file
from segmint.infra.uris import (
    LOCAL,
    TAR_BLOCK,
    TarMember,
    UriNotAllowedError,
    redact,
    relative_to,
    scheme,
    split_member,
)
from segmint.operators.opt_out import MOST_PARTS
from segmint.operators.rows import Row

MOST_READS = 4
"""Maximum number of reads of an image whose bytes, or whose header in a tar, would be rejected. Two identical reads in
a row are enough."""

T = TypeVar("T")


class ImageReader:
    """Reader of objects, and of files in tars, up to `max_bytes`.

    The catalog at `catalog_uri` determines which URIs its rows may use.
    """

    def __init__(self, storage: Storage, catalog_uri: str, max_bytes: int) -> None:
        self.storage = storage
        self.catalog_uri = catalog_uri
        self.max_bytes = max_bytes

    def read(self, row: Row) -> bytes:
        """Return the object's bytes. A file in a tar takes one request, too.

        Raises `RejectedError` only for a URI that isn't allowed, or if the store's response is about this object: that
        it doesn't exist, that it can't be returned, its size, or that the tar has no such file. Raises
        `StorageFaultError` for everything else.
        """
        try:
            uri = relative_to(self.catalog_uri, row["uri"])
            member = split_member(uri)
            if member is None:
                return self.storage.read(uri, max_bytes=self.max_bytes)
            return self._read_member(member)
        except UriNotAllowedError as error:
            raise RejectedError(Reason.URI_NOT_ALLOWED, str(error)) from None
        except NotFoundError:
            raise RejectedError(Reason.NOT_FOUND, "the store answers, and there is no such object") from None
        except ObjectTooLargeError:
            limit = f"{self.max_bytes:,}"
            raise RejectedError(Reason.TOO_LARGE, f"over the limit ingest.max_bytes of {limit} bytes") from None
        except UnreadableObjectError:
            detail = "reading it fails again and again, while its store answers"
            raise RejectedError(Reason.UNREADABLE_OBJECT, detail) from None

    def _read_member(self, member: TarMember) -> bytes:
        """Return the bytes of a file in a tar.

        A tar that was replaced by another one has other bytes there. To notice this, the request includes the header.
        """
        check_size(member.uri, member.size, self.max_bytes)
        start, stop = member.offset - TAR_BLOCK, member.offset + member.size
        last: bytes | None = None
        for _ in range(MOST_READS):
            data = self.storage.read_part(member.tar, start, stop)
            if len(data) == stop - start and starts_file(data[:TAR_BLOCK], member.size):
                return data[TAR_BLOCK:]
            if data == last or scheme(member.tar) == LOCAL:
                detail = f"its tar has no file of {member.size:,} bytes at byte {member.offset:,}"
                raise RejectedError(Reason.NOT_FOUND, detail)
            last = data
        raise StorageFaultError(f"reading {redact(member.uri)} returns different bytes each time")

    def use(self, row: Row, function: Callable[[bytes], T], refusal: type[RejectedError] = RejectedError) -> T:
        """Return `function(data)` for the object's bytes. If it raises a `refusal`, make sure that the bytes are right.

        To do so, read the object again until two reads in a row are identical, and call `function` again if the bytes
        changed. Raises the same errors as `read`, and `StorageFaultError` if all `MOST_READS` reads return different
        bytes.
        """
        data = self.read(row)
        for _ in range(MOST_READS - 1):
            try:
                return function(data)
            except refusal:
                if self.is_sure_of(data, row):
                    raise
                again = self.read(row)
                if again == data:
                    raise
                data = again
        raise StorageFaultError(f"reading {row['uri']} returns different bytes each time")

    def is_sure_of(self, data: bytes, row: Row) -> bool:
        """Return whether the bytes are certainly right: they come from a local file, or they match the catalog's hash.

        Otherwise, they may be incomplete. If a store or cache truncates a response and its Content-Length matches, the
        response looks whole.
        """
        if scheme(relative_to(self.catalog_uri, row["uri"])) == LOCAL:
            return True
        return row["sha256"] is not None and bytes_sha256(data) == row["sha256"].lower()


def checked_digest(data: bytes, expected: str | None) -> str:
    """Return the SHA-256 of the bytes. Raise `RejectedError` if the catalog expects a different one."""
    digest = bytes_sha256(data)
    if expected is not None and expected.lower() != digest:
        raise RejectedError(
            Reason.HASH_MISMATCH, f"the catalog says SHA-256 {expected.lower()}, the object has {digest}"
        )
    return digest


# libjpeg's warnings about damaged scan data, which other decoders hide by filling in gray.
_HAS_NO_END = "Premature end of JPEG file"
_ENDS_EARLY = (_HAS_NO_END, "Corrupt JPEG data: premature end of data segment")
_IS_DAMAGED = "Corrupt JPEG data"

_END_MARKER = b"\xff\xd9"
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")  # of segments and the end, but not those inside scans
_HUFFMAN_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_SCAN = 0xDA
_COEFFICIENTS = 64


def strict_samples(data: bytes, color: str, **scale: int) -> Pixels | None:
    """Decode a JPEG. Return None if it is intact but unusual, such as with odd sampling factors or unknown markers.

    A JPEG that lacks only its end marker is decoded. Raises `RejectedError` (`truncated`, `corrupt`).
    """
    try:
        return _decode(data, color, scale)
    except ValueError as error:
        message = str(error)
    if message.startswith(_HAS_NO_END) and _has_all_scans(data):
        try:
            return _decode(data + _END_MARKER, color, scale)
        except ValueError:
            pass  # the last scan ends early
    if message.startswith(_ENDS_EARLY):
        raise RejectedError(Reason.TRUNCATED, f"the JPEG's data ends early: {message}")
    if message.startswith(_IS_DAMAGED):
        raise RejectedError(Reason.CORRUPT, f"the JPEG's data is damaged: {message}")
    return None


def _decode(data: bytes, color: str, scale: dict[str, Any]) -> Pixels:
    return np.asarray(simplejpeg.decode_jpeg(data, color, strict=True, **scale))


def _has_all_scans(data: bytes) -> bool:
    """Return whether the scans that begin in a JPEG cover each coefficient of each component down to its last bit.

    If the end marker is missing between two scans, decoders fill in the other components or the finer bits without a
    warning. Arithmetic coding doesn't notice missing data in the last scan either, so the answer is False.
    """
    missing: set[tuple[int, int]] = set()  # components and their coefficients without a scan down to bit 0
    has_frame = False
    position = 2
    for _ in range(MOST_PARTS):
        found = _MARKER.search(data, position)
        if found is None:
            return has_frame and not missing
        marker, start = data[found.start() + 1], found.end()
        length = int.from_bytes(data[start : start + 2])
        body = data[start + 2 : start + length]
        position = start + length
        if marker in _HUFFMAN_FRAMES:
            has_frame = True
            missing.update(itertools.product(body[6::3], range(_COEFFICIENTS)))
        elif marker == _SCAN and len(body) == 4 + 2 * body[0]:
            first, last, bits = body[-3:]  # ITU-T T.81, G.1.1.1
            if bits & 15 == 0:
                missing.difference_update(itertools.product(body[1:-3:2], range(first, last + 1)))
    return False


MODES = frozenset(
    {
        "1",
        "L",
        "LA",
        "La",
        "P",
        "PA",
        "RGB",
        "RGBA",
        "RGBa",
        "RGBX",
        "CMYK",
        "YCbCr",
        "I;16",
        "I;16L",
        "I;16B",
    }
)
"""Pillow modes in which white is defined. Only these can be converted to 8-bit sRGB."""

STRIP_PIXELS = 2**22
_PROFILE_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}


def to_srgb(image: Image.Image, icc: bytes | None, container: str | None = None) -> Pixels:
    """Convert an image to (H, W, 3) uint8 RGB: sRGB, opaque on white.

    - An embedded profile is applied with relative colorimetry and black-point compensation. If the profile has no
      effect, can't be read, or is for another color space, it is ignored, and the samples are interpreted as sRGB, as
      in browsers.
    - CMYK without a profile is converted by Pillow's formula, R = (255 − C)·(255 − K)/255.
    - 16-bit gray is divided by 257 and rounded, so the full range is scaled, not clipped.
    - A BMP of which every pixel is transparent counts as opaque, because programs that write BMPs often fill an alpha
      channel that they don't use with zeros.

    Each of these steps makes a copy, and the largest images take nearly a gigabyte. To limit memory, the image is
    converted strip by strip. With the name of its file's `container`, raises `RejectedError` (`unsupported_format`) if
    every pixel of an image other than a BMP is transparent.
    """
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, STRIP_PIXELS // image.width)
    is_visible = False
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        color, alpha = _split_alpha(_eight_bits(strip))
        is_visible = is_visible or alpha is None or alpha.getbbox() is not None
        pixels[top : top + rows] = np.asarray(_strip_to_srgb(color, alpha, icc))
    if is_visible or container is None:
        return pixels
    if container == "BMP":
        return to_srgb(image.convert("RGB"), icc)
    detail = f"every pixel of the {container} image is transparent; expected visible pixels"
    raise RejectedError(Reason.UNSUPPORTED_FORMAT, detail)


def _strip_to_srgb(color: Image.Image, alpha: Image.Image | None, icc: bytes | None) -> Image.Image:
    if color.mode not in _PROFILE_SPACES:
        color = color.convert("RGB")
    transform = _transform(icc, color.mode) if icc else None
    if transform is not None:
        color = _apply(transform, color)
    rgb = color if color.mode == "RGB" else color.convert("RGB")
    if alpha is None:
        return rgb
    canvas = Image.new("RGB", rgb.size, (255, 255, 255))
    canvas.paste(rgb, mask=alpha)
    return canvas


def _eight_bits(image: Image.Image) -> Image.Image:
    if not image.mode.startswith("I;16"):
        return image
    samples = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((samples + 128) // 257).astype(np.uint8))


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return the image without transparency, and its alpha channel in mode L, or None if it is opaque."""
    if not image.has_transparency_data:
        return image, None
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode == "LA":
        return image.getchannel("L"), image.getchannel("A")
    image = image.convert("RGBA")
    return image.convert("RGB"), image.getchannel("A")


@functools.lru_cache(maxsize=16)
def _transform(icc: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from a profile to sRGB, or None if it has no effect or can't be used."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        if profile.profile.xcolor_space.strip() != _PROFILE_SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(
            profile,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        return None if mode == "RGB" and _changes_nothing(transform) else transform
    except (MemoryError, ImportError):
        raise
    except Exception:  # noqa: BLE001 - a broken profile raises anything, and says nothing about the pixels
        return None


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Return whether a transform changes no color of a 17×17×17 lattice by more than rounding.

    Most photographs contain one of several dozen variants of the sRGB profile. Applying such a profile would only take
    time and change the last bits of the pixels.
    """
    levels = np.linspace(0, 255, 17).round().astype(np.uint8)
    lattice = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(17, 289, 3)
    moved = np.asarray(_apply(transform, Image.fromarray(lattice)))
    return int(np.abs(moved.astype(np.int16) - lattice).max()) <= 1


def _apply(transform: ImageCms.ImageCmsTransform, picture: Image.Image) -> Image.Image:
    # Uses the transform's method, because the declared type of `ImageCms.applyTransform` includes None.
    return transform.apply(picture)


_REDUCED_RESOLUTION = 1  # bit of NewSubfileType
_NEW_SUBFILE_TYPE, _INK_SET, _DOT_RANGE, _DNG_VERSION = 254, 332, 336, 50706
_MOST_PAGES = 1000  # the first page and its reduced copies
_PALETTE, _CMYK, _YCC = 3, 5, 6  # PhotometricInterpretation
_UNCOMPRESSED, _JPEG, _WEBP, _DEFLATE = 1, 7, 50001, (8, 32946)
_LARGEST_TILE = 1 << 20  # pixels by which a tile may exceed its image

_YCC_LAYOUTS = {(6, 3), (_JPEG, 1), (_JPEG, 3)}
"""Compressions and numbers of samples of YCbCr images that Pillow reads exactly. 6 is JPEG before TIFF's supplement."""

_SEPARATE_LAYOUTS = {(1, 1, ()), (2, 3, ()), (2, 4, (2,)), (_CMYK, 4, ())}
"""PhotometricInterpretation, samples, and ExtraSamples of images that Pillow reads exactly from separate planes."""


def check_page(source: TiffImageFile, data: bytes) -> None:
    """Check that a TIFF is a single photograph whose pixels are all there, and that Pillow decodes it exactly.

    Reduced copies of the page are ignored. Raises `RejectedError` (`unsupported_format`, `truncated`, `corrupt`), or
    anything if the tags can't be read.
    """
    tags = source.tag_v2
    if data[8:10] == b"CR" or _DNG_VERSION in tags or _is_reduced(source):
        raise RejectedError(Reason.UNSUPPORTED_FORMAT, "a camera's raw file, of which TIFF holds a thumbnail")
    check_strips(source, data)
    is_unsigned = set(tags.get(SAMPLEFORMAT, (1,))) == {1}
    is_dark = tags.get(PHOTOMETRIC_INTERPRETATION) == _PALETTE and max(tags.get(COLORMAP, (0,))) < 256  # 8-bit palette
    if not is_unsigned or is_dark or (source.mode.startswith("I;16") and set(tags[BITSPERSAMPLE]) != {16}):
        raise _unsupported(tags)  # Pillow reads the samples as if they were unsigned, and 12 bits as if they were 16
    several = f"a TIFF file of several pages, or with over {_MOST_PAGES:,} reduced copies; expected one page"
    try:
        for number, _ in enumerate(ImageSequence.Iterator(source)):
            if number == _MOST_PAGES or (number > 0 and not _is_reduced(source)):
                raise RejectedError(Reason.UNSUPPORTED_FORMAT, several)
    except SyntaxError:  # Pillow can't open a further page
        raise RejectedError(Reason.UNSUPPORTED_FORMAT, several) from None
    source.seek(0)


def check_unopened(data: bytes) -> None:
    """Raise `RejectedError` for a TIFF that Pillow can't open: `unsupported_format` if its first page is intact.

    If the tags can't be read, raises anything.
    """
    is_big = data[2] == 43
    tags = Tags(data[: 16 if is_big else 8])
    stream = io.BytesIO(data)
    stream.seek(tags.next)
    tags.load(stream)
    _check_tags(tags, data)
    raise _unsupported(tags)


def white_is_zero(source: TiffImageFile) -> bool:
    """Return whether PhotometricInterpretation is 0, which Pillow supports for 8 bits but not for 16."""
    return bool(source.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0)


def _unsupported(tags: Tags) -> RejectedError:
    compression, colors = tags.get(COMPRESSION, 1), tags.get(PHOTOMETRIC_INTERPRETATION)
    planes, bits = tags.get(PLANAR_CONFIGURATION, 1), tags.get(BITSPERSAMPLE, (1,))
    # A damaged tag can contain any text instead of numbers.
    layout = f"compression {compression!a}, photometric interpretation {colors!a}, planar configuration {planes!a}"
    return RejectedError(Reason.UNSUPPORTED_FORMAT, f"a TIFF file with {layout}, {bits!a} bits per sample"[:200])


def _is_reduced(source: TiffImageFile) -> bool:
    """Return whether the current page declares itself a reduced copy of another page."""
    return bool(source.tag_v2.get(_NEW_SUBFILE_TYPE, 0) & _REDUCED_RESOLUTION)


def check_strips(source: TiffImageFile, data: bytes) -> None:
    """Check that a TIFF lists all of its strips or tiles, and that the data contains them whole and undamaged.

    Decoders don't check this. They draw unlisted strips in black, read past the end of short uncompressed strips, fill
    in the missing pixels of incomplete JPEG strips, and ignore deflate's checksum. Only strips with deflate or JPEG
    compression are checked for damage. Layouts that Pillow decodes to other samples are rejected as
    `unsupported_format`. If the tags can't be read, raises anything.
    """
    _check_tags(source.tag_v2, data)


def _check_tags(tags: Tags, data: bytes) -> None:
    if not _is_read_exactly(tags):
        raise _unsupported(tags)
    width, height = tags[IMAGEWIDTH], tags[IMAGELENGTH]
    side, rows = width, min(tags.get(ROWSPERSTRIP, height), height)
    starts, sizes = tags.get(STRIPOFFSETS, ()), tags.get(STRIPBYTECOUNTS, ())
    is_tiled = TILEOFFSETS in tags
    if is_tiled:
        side, rows = tags[TILEWIDTH], tags[TILELENGTH]
        starts, sizes = tags[TILEOFFSETS], tags.get(TILEBYTECOUNTS, ())
    samples, bits = tags.get(SAMPLESPERPIXEL, 1), tags.get(BITSPERSAMPLE, (1,))
    planes = samples if tags.get(PLANAR_CONFIGURATION) == 2 else 1
    down = -(-height // rows)
    wanted = -(-width // side) * down * planes
    if len(starts) != wanted or len(sizes) not in (0, wanted):
        detail = f"the TIFF lists {len(starts)} strips or tiles with {len(sizes)} sizes; expected {wanted}"
        raise RejectedError(Reason.CORRUPT, detail)
    if side * rows > width * height + _LARGEST_TILE:
        raise RejectedError(Reason.CORRUPT, f"the TIFF's tiles are {side}×{rows}, and its image is {width}×{height}")
    pixel_bits = sum(bits) if len(bits) > 1 else bits[0] * samples
    row_bytes = -(-side * pixel_bits // (8 * planes))
    compression = tags.get(COMPRESSION, _UNCOMPRESSED)
    tables = tags.get(JPEGTABLES, b"")[:-2]  # without the end marker
    for number, (start, size) in enumerate(zip(starts, sizes, strict=False)):
        end = int(start + size)
        if end > len(data):
            raise RejectedError(Reason.TRUNCATED, f"the TIFF ends after {len(data)} bytes, before its pixels do")
        if end == 0:
            raise RejectedError(Reason.UNSUPPORTED_FORMAT, "a TIFF file without data for some of its strips or tiles")
        lines = rows if is_tiled else min(rows, height - number % down * rows)
        is_whole = True
        if compression == _UNCOMPRESSED:
            is_whole = size >= lines * row_bytes
        elif compression in _DEFLATE:
            is_whole = _is_inflated(data[start:end], rows * row_bytes)
        elif compression == _JPEG:
            jpeg = tables + data[start + 2 : end] if tables else data[start:end]
            is_whole = _is_jpeg(jpeg, side, range(lines, rows + 1))
        if not is_whole:
            detail = f"the TIFF's strip or tile {number + 1} is damaged or incomplete; expected {side}×{lines} pixels"
            raise RejectedError(Reason.CORRUPT, detail)


def _is_inflated(packed: bytes, size: int) -> bool:
    """Return whether deflated data is intact, and contains at most `size` bytes."""
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(packed, size + 1)  # with one more byte than expected, zlib compares the checksum
    except zlib.error:
        return False
    return unpacker.eof


def _is_jpeg(data: bytes, width: int, heights: range) -> bool:
    """Return False for a JPEG of another size. Raises `RejectedError` if it's damaged."""
    try:
        height, found, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return True  # the decoder decides
    if found != width or height not in heights:
        return False
    strict_samples(data, "GRAY")
    return True


def _is_read_exactly(tags: Tags) -> bool:
    """Return False for a layout that Pillow 13 and libtiff 4.7 decode to other samples, or that few files have.

    Pillow reads uncompressed separate planes as 8-bit samples in normal bit order. It ignores the tags of YCbCr without
    JPEG, and those that say that inks aren't cyan, magenta, yellow, and black, or that 0 isn't 0%. Its
    libtiff doesn't contain WebP.
    """
    colors, samples = tags.get(PHOTOMETRIC_INTERPRETATION, 0), tags.get(SAMPLESPERPIXEL, 1)
    compression = tags.get(COMPRESSION, _UNCOMPRESSED)
    is_reversed = tags.get(FILLORDER, 1) != 1
    if colors == _CMYK and (tags.get(_INK_SET, 1) != 1 or tags.get(_DOT_RANGE, (0,))[0] != 0):
        return False
    if compression == _WEBP or (colors == _YCC and (compression, samples) not in _YCC_LAYOUTS):
        return False
    if is_reversed and compression in _DEFLATE:
        return False
    if tags.get(PLANAR_CONFIGURATION) != 2 or (samples == 1 and compression != _UNCOMPRESSED):
        return True
    has_bytes = set(tags.get(BITSPERSAMPLE, (1,))) == {8} and not is_reversed
    layout = (colors, samples, tags.get(EXTRASAMPLES, ()))
    return layout in _SEPARATE_LAYOUTS and (has_bytes or compression != _UNCOMPRESSED)
