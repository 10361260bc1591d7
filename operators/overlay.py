"""Visualization of masks and prompts over their image."""

import colorsys
import io
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from segmint.infra.arrays import Bools, Box, Pixels
from segmint.model.automatic.crops import box_of
from segmint.model.automatic.rle import MaskRecord, decode

_FILL = 0.45  # share of the mask's color in the pixels that it covers
_WRITTEN_BY = ("Software", "segmint")
_DRAWN_FROM = "Masks SHA-256"
_GOLDEN_ANGLE = 0.618033988749895  # fraction of a turn; keeps each hue far from all earlier hues


def draw_overlay(image: Pixels, records: Sequence[MaskRecord]) -> Pixels:
    """Return a copy of `image`, (H, W, 3) uint8 RGB, in which every mask is tinted and thinly outlined.

    Larger masks are drawn first, so parts stay visible on top of whole objects. The color of a mask depends only on its
    place in this order.
    """
    canvas = image.copy()
    thickness = max(1, round(min(image.shape[:2]) / 700))
    order = sorted(range(len(records)), key=lambda index: -records[index].area)
    for place, index in enumerate(order):
        color = distinct_color(place)
        mask = decode(records[index].segmentation)
        inside = canvas[mask].astype(np.float32)
        canvas[mask] = np.rint(inside * (1 - _FILL) + np.array(color, np.float32) * _FILL).astype(np.uint8)
        contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        lighter = tuple(int(channel + (255 - channel) * 0.5) for channel in color)
        cv2.drawContours(canvas, contours, -1, lighter, thickness)
    return canvas


def draw_prompts(
    image: Pixels,
    points: Sequence[tuple[float, float, int]] = (),
    boxes: Sequence[Box] = (),
) -> Pixels:
    """Return a copy of `image` with prompts drawn on it.

    Foreground points are green, background points are red, and boxes (x, y, w, h) are white.
    """
    canvas = image.copy()
    radius = max(3, round(min(image.shape[:2]) / 120))
    for x, y, width, height in boxes:
        corners = (round(x), round(y)), (round(x + width), round(y + height))
        cv2.rectangle(canvas, *corners, (0, 0, 0), max(3, radius // 2 + 2), cv2.LINE_AA)
        cv2.rectangle(canvas, *corners, (255, 255, 255), max(1, radius // 2), cv2.LINE_AA)
    for x, y, label in points:
        color = (60, 220, 60) if label else (235, 60, 60)
        cv2.circle(canvas, (round(x), round(y)), radius + 2, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(canvas, (round(x), round(y)), radius, color, -1, cv2.LINE_AA)
    return canvas


def cut_out(image: Pixels, mask: Bools) -> Pixels:
    """Cut out the box of a mask, (H, W) bool, as (h, w, 4) uint8 RGBA with the mask as alpha.

    `image` is (H, W, 3) uint8 RGB. Pixels outside the mask are set to zero, not just made transparent. Raises
    ValueError for an empty mask.
    """
    if not mask.any():
        raise ValueError("the mask is empty: expected a mask with at least one pixel")
    x0, y0, x1, y1 = box_of(mask)
    box = slice(y0, y1 + 1), slice(x0, x1 + 1)
    alpha = mask[box].astype(np.uint8)[..., None] * np.uint8(255)
    return np.concatenate([image[box] & alpha, alpha], axis=2)


def distinct_color(index: int) -> tuple[int, int, int]:
    """Return color `index` of a fixed series, as RGB from 0 to 255. Each hue differs from all earlier hues."""
    hue = (0.58 + index * _GOLDEN_ANGLE) % 1.0
    saturation, value = (0.85, 1.0) if index % 2 == 0 else (0.65, 0.9)
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def encode_png(image: Pixels, drawn_from: str | None = None) -> bytes:
    """Encode an image, (H, W, 3) or (H, W, 4) uint8, as PNG. A text chunk names segmint as the software.

    If `drawn_from`, the SHA-256 of the file with the masks, is given, another text chunk contains it.
    """
    buffer = io.BytesIO()
    written_by = PngInfo()
    written_by.add_text(*_WRITTEN_BY)
    if drawn_from is not None:
        written_by.add_text(_DRAWN_FROM, drawn_from)
    Image.fromarray(image).save(buffer, format="PNG", compress_level=3, pnginfo=written_by)
    return buffer.getvalue()


def is_ours(png: bytes) -> bool:
    """Return whether `encode_png` wrote a PNG, judging by the first chunk after its header."""
    return "\0".join(_WRITTEN_BY).encode() in png[:64]


def is_drawn_from(png: bytes, sha256: str) -> bool:
    """Return whether a PNG from `encode_png` shows masks of the file with this SHA-256, judging by its first bytes."""
    return f"{_DRAWN_FROM}\0{sha256}".encode() in png[:256]
