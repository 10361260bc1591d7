"""Decoder for segmint's own JPEGs. `operators/prepare/ingest.py` and `operators/decoding.py` decode others."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
"""An image in memory: (H, W, 3) uint8 RGB, upright."""


def decode_jpeg(data: bytes) -> Pixels:
    """Decode a JPEG that segmint encoded to (H, W, 3) uint8 RGB.

    This uses Pillow because it is the most common library, so anyone can recompute the masks from the released file.
    """
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        # Converting an image that is already RGB copies it, which takes as long as decoding it.
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
