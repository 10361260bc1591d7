"""Square crops around masks, as CLIP sees them."""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from segmint.model.automatic.rle import Rle, decode
from segmint.operators.images import Pixels
from segmint.operators.rows import Row

MARGIN = 1.5
"""Ratio of a crop's side to the longer side of its mask's box. The SAM paper trains with 1 to 2 (appendix D.5)."""

_LARGEST = 4096
"""Side in pixels above which a crop is reduced before its border is added.

In panoramas, an unreduced crop would take gigabytes.
"""

_MEAN = (123, 117, 104)  # CLIP's mean color, which is zero after its normalization


def crop_mask(image: Pixels, mask: Row, side: int) -> tuple[Pixels, NDArray[np.bool_]]:
    """Return a crop (side, side, 3) uint8 RGB around a mask, and the mask's pixels in the crop (side, side) bool.

    The crop is a square around the center of the mask's box. Its side is `MARGIN` times the box's longer side. Outside
    the image (H, W, 3), the crop has CLIP's mean color. A pixel of the crop belongs to the mask if it covers any of the
    mask's pixels. For an empty mask, no pixel does.
    """
    pixels = decode(Rle((image.shape[0], image.shape[1]), mask["segmentation"]["counts"]))
    x, y, box_width, box_height = mask["bbox"]
    length = max(1, math.ceil(MARGIN * (max(box_width, box_height) + 1)))
    left, top = (round(start + (span + 1 - length) / 2) for start, span in ((x, box_width), (y, box_height)))
    inside = np.s_[max(top, 0) : max(top + length, 0), max(left, 0) : max(left + length, 0)]
    part, own = image[inside], pixels[inside].astype(np.float32)
    before = max(-top, 0), max(-left, 0)
    factor = math.ceil(length / _LARGEST)
    if factor > 1:
        size = math.ceil(part.shape[1] / factor), math.ceil(part.shape[0] / factor)
        part = np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA), np.uint8)
        own = np.asarray(cv2.resize(own, size, interpolation=cv2.INTER_AREA), np.float32)
        before, length = (before[0] // factor, before[1] // factor), math.ceil(length / factor)
    after = (length - part.shape[0] - before[0], length - part.shape[1] - before[1])
    around = (before[0], after[0], before[1], after[1])
    square = cv2.copyMakeBorder(part, *around, cv2.BORDER_CONSTANT, value=_MEAN)
    owned = cv2.copyMakeBorder(own, *around, cv2.BORDER_CONSTANT, value=0)
    method = cv2.INTER_AREA if length >= side else cv2.INTER_CUBIC
    crop = cv2.resize(square, (side, side), interpolation=method)
    shown = cv2.resize(owned, (side, side), interpolation=cv2.INTER_AREA if length >= side else cv2.INTER_NEAREST)
    return np.asarray(crop, np.uint8), np.asarray(shown > 0)
