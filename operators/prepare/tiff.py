"""Checks of a TIFF: its pages, its strips or tiles, and layouts that Pillow decodes to other pixels."""

import contextlib
import io
import zlib

import simplejpeg
from PIL import TiffImagePlugin

from segmint.catalogs.reasons import Reason, RejectedError
from segmint.operators.prepare.jpeg import strict_samples

Tags = TiffImagePlugin.ImageFileDirectory_v2

_REDUCED_RESOLUTION = 1  # bit of NewSubfileType
_NEW_SUBFILE_TYPE, _DNG_VERSION = 254, 50706
_MOST_PAGES = 1000  # maximum number of reduced copies of the first page
_BITS, _COMPRESSION, _COLORS, _FILL_ORDER, _SAMPLES, _PLANES = 258, 259, 262, 266, 277, 284
_EXTRA_SAMPLES, _SAMPLE_FORMAT, _JPEG_TABLES, _INK_SET, _DOT_RANGE = 338, 339, 347, 332, 336
_YCC_COEFFICIENTS, _YCC_SUBSAMPLING, _YCC_REFERENCE = 529, 530, 532
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCC = 0, 1, 2, 3, 5, 6  # PhotometricInterpretation
_UNCOMPRESSED, _JPEG, _DEFLATE = 1, 7, (8, 32946)
_LARGEST_TILE = 1 << 20  # pixels by which a tile may exceed its image
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

_RAW_PLANES = frozenset(
    {(_BLACK_IS_ZERO, 1, 0), (_RGB, 3, 0), (_RGB, 4, 1), (_PALETTE, 1, 0), (_CMYK, 4, 0)},
)
"""Colors, samples, and alpha channels of uncompressed images with 8 bits that Pillow reads from separate planes."""

_FULL_RANGE = (0, 255, 128, 255, 128, 255)  # of YCbCr


def check_page(source: TiffImagePlugin.TiffImageFile, data: bytes) -> None:
    """Check that a TIFF is a single photograph whose pixels are all there, and that Pillow decodes it exactly.

    Reduced copies of the page are ignored. Raises `RejectedError` (`unsupported_format`, `truncated`, `corrupt`).
    """
    tags = source.tag_v2
    if data[8:10] == b"CR" or _DNG_VERSION in tags or _is_reduced(source):
        raise RejectedError(Reason.UNSUPPORTED_FORMAT, "a camera's raw file, of which TIFF holds a thumbnail")
    check_strips(source, data)
    is_unsigned = set(tags.get(_SAMPLE_FORMAT, (1,))) == {1}
    if not is_unsigned or (source.mode.startswith("I;16") and set(tags[_BITS]) != {16}):
        raise _unsupported(tags)  # Pillow reads the samples as if they were unsigned, and 12 bits as if they were 16
    if _has_further_pages(source):
        raise RejectedError(Reason.UNSUPPORTED_FORMAT, "a TIFF file of several pages; expected one")


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


def white_is_zero(source: TiffImagePlugin.TiffImageFile) -> bool:
    """Return whether PhotometricInterpretation is 0, which Pillow supports for 8 bits but not for 16."""
    return bool(source.tag_v2.get(_COLORS) == _WHITE_IS_ZERO)


def _unsupported(tags: Tags) -> RejectedError:
    names = {"compression": _COMPRESSION, "photometric interpretation": _COLORS, "planar configuration": _PLANES}
    layout = [f"{name} {tags[tag]}" for name, tag in names.items() if tag in tags]
    layout.append(f"{tags.get(_BITS, (1,))} bits per sample")
    return RejectedError(Reason.UNSUPPORTED_FORMAT, f"a TIFF file with {', '.join(layout)}"[:200])


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


def check_strips(source: TiffImagePlugin.TiffImageFile, data: bytes) -> None:
    """Check that a TIFF lists all of its strips or tiles, and that the data contains them whole and undamaged.

    Decoders don't check this. They draw unlisted strips in black, read past the end of short uncompressed strips, fill
    in the missing pixels of incomplete JPEG strips, and ignore deflate's checksum. Only strips with deflate or JPEG
    compression are checked for damage. Layouts that Pillow decodes to other samples are rejected as
    `unsupported_format`.
    """
    _check_tags(source.tag_v2, data)


