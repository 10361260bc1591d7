"""scikit-image's photographs, on a GPU machine without it from what `benchmarks/gpu/bundle.py` packed."""

from pathlib import Path

import numpy as np
from PIL import Image

PACKED = Path(__file__).resolve().parents[2] / "bundle" / "photos"


def photograph(name: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """One of the photographs, (H, W, 3) uint8 RGB, shrunk to `size` (width, height) where given."""
    image = Image.fromarray(_pixels(name)).convert("RGB")
    return np.asarray(image if size is None else image.resize(size, Image.Resampling.LANCZOS))


def _pixels(name: str) -> np.ndarray:
    try:
        from skimage import data
    except ImportError:
        return np.asarray(Image.open(PACKED / f"{name}.png"))
    return np.asarray(getattr(data, name)())
