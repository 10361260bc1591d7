"""Conversion to 8-bit sRGB: profiles, CMYK, gray, palettes, 16-bit samples, and transparency."""

import functools
import io

import numpy as np
from PIL import Image, ImageCms

from segmint.catalogs.reasons import Reason, RejectedError
from segmint.operators.images import Pixels

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
