"""The pixels that masks are made from: a photograph's own, or those that a build releases."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segmint.operators.images import decode_jpeg
from segmint.operators.prepare.release import encode_original, largest_size, release, resized
from segmint.pipeline.masks.options import MasksOptions

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Frame:
    """What masks are made from, both (H, W, 3) uint8 RGB.

    `image` is the frame of all coordinates and limits; crops are cut from `original`, if there is one.
    """

    image: Pixels
    original: Pixels | None = None


def frame_of(image: Pixels, options: MasksOptions) -> Frame:
    """Return what masks of an upright photograph, (H, W, 3) uint8 RGB, are made from.

    Of a photograph larger than `release.short_side`, automatic masks of profile sa1b take what a build without
    redactions takes: the pixels of the released JPEG and, where the crops need more of them, of the original's. Raises
    `RejectedError` (`too_large`) for a side that a JPEG cannot have.
    """
    crops, settings = options.masks.original_crops, options.release
    height, width = image.shape[:2]
    if not options.in_released_frame or min(width, height) <= settings.short_side:
        return Frame(image)
    finest = resized(image, largest_size(width, height, settings.short_side, crops))
    released = release(finest, settings)
    is_larger = (finest.shape[1], finest.shape[0]) != (released.width, released.height)
    return Frame(decode_jpeg(released.jpeg), decode_jpeg(encode_original(finest)) if is_larger else None)
