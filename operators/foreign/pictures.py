"""Facts about a picture of unknown origin: its hash, and what its file contains besides the picture."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageFile

from segmint.operators.audit.jpeg_parts import metadata_name
from segmint.operators.images import Pixels
from segmint.operators.prepare.containers import recognize
from segmint.operators.prepare.ingest import ingest, open_image, upright_size
from segmint.operators.prepare.ingest_config import ANY_SIZE
from segmint.operators.similar.confirm import normalized_views, same_view
from segmint.operators.similar.hashes import FRAME, THUMBNAIL, Gray, luma, view_hashes

_START, _END = 0xD8, 0xD9
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # the next marker behind entropy-coded data
_POSITION = (ExifTags.GPS.GPSLatitude, ExifTags.GPS.GPSLongitude)
_THUMBNAIL_SIDE = 2_000  # pixels; larger thumbnails aren't decoded


@dataclass(frozen=True)
class PictureFacts:
    """Facts about a picture's file.

    - `bits`: the perceptual hash of the upright picture, or `NO_HASH`.
    - `metadata`: names of the kinds of metadata, except for EXIF with a position or another thumbnail. A color profile
      isn't one.
    - `has_position`: whether the metadata contains where the picture was taken.
    - `other_thumbnail`: whether the metadata contains a thumbnail that shows something else.
    - `more_bytes`: number of bytes after the end of a JPEG's picture.
    - `pixels`: the upright picture, (H, W, 3) uint8 RGB, if requested.
    """

    bits: int
    metadata: tuple[str, ...]
    has_position: bool
    other_thumbnail: bool
    more_bytes: int
    pixels: Pixels | None


def examine_picture(data: bytes, *, with_pixels: bool) -> PictureFacts:
    """Decode a picture to its end, and return the facts about it. Raises `RejectedError` if it can't be decoded.

    This is for a child process with limits, because the bytes are untrusted.
    """
    kind = recognize(data, ANY_SIZE.decoded)
    pixels = ingest(data, ANY_SIZE).image
    gray = luma(pixels)
    names = set()
    end = len(data)
    if kind == "JPEG":
        for marker, start, stop in _segments(data):
            if marker == _END:
                end = stop
            elif name := metadata_name(marker, data[start:stop]):
                names.add(name)
    image = open_image(data, kind)
    has_position, other_thumbnail = False, False
    try:
        exif = image.getexif()
        has_position = any(key in exif.get_ifd(ExifTags.IFD.GPSInfo) for key in _POSITION)
        thumbnail = _thumbnail(image, exif)
        other_thumbnail = thumbnail is not None and not _shows(thumbnail, gray)
    except Exception:  # noqa: BLE001 - Pillow raises many kinds for damaged metadata of a sound picture
        names.add("EXIF that can't be read")
    names |= {name for key, name in (("exif", "EXIF"), ("xmp", "XMP"), ("comment", "a comment")) if key in image.info}
    if has_position or other_thumbnail:
        names.discard("EXIF")
    return PictureFacts(
        bits=int(view_hashes(gray)[FRAME]),
        metadata=tuple(sorted(names)),
        has_position=has_position,
        other_thumbnail=other_thumbnail,
        more_bytes=len(data) - end,
        pixels=pixels if with_pixels else None,
    )


def picture_sizes(data: bytes) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the (height, width) of a picture as it is stored, and as it is shown. Raises an exception for other bytes.

    The two differ if the metadata says that the picture is turned by 90 degrees.
    """
    image = open_image(data, recognize(data, ANY_SIZE.decoded))
    width, height = upright_size(image)
    return (image.height, image.width), (height, width)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the markers of a JPEG that decodes, and the first and last byte of their contents, up to the end marker."""
    position = 2
    while found := _MARKER.search(data, position):
        marker, start = data[found.start() + 1], found.end()
        if marker in (_START, _END):
            yield marker, start, start
            position = start
            if marker == _END:
                return
            continue
        position = start + int.from_bytes(data[start : start + 2], "big")
        yield marker, start + 2, position


def _thumbnail(image: ImageFile.ImageFile, exif: Image.Exif) -> Gray | None:
    """Return the gray values of the thumbnail in a picture's EXIF data, or None if there is none."""
    inside = exif.get_ifd(ExifTags.IFD.IFD1)
    start, size = (inside.get(tag) for tag in (ExifTags.Base.JpegIFOffset, ExifTags.Base.JpegIFByteCount))
    if not isinstance(start, int) or not isinstance(size, int):
        return None
    written = image.info.get("exif", b"").removeprefix(b"Exif\0\0")[start : start + size]
    with Image.open(io.BytesIO(written), formats=["JPEG"]) as thumbnail:
        if max(thumbnail.size) > _THUMBNAIL_SIDE:
            return None
        return np.asarray(thumbnail.convert("L"))


def _shows(thumbnail: Gray, gray: Gray) -> bool:
    """Return whether a thumbnail shows the same picture, maybe turned, or between black bars."""
    for turns in range(4):
        turned = np.rot90(thumbnail, turns)
        height, width = turned.shape
        scale = min(height / gray.shape[0], width / gray.shape[1])
        high, wide = (max(1, round(side * scale)) for side in gray.shape)
        top, left = (height - high) // 2, (width - wide) // 2
        pair = np.stack([_small(turned[top : top + high, left : left + wide]), _small(gray)])
        views = normalized_views(pair, np.zeros(2, np.int64))
        if not views[1].any() or same_view(views[:1], views[1:])[0]:
            return True
    return False


def _small(gray: Gray) -> Gray:
    picture = Image.fromarray(np.ascontiguousarray(gray))
    return np.asarray(picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))
