"""scikit-image's photographs, on a GPU machine without it from what `benchmarks/gpu/bundle.py` packed."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

PACKED = Path(__file__).resolve().parents[2] / "bundle" / "photos"


def photograph(name: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """One of the photographs, (H, W, 3) uint8 RGB, shrunk to `size` (width, height) where given."""
    image = Image.fromarray(_pixels(name)).convert("RGB")
    return np.asarray(image if size is None else image.resize(size, Image.Resampling.LANCZOS))


def motorcycle() -> tuple[np.ndarray, np.ndarray]:
    """A photograph whose crops have masks of their own: as released, (290, 420, 3), and its original, (500, 741, 3).

    It is scaled down by other factors along x and y, so that a mix-up of axes or frames shows. Tests that share it,
    with `embedded_once`, encode it and its crops once.
    """
    from skimage import data

    original = np.ascontiguousarray(data.stereo_motorcycle()[0])
    return cv2.resize(original, (420, 290), interpolation=cv2.INTER_AREA), original


def _pixels(name: str) -> np.ndarray:
    try:
        from skimage import data
    except ImportError:
        return np.asarray(Image.open(PACKED / f"{name}.png"))
    return np.asarray(getattr(data, name)())