def _check_tags(tags: Tags, data: bytes) -> None:
    try:
        if not _is_read_exactly(tags):
            raise _unsupported(tags)
        width, height = int(tags[256]), int(tags[257])
        offsets, counts = (324, 325) if 324 in tags else (273, 279)
        side, rows = (tags[322], tags[323]) if offsets == 324 else (width, min(tags.get(278, height), height))
        planes = tags.get(_SAMPLES, 1) if tags.get(_PLANES) == 2 else 1
        across, down = -(-width // side), -(-height // rows)
        wanted = across * down * planes
        starts, sizes = tags.get(offsets, ()), tags.get(counts, ())
        strips = [(int(start), int(start + size)) for start, size in zip(starts, sizes, strict=False)]
        bits = tags.get(_BITS, (1,))
        pixel_bits = sum(bits) if len(bits) > 1 else bits[0] * tags.get(_SAMPLES, 1)
        row_bytes = -(-side * pixel_bits // (8 * planes))
    except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError):
        detail = "the TIFF's tags of its strips or tiles are missing, or not whole numbers"
        raise RejectedError(Reason.CORRUPT, detail) from None
    if max((end for _, end in strips), default=0) > len(data):
        raise RejectedError(Reason.TRUNCATED, f"the TIFF ends after {len(data)} bytes, before its pixels do")
    if len(starts) != wanted or len(sizes) not in (0, wanted):
        detail = f"the TIFF lists {len(starts)} strips or tiles with {len(sizes)} sizes; expected {wanted}"
        raise RejectedError(Reason.CORRUPT, detail)
    if side * rows > width * height + _LARGEST_TILE:
        raise RejectedError(Reason.CORRUPT, f"the TIFF's tiles are {side}×{rows}, and its image is {width}×{height}")
    if (0, 0) in strips:
        raise RejectedError(Reason.UNSUPPORTED_FORMAT, "a TIFF file without data for some of its strips or tiles")
    compression = tags.get(_COMPRESSION, _UNCOMPRESSED)
    if compression == _UNCOMPRESSED:
        for number, (start, end) in enumerate(strips):
            lines = rows if offsets == 324 else min(rows, height - number % down * rows)
            if end - start < lines * row_bytes:
                detail = f"the TIFF's strip or tile {number + 1} has {end - start} bytes; expected {lines * row_bytes}"
                raise RejectedError(Reason.CORRUPT, detail)
    if compression in _DEFLATE:
        largest = rows * row_bytes * planes + 1  # with one more byte than expected, zlib compares the checksum
        for number, (start, end) in enumerate(strips, 1):
            packed = data[start:end]
            if tags.get(_FILL_ORDER) == 2:
                packed = packed.translate(_REVERSED)
            unpacker = zlib.decompressobj()
            with contextlib.suppress(zlib.error):
                unpacker.decompress(packed, largest)
            if not unpacker.eof:
                raise RejectedError(Reason.CORRUPT, f"the TIFF's strip or tile {number} is damaged or incomplete")
    if compression != _JPEG:
        return
    tables = tags.get(_JPEG_TABLES, b"")[:-2]  # without the end marker
    for number, (start, end) in enumerate(strips):
        part = tables + data[start + 2 : end] if tables else data[start:end]
        with contextlib.suppress(ValueError):  # the decoder decides
            high, wide, *_ = simplejpeg.decode_jpeg_header(part)
            lines = rows if offsets == 324 else min(rows, height - number % down * rows)
            if wide != side or not lines <= high <= rows:
                detail = f"the TIFF's JPEG strip or tile {number + 1} is {wide}×{high}; expected {side}×{lines}"
                raise RejectedError(Reason.CORRUPT, detail)
            strict_samples(part, "GRAY")


def _is_read_exactly(tags: Tags) -> bool:
    """Return False for a layout that Pillow 13 and libtiff 4.7 decode to other samples, or fail to decode.

    Pillow reads uncompressed separate planes as 8-bit samples in normal bit order, and doesn't invert them. From other
    separate planes, it doesn't read the alpha channel of a gray or palette image. It ignores the tags of uncompressed
    YCbCr, and those that say that inks aren't cyan, magenta, yellow, and black, or that 0 isn't 0%.
    """
    colors, compression = tags.get(_COLORS, _WHITE_IS_ZERO), tags.get(_COMPRESSION, _UNCOMPRESSED)
    is_raw = compression == _UNCOMPRESSED
    samples, extras = tags.get(_SAMPLES, 1), tags.get(_EXTRA_SAMPLES, ())
    alphas = len(extras)
    if extras and max(extras) == 0:
        samples, alphas = samples - alphas, 0  # Pillow leaves out such samples
    if colors == _CMYK and (tags.get(_INK_SET, 1) != 1 or tags.get(_DOT_RANGE, (0,))[0] != 0):
        return False
    if colors == _YCC and is_raw and samples > 1:
        has_defaults = _YCC_COEFFICIENTS not in tags and tags.get(_YCC_REFERENCE, _FULL_RANGE) == _FULL_RANGE
        return has_defaults and tags.get(_YCC_SUBSAMPLING) == (1, 1) and tags.get(_PLANES) != 2
    if colors == _YCC and compression not in (_UNCOMPRESSED, _JPEG) and samples == 1:
        return False
    if tags.get(_PLANES) != 2:
        return True
    layout = (colors, samples, alphas)
    if not is_raw:
        return layout in {(_WHITE_IS_ZERO, 1, 0), *_RAW_PLANES}
    if tags.get(_FILL_ORDER, 1) != 1 or 1 in extras:
        return False
    bits = set(tags.get(_BITS, (1,)))
    if bits == {1}:
        return layout == (_BLACK_IS_ZERO, 1, 0)
    is_rgba = layout == (_RGB, 4, 0) and 324 not in tags
    return bits == {8} and (layout in _RAW_PLANES or is_rgba)
