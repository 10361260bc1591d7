"""Control images that every working decoder can decode, so that a decoding error can be blamed on an image's bytes."""

import base64
import io
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

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
def control_pixels() -> NDArray[np.uint8]:
    """Return four gray squares, (64, 64, 3) uint8 RGB. Every container can store them almost exactly."""
    pixels = np.full((64, 64, 3), 40, np.uint8)
    pixels[:32, 32:] = 100
    pixels[32:, :32] = 160
    pixels[32:, 32:] = 220
    return pixels


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
