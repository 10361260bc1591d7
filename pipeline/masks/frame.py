"""Pixels from which masks are made: the photograph's own, or those that a build would release."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segmint.operators.images import decode_jpeg
from segmint.operators.prepare.release import encode_original, largest_size, release, resized
from segmint.pipeline.masks.options import MasksOptions

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Frame:
    """Input of mask generation: pixels as (H, W, 3) uint8 RGB.

    All coordinates and limits refer to the frame of `image`. If `original` is set, crops are cut from it.
    """

    image: Pixels
    original: Pixels | None = None


def frame_of(image: Pixels, options: MasksOptions) -> Frame:
    """Return the input pixels for the masks of `image`, an upright photograph as (H, W, 3) uint8 RGB.

    If a photograph's short side exceeds `release.short_side`, automatic masks of the sa1b profile use the same input as
    a build without redactions. This input is the pixels of the released JPEG and, if the crops need a higher
    resolution, the pixels of the original. In all other cases, the input is the photograph itself. Raises
    `RejectedError` (`too_large`) if a side exceeds the JPEG limit.
    """
    crops, settings = options.masks.original_crops, options.release
    height, width = image.shape[:2]
    if not options.in_released_frame or min(width, height) <= settings.short_side:
        return Frame(image)
    finest = resized(image, largest_size(width, height, settings.short_side, crops))
    released = release(finest, settings)
    is_larger = (finest.shape[1], finest.shape[0]) != (released.width, released.height)
    return Frame(decode_jpeg(released.jpeg), decode_jpeg(encode_original(finest)) if is_larger else None)
