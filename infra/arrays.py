"""Types of NumPy arrays, by their values, and of images, their sizes, and boxes in them."""

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]

Pixels = Bytes
"""Image, (H, W, 3) in RGB unless stated otherwise."""

Size = tuple[int, int]
"""(height, width) in pixels."""

Box = tuple[float, float, float, float]
"""Four coordinates of a box in pixels, in the order that its user states."""

PixelBox = tuple[int, int, int, int]
"""`Box` in whole pixels."""
