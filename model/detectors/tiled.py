"""A detector on the whole image and on overlapping tiles at two scales, so that small objects are seen."""

import math
from dataclasses import replace

from segmint.model.detectors.detection import (
    Detection,
    Detector,
    Kind,
    Pixels,
    by_score,
    merge,
    one_by_one,
    search,
    search_tiles,
    tiles,
    whole_first,
)


class TiledDetector:
    """Another detector on an image as a whole, and on tiles of it at its own size and at twice that.

    A tile is cut from the image before it is enlarged, so that memory grows with the tile alone. For the search as a
    whole, an image of more than `max_pixels` is shrunk to that. Boxes are merged in the image's frame.
    """

    def __init__(
        self,
        detector: Detector,
        name: str,
        tile_side: int = 768,
        tile_overlap: int = 192,
        scales: tuple[float, ...] = (1.0, 2.0),
        max_pixels: int = 32_000_000,
    ) -> None:
        """`name` is the source of what it finds; side and overlap are in pixels of the tile as it is searched."""
        self.name = name
        self.kind: Kind = detector.kind
        self.score = detector.score
        self._detector = detector
        self._tile_side = tile_side
        self._tile_overlap = tile_overlap
        self._scales = scales
        self._max_pixels = max_pixels

    def detect(self, image: Pixels) -> list[Detection]:
        """Find objects in `image`, (H, W, 3) uint8 RGB; boxes in its pixels, best score first. Raises as `detector`."""
        height, width = image.shape[:2]
        fit = min(1.0, math.sqrt(self._max_pixels / (height * width)))
        find = one_by_one(self._detector.detect)
        found = search(image, find, fit, side=max(height, width), overlap=0)
        for scale in self._scales:
            side = round(self._tile_side / scale)
            if fit == scale == 1 and max(height, width) <= side:
                continue  # the whole image was this tile
            found += search_tiles(image, find, scale, tiles(height, width, side, round(self._tile_overlap / scale)))
        return [replace(each, source=self.name) for each in by_score(merge(whole_first(found)))]
