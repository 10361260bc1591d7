"""Conversion of paths, URIs, Pillow images, and arrays to pixels for the Python API."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageOps

from segmint.catalogs.reasons import RejectedError
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.storage.storage import Storage
from segmint.operators.photographs import decode_photograph
from segmint.operators.prepare.color import MODES, to_srgb
from segmint.operators.prepare.ingest_config import ANY_SIZE

Pixels = NDArray[np.uint8]

Image: TypeAlias = str | os.PathLike[str] | PillowImage.Image | NDArray[Any]
"""Path, URI, Pillow image, or array: (height, width, 3) uint8 RGB or (height, width) uint8 grayscale."""


class ImageError(UsageError, ValueError):
    """Error for a value that isn't an image, or for an image that can't be read."""


def pixels_of(image: Image, name: str = "image") -> Pixels:
    """Return an image's pixels, (height, width, 3) uint8, upright in sRGB, with transparency flattened on white.

    For files and Pillow images, applies the EXIF orientation and the color profile. For an RGB or gray JPEG, PNG, or
    WebP, you get the same pixels from a path, a Pillow image, and `segmint masks`. A color array is returned unchanged,
    without a copy. The values of a gray array are repeated three times.

    Raises `ImageError`, whose message states the given and the expected type. `name` is the image's name in the
    message.
    """
    if isinstance(image, (str, os.PathLike)):
        return _read(os.fspath(image))
    if isinstance(image, PillowImage.Image):
        if image.mode not in MODES:
            raise ImageError(f"{name} is a Pillow image of mode {image.mode}: expected 8 or 16 bits per sample")
        return np.ascontiguousarray(_upright(image, name))
    return _array(image, name)


def describe(image: Any) -> str:
    """Describe an image argument by its path, or by its type and size."""
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    if isinstance(image, PillowImage.Image):
        return str(getattr(image, "filename", "") or f"Pillow image {image.width} x {image.height}")
    shape = getattr(image, "shape", None)
    return type(image).__name__ if shape is None else f"array {tuple(shape)}"


def _read(name: str) -> Pixels:
    try:
        path = Path(name).expanduser() if "://" not in name else None
        is_folder = path is not None and path.is_dir()
        is_absent = path is not None and not path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # the name is too long, or the home directory doesn't exist
        raise ImageError(f"{name[:200]!r} is not an image path: {getattr(error, 'strerror', None) or error}") from error
    if not name:
        raise ImageError("the image is an empty string: expected a path or URI")
    if is_folder:
        raise ImageError(f"{name} is a folder: expected an image. For several, use generate_many(glob('{name}/*.jpg'))")
    if is_absent:
        raise ImageError(f"{name} does not exist: expected the path of an image. Relative paths start at {Path.cwd()}.")
    try:
        data = Storage().read(str(path or name), max_bytes=ANY_SIZE.max_bytes)
    except (SegmintError, OSError) as error:
        raise ImageError(f"{name} can't be read: {error}") from error
    try:
        return decode_photograph(data)
    except RejectedError as verdict:
        raise ImageError(f"{name}: {verdict.reason}: {verdict.detail}") from verdict


def _upright(image: PillowImage.Image, name: str) -> Pixels:
    try:
        image.load()  # Pillow decodes lazily
    except MemoryError:
        raise
    except Exception as error:  # decoders raise all kinds of exceptions
        raise ImageError(f"{name} is a {describe(image)} that can't be decoded: {error}") from error
    try:
        oriented = ImageOps.exif_transpose(image)
    except (OSError, ValueError, TypeError, KeyError, SyntaxError):
        oriented = image  # broken metadata doesn't affect the pixels
    try:
        # An image from a file gives the same pixels as the file's path.
        return to_srgb(oriented, image.info.get("icc_profile"), image.format)
    except RejectedError as verdict:
        raise ImageError(f"{name}: {verdict.reason}: {verdict.detail}") from verdict


def _array(value: Any, name: str) -> Pixels:
    if isinstance(value, Mapping) or not hasattr(value, "__array__"):
        raise ImageError(
            f"{name} is a {type(value).__name__}: expected a path, a Pillow image, or a uint8 array (height, width, 3)"
        )
    array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    expected = "expected (height, width, 3) uint8 RGB, or (height, width) uint8 gray"
    given = f"{name} is an array of shape {array.shape} and type {array.dtype}"
    if 0 in array.shape or array.ndim not in (2, 3):
        hint = ". For several images, use generate_many." if array.ndim == 4 else ""
        raise ImageError(f"{given}: {expected}{hint}")
    if array.dtype != np.uint8:
        hint = "(image * 255).round().astype('uint8')" if array.dtype.kind == "f" else "image.astype('uint8')"
        raise ImageError(f"{given}: {expected}, from 0 to 255. You may want {hint}.")
    if array.ndim == 2:
        return np.repeat(array[:, :, None], 3, axis=2)
    if array.shape[2] == 3:
        return array
    if array.shape[2] == 4:
        raise ImageError(f"{given}: {expected}. To drop its transparency, use image[:, :, :3].")
    if array.shape[0] == 3:
        raise ImageError(f"{given}: {expected}. To move the channels last, use image.transpose(1, 2, 0).")
    raise ImageError(f"{given}: {expected}")
