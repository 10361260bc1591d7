"""A picture made by arithmetic, for which results were recorded."""

import numpy as np


def stripes(height: int = 768, width: int = 1024) -> np.ndarray:
    """Stripes in red and green, diagonals in blue: (height, width, 3) uint8."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [(x // 8) % 256, (y // 4) % 256, ((x + y) // 16 * 37) % 256]
    return np.stack(channels, axis=-1).astype(np.uint8)
