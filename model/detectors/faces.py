"""Faces by MTCNN (Zhang et al. 2016, arXiv 1604.02878), searched in tiles.

The cascade itself, `facenet_pytorch.MTCNN`, is passed in: this package depends on torch alone.
"""

import math
from typing import Any, Protocol

import numpy as np

from segmint.model.detectors.detection import Detection, Kind, Pixels, by_score, merge, one_by_one, search, whole_first

# MTCNN cannot take an image with a side under its smallest face.
_SMALLEST_FACE = 20
_BORDER = 32
_GRAY = 127


class Cascade(Protocol):
    """The part of `facenet_pytorch.MTCNN` that is used: built with `keep_all=True, min_face_size=20`."""

    def detect(self, img: Pixels) -> tuple[Any, Any]:
        """Boxes (N, 4) as x0, y0, x1, y1 and N probabilities; (None, [None]) where there is no face."""


class FaceDetector:
    """MTCNN on tiles: finds faces from 20 px in photographs of any size, in bounded memory.

    The image is searched at full resolution in tiles, and once more shrunk into a single tile, where a face
    larger than the tiles' overlap is whole. An image no larger than a tile is searched once. Above
    `max_pixels` the image is shrunk first, because time grows with pixels.
    """

    kind: Kind = "face"

    def __init__(
        self,
        cascade: Cascade,
        score: float = 0.7,
        name: str = "mtcnn",
        tile_side: int = 1536,
        tile_overlap: int = 192,
        max_pixels: int = 32_000_000,
    ) -> None:
        self.name = name
        self._cascade = cascade
        self.score = score
        self._tile_side = tile_side
        self._tile_overlap = tile_overlap
        self._max_pixels = max_pixels

    def detect(self, image: Pixels) -> list[Detection]:
        """Faces in `image`, (H, W, 3) uint8 RGB, as boxes in its pixels, best score first."""
        height, width = image.shape[:2]
        scale = min(1.0, math.sqrt(self._max_pixels / (height * width)))
        found = search(image, one_by_one(self._find), scale, self._tile_side, self._tile_overlap)
        if max(height, width) * scale > self._tile_side:
            whole = self._tile_side / max(height, width)
            found += search(image, one_by_one(self._find), whole, self._tile_side, self._tile_overlap)
        return by_score(merge(whole_first(found)))

    def _find(self, window: Pixels) -> list[Detection]:
        border = 0 if min(window.shape[:2]) >= _SMALLEST_FACE else _BORDER
        if border:
            window = np.pad(window, ((border, border), (border, border), (0, 0)), constant_values=_GRAY)
        boxes, scores = self._cascade.detect(np.ascontiguousarray(window))
        if boxes is None:
            return []
        # Both arrive with dtype object under numpy 2.
        places = (np.asarray(boxes, np.float64) - border).tolist()
        return [
            Detection("face", round(score, 4), (x0, y0, x1, y1), None, self.name)
            for (x0, y0, x1, y1), score in zip(places, np.asarray(scores, np.float64).tolist(), strict=True)
            if score >= self.score
        ]
