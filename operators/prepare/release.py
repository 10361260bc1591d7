"""Release: downscales and re-encodes the pixels that are published, without any metadata."""

import functools
import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from segmint.catalogs.findings import Reason, RejectedError
from segmint.infra.arrays import Pixels
from segmint.model.automatic.settings import enough_for_crops
from segmint.operators.images import decode_jpeg

_JPEG_SIDE_LIMIT = 65_500  # pixels; libjpeg's limit, slightly below the format's 65,535
_ORIGINAL_QUALITY = 95
_FRAME, _SCAN = b"\xff\xc0\x00\x11\x08", b"\xff\xda\x00\x0c\x03"
"""Beginnings of the frame header and scan header in JPEGs from `_encode`."""


class ReleaseConfig(BaseModel):
    """Size and encoding of released images. In the paper, the short side is 1500 pixels long."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    short_side: int = Field(1500, gt=0)  # pixels
    jpeg_quality: int = Field(95, ge=1, le=100)
    format: Literal["images", "annotations"] = "images"  # annotations: the dataset contains no JPEGs


@dataclass(frozen=True)
class CropLayers:
    """Parameters of the crops for mask generation. See `segmint.model.automatic.crops`."""

    layers: int
    overlap_ratio: float


WHOLE_ORIGINAL = CropLayers(layers=0, overlap_ratio=0.0)
"""Stands for an original of the source's full size, which a segmenter wants, in place of one for crops."""


@dataclass(frozen=True)
class ReleasedImage:
    """A released image: the JPEG's bytes and its size in pixels."""

    jpeg: bytes
    width: int
    height: int

    @functools.cached_property
    def pixels(self) -> Pixels:
        """The decoded JPEG, (height, width, 3) uint8 RGB."""
        return decode_jpeg(self.jpeg)


def release(image: Pixels, config: ReleaseConfig) -> ReleasedImage:
    """Downscale (H, W, 3) uint8 RGB so that its short side is at most `short_side`, and encode it as JPEG.

    The image is never upscaled. Pillow's Lanczos filter runs on all pixels, without the faster two-step reduction, so
    the result is sharp and free of aliasing. Its fixed-point arithmetic produces the same pixels on every machine.
    Chroma is subsampled 4:2:0. Raises `RejectedError` (`too_large`) if a side is too long for a JPEG.
    """
    width, height = released_size(image.shape[1], image.shape[0], config.short_side)
    picture = Image.fromarray(image)
    if picture.size != (width, height):
        _check_sides(width, height)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return ReleasedImage(_encode(picture, config.jpeg_quality, "4:2:0"), width, height)


def release_header(width: int, height: int, quality: int) -> bytes:
    """Return the bytes before a released JPEG's image data. They depend only on the image's size and quality."""
    blank = _blank(quality)
    size = blank.index(_FRAME) + len(_FRAME)
    return blank[:size] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + blank[size + 4 :]


@functools.cache
def _blank(quality: int) -> bytes:
    """Return the bytes of a blank JPEG up to its image data."""
    blank = _encode(Image.new("RGB", (16, 16)), quality, "4:2:0")
    return blank[: blank.rindex(_SCAN) + 14]


def released_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return the width and height in pixels after downscaling, each rounded half up."""
    short = min(width, height)
    if short <= short_side:
        return width, height
    return tuple((2 * side * short_side + short) // (2 * short) for side in (width, height))  # type: ignore[return-value]


def original_size(width: int, height: int, released: tuple[int, int], crops: CropLayers) -> tuple[int, int] | None:
    """Return the (width, height) of the original for cutting crops, or None if no original is needed.

    This is the smallest size that the last layer of crops needs, but never more than the source's `width` x `height`
    pixels. If the released image, of size `released`, is large enough, crops are cut from it, and no original is
    needed.
    """
    if crops == WHOLE_ORIGINAL:
        return None if (width, height) == released else (width, height)
    high, wide = enough_for_crops((released[1], released[0]), crops.layers, crops.overlap_ratio)
    if wide <= released[0] or (width, height) == released:
        return None
    return min(wide, width), min(high, height)


def largest_size(width: int, height: int, short_side: int, crops: CropLayers | None) -> tuple[int, int]:
    """Return the (width, height) of the largest image to make, which is the original for crops or the released image.

    `crops` is None if no crops are cut from an original.
    """
    released = released_size(width, height, short_side)
    original = None if crops is None else original_size(width, height, released, crops)
    return released if original is None else original


def resized(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Downscale (H, W, 3) uint8 RGB to `size` (width, height) like `release`; return the same array if it fits."""
    if (image.shape[1], image.shape[0]) == size:
        return image
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def encode_original(image: Pixels) -> bytes:
    """Encode the original for cutting crops, (H, W, 3) uint8 RGB, as a 4:4:4 JPEG of quality 95.

    Raises `RejectedError` (`too_large`) if a side is too long for a JPEG.
    """
    return _encode(Image.fromarray(image), _ORIGINAL_QUALITY, "4:4:4")


def _encode(picture: Image.Image, quality: int, subsampling: str) -> bytes:
    _check_sides(*picture.size)
    stream = io.BytesIO()
    # An image made from an array has no EXIF, profile, or comment that Pillow could write.
    picture.save(stream, "JPEG", quality=quality, subsampling=subsampling)
    return stream.getvalue()


def _check_sides(width: int, height: int) -> None:
    if max(width, height) > _JPEG_SIDE_LIMIT:
        raise RejectedError(
            Reason.TOO_LARGE,
            f"{width}×{height} pixels to release; a JPEG's side has at most {_JPEG_SIDE_LIMIT}",
        )
