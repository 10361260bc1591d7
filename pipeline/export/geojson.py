"""Export to GeoJSON: polygons with holes, one file per image, for QuPath, shapely, GDAL, and compatible tools."""

from typing import Any

import cv2
import numpy as np

from segmint.catalogs.dataset.reader import MaskAnnotation, Sample
from segmint.catalogs.layout import image_stem
from segmint.pipeline.export.categories import Categories
from segmint.pipeline.export.index import IndexedWriter, json_line


class GeoJsonWriter(IndexedWriter):
    """Writer of one feature collection per image, and a list of all images."""

    def add(self, sample: Sample) -> dict[str, bytes]:
        """Add an image. Return the file of its masks by relative path."""
        name = f"masks/{image_stem(sample.id)}.geojson"
        collection = {
            "type": "FeatureCollection",
            "image": self.describe_image(sample, geojson=name),
            "features": [feature_of(mask, self.categories) for mask in sample.masks],
        }
        return {name: json_line(collection)}


def feature_of(mask: MaskAnnotation, categories: Categories) -> dict[str, Any]:
    """Convert a mask to a feature. Its polygons follow the edges of the pixels, with x to the right and y down.

    A mask with a single part becomes a `Polygon`. A mask with several parts becomes a `MultiPolygon`. An empty mask has
    no geometry.
    """
    polygons = [[[*ring, ring[0]] for ring in rings] for rings in edge_polygons(mask.mask)]
    geometry: dict[str, Any] | None = {"type": "MultiPolygon", "coordinates": polygons}
    if len(polygons) == 1:
        geometry = {"type": "Polygon", "coordinates": polygons[0]}
    return {
        "type": "Feature",
        "geometry": geometry if polygons else None,
        "properties": {
            "objectType": "annotation",
            "classification": {"name": categories.name_of(mask)},
            "id": mask.id,
            "area": mask.area,
            "predicted_iou": mask.predicted_iou,
            "stability_score": mask.stability_score,
            **categories.facts_of(mask),
        },
    }


Mask = np.ndarray[Any, Any]
Ring = list[tuple[int, int]]
"""Corners of a ring. x and y lie between pixels: pixel (0, 0) extends from corner (0, 0) to (1, 1)."""

_RIGHT, _DOWN, _LEFT, _UP = range(4)
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
_INSIDE = ((0, 0), (0, -1), (-1, -1), (-1, 0))
"""Pixel (row, column) on the right-hand side when leaving a corner in each direction, relative to the corner."""


def edge_polygons(mask: Mask) -> list[list[Ring]]:
    """Trace the parts of a mask (height, width) bool. Each part is its outer ring followed by its holes, not closed.

    Parts are 4-connected. The rings are valid in GeoJSON: outer rings turn from x to y, holes turn the other way, and
    no ring touches itself. A hole may touch another ring in a corner.
    """
    left, top, window = window_of(mask)
    if not window.size:
        return []
    count, labels = cv2.connectedComponents(window.view(np.uint8), connectivity=4)
    polygons: list[list[Ring]] = [[] for _ in range(count - 1)]
    for ring in _rings(window):
        (x, y), (next_x, next_y) = ring[:2]
        step = (int(np.sign(next_x - x)), int(np.sign(next_y - y)))
        down, across = _INSIDE[_STEPS.index(step)]
        part = polygons[labels[y + down, x + across] - 1]
        moved = [(x + left, y + top) for x, y in ring]
        if _area(ring) > 0:
            part.insert(0, moved)
        else:
            part.append(moved)
    return polygons


def window_of(mask: Mask) -> tuple[int, int, Mask]:
    """Return the left column and top row of a mask's pixels, and the part that contains them, without pixels if empty.

    The mask is (height, width) bool.
    """
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return 0, 0, mask[:0]
    left, top = int(columns[0]), int(rows[0])
    return left, top, np.ascontiguousarray(mask[top : rows[-1] + 1, left : columns[-1] + 1])


def _rings(mask: Mask) -> list[Ring]:
    """Trace the edges from corner to corner, with the mask on the right-hand side. Turn right where two parts touch."""
    padded = np.pad(mask, 1).astype(np.uint8)
    # Mark each corner's outgoing edges that have the mask on their right-hand side.
    corners = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    top_left, top_right, low_left, low_right = (corner.astype(bool) for corner in corners)
    leaving = np.stack(
        [low_right & ~top_right, low_left & ~low_right, top_left & ~low_left, top_right & ~top_left], axis=-1
    )
    diagonal = (top_left == low_right) & (top_right == low_left) & (top_left != top_right)
    turning = (sum(corner.astype(np.int64) for corner in corners) % 2 == 1) | diagonal
    ys, xs = np.nonzero(turning)
    by_column = np.lexsort((ys, xs))
    place_in_column = np.empty_like(by_column)
    place_in_column[by_column] = np.arange(len(by_column))
    ways = leaving[ys, xs]
    straight_on = place_in_column.tolist()
    columns = by_column.tolist()
    crossing = diagonal[ys, xs].tolist()
    first_way = ways.argmax(axis=1).tolist()
    points = list(zip(xs.tolist(), ys.tolist(), strict=True))

    def follow(corner: int, way: int) -> int:
        if way in (_RIGHT, _LEFT):
            return corner + (1 if way == _RIGHT else -1)
        return int(columns[straight_on[corner] + (1 if way == _DOWN else -1)])

    rings: list[Ring] = []
    waiting = {(corner, int(way)): None for corner, way in np.argwhere(ways).tolist()}
    for start in list(waiting):
        if start not in waiting:
            continue
        corner, way = start
        path: list[int] = []
        seen: dict[int, int] = {}
        while True:
            if corner in seen:  # the ring touches itself here, so split off the path in between as a separate ring
                first = seen[corner]
                rings.append([points[place] for place in path[first:]])
                for place in path[first:]:
                    del seen[place]
                del path[first:]
            if (corner, way) not in waiting:
                break
            del waiting[corner, way]
            seen[corner] = len(path)
            path.append(corner)
            corner = follow(corner, way)
            way = (way + 1) % 4 if crossing[corner] else first_way[corner]
    return rings


def _area(ring: Ring) -> int:
    """Return twice the area of a ring. The result is positive if the ring turns from x to y."""
    points = np.array(ring, np.int64)
    after = np.roll(points, -1, axis=0)
    return int((points[:, 0] * after[:, 1] - after[:, 0] * points[:, 1]).sum())
