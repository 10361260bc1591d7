"""Decodes the JPEGs that segmint itself encoded. Only `segmint.operators.prepare.ingest` decodes foreign bytes."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
"""An image in memory: (H, W, 3) uint8 RGB, upright."""


def decode_jpeg(data: bytes) -> Pixels:
    """Pixels of one of our own JPEGs: (H, W, 3) uint8 RGB.

    Pillow decodes, so that anyone can recompute the masks from the released file with the most common tool.
    """
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        return np.asarray(image.convert("RGB"))
