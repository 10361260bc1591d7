"""Classical measures of an image's fitness for a dataset: focus, exposure, and flatness.

All measures are computed from integer counts on the image at a fixed scale. So they don't depend on the image's
resolution or on the machine.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

SIDE = 512
"""Length in pixels of the shorter side of the image that is measured. Smaller images aren't enlarged."""

MOST_PIXELS = 16 * SIDE * SIDE
"""Maximum number of pixels in the image that is measured.

If the aspect ratio exceeds 16, this limit makes the shorter side shorter than `SIDE`.
"""

_DARK, _BRIGHT = 8, 247  # maximum and minimum gray level of clipped pixels; JPEG blurs the extremes
_LEVELS = 32  # per channel, because 256 would not separate a drawing's colors from JPEG noise

MEASURES = {
    "sharpness": "variance of the Laplacian (Pech-Pacheco et al. 2000)",
    "contrast": "standard deviation of the gray levels",
    "entropy": "bits of the histogram of gray levels",
    "dark": f"share of pixels with a gray level of at most {_DARK}",
    "bright": f"share of pixels with a gray level of at least {_BRIGHT}",
    "flat": "share of pixels that equal the ones to their right and below",
    "colors": f"colors that occur, of {_LEVELS}³",
}
"""Descriptions of the measures, keyed by name."""


def at_scale(image: Pixels) -> Pixels:
    """Return an image, (H, W, 3) uint8 RGB, with its shorter side reduced to `SIDE`. Smaller images aren't enlarged.

    If the result would have more than `MOST_PIXELS` pixels, it is reduced further.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    size = width, height
    if short > SIDE:
        size = max(SIDE, round(width * SIDE / short)), max(SIDE, round(height * SIDE / short))
    if size[0] * size[1] > MOST_PIXELS:
        factor = math.sqrt(MOST_PIXELS / (width * height))
        size = max(1, int(width * factor)), max(1, int(height * factor))
    if size == (width, height):
        return image
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def measure(image: Pixels) -> dict[str, float]:
    """Return the `MEASURES` of an image, (H, W, 3) uint8 RGB, scaled by `at_scale`."""
    gray = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
    counts = np.bincount(gray.ravel(), minlength=256).tolist()
    levels = list(range(256))
    shrunk = (image // (256 // _LEVELS)).astype(np.int32)
    colors = np.bincount(((shrunk[..., 0] * _LEVELS + shrunk[..., 1]) * _LEVELS + shrunk[..., 2]).ravel())
    laplacian = cv2.Laplacian(gray, cv2.CV_16S, ksize=1).astype(np.int64)
    return {
        "sharpness": _variance(laplacian.size, int(laplacian.sum()), int((laplacian * laplacian).sum())),
        "contrast": math.sqrt(
            _variance(
                gray.size,
                sum(level * count for level, count in zip(levels, counts, strict=True)),
                sum(level * level * count for level, count in zip(levels, counts, strict=True)),
            )
        ),
        "entropy": sum(count / gray.size * math.log2(gray.size / count) for count in counts if count),
        "dark": sum(counts[: _DARK + 1]) / gray.size,
        "bright": sum(counts[_BRIGHT:]) / gray.size,
        "flat": _flat(gray),
        "colors": float(np.count_nonzero(colors)),
    }


def _variance(number: int, total: int, squares: int) -> float:
    """Return the variance of `number` integers, given their sum and the sum of their squares."""
    return (number * squares - total * total) / (number * number)


def _flat(gray: Pixels) -> float:
    same = (gray[:-1, :-1] == gray[:-1, 1:]) & (gray[:-1, :-1] == gray[1:, :-1])
    share: float = np.count_nonzero(same) / max(1, same.size)
    return share
