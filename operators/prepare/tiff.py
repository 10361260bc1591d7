"""Checks of a TIFF: its pages, its strips or tiles, and layouts that Pillow decodes to other pixels."""

import io
import zlib

import simplejpeg
from PIL import ImageSequence
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

from segmint.catalogs.reasons import Reason, RejectedError
from segmint.operators.prepare.jpeg import strict_samples

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
    layout = f"compression {compression}, photometric interpretation {colors}, planar configuration {planes}"
    return RejectedError(Reason.UNSUPPORTED_FORMAT, f"a TIFF file with {layout}, {bits} bits per sample"[:200])


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
