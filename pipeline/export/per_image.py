"""Exports with files per image: YOLO, GeoJSON, SA-1B's pairs, and masks as pixels.

Export to YOLO segmentation labels: one text file per image, one polygon per mask, with bridges to holes and parts.

A polygon is one closed path through the centers of a mask's border pixels. Ultralytics rasterizes labels with
`cv2.fillPoly`, which fills a path by the even-odd rule and paints the pixels on the path. The path crosses each bridge
once in each direction, so a bridge only adds its own pixels to the mask. A bridge to a hole runs inside the mask and
therefore adds no pixels.

Export of masks as PNG files: a label map per image, in which smaller masks cover larger ones, or a file per mask.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.reader import MaskAnnotation, Sample
from segmint.catalogs.dataset.versions import VersionName
from segmint.catalogs.layout import image_name, image_stem
from segmint.catalogs.licenses import write_attributions_csv
from segmint.infra.arrays import Size
from segmint.infra.wording import counted, yaml_text
from segmint.operators.annotations.label_maps import paint_label_map
from segmint.operators.rows import MASKS_PER_IMAGE_LIMIT
from segmint.operators.shards.put import annotations_json
from segmint.pipeline.export.categories import Categories, credits_of, describe_dataset
from segmint.pipeline.export.coco import JsonItems

INDEX = "index.json"


class IndexedWriter:
    """Writer that collects a description of the dataset and of each image in the folder `scratch`.

    Its subclasses have a method `add` for a sample, which calls `describe_image`, and returns the files of the image.
    """

    def __init__(self, scratch: Path, manifest: DatasetManifest, version: VersionName, categories: Categories) -> None:
        self.scratch = scratch
        self.categories = categories
        self._about = describe_dataset(manifest, version)
        self._images = JsonItems(scratch / "images.part")

    def describe_image(self, sample: Sample, **more: Any) -> dict[str, Any]:
        """Add an image, its number of masks, and `more` keys to the list. Return its description without them."""
        row = sample.row
        image = {"id": sample.id, "file_name": image_name(sample.id), "width": row["width"], "height": row["height"]}
        image |= credits_of(row)
        self._images.extend([{**image, "masks": len(sample.masks), **more}])
        return image

    def finish(self) -> dict[str, Path]:
        """Return the remaining files by relative path. The last file, the list, completes the export."""
        path = self.scratch / INDEX
        with path.open("w", encoding="utf-8") as file:
            file.write(f'{{"dataset": {json.dumps(self._about, ensure_ascii=False)},\n"images": ')
            self._images.copy_into(file)
            file.write("}\n")
        return {INDEX: path}


def json_line(value: Any) -> bytes:
    """Return a value as compact JSON with a line break. Raises `ValueError` for NaN and infinities."""
    return f"{json.dumps(value, separators=(',', ':'), ensure_ascii=False, allow_nan=False)}\n".encode()


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


LEAST_IOU = 0.99
"""Minimum IoU of a mask and its rasterized polygon. A mask with a lower IoU gets no label."""

LEFT_OUT = "left_out.csv"
ATTRIBUTIONS = "attributions.csv"

_CREDITED = ("id", "image_id", "attribution", "provider", "license", "source_url")


Points = np.ndarray[Any, Any]

MOST_PARTS = 200
"""Maximum number of parts to join per mask, largest first. The number is limited because joining computes the distance
between every pair of parts."""

_OUTER = -1


class YoloWriter:
    """Writer of one label file per image, a list of masks without a suitable polygon, and image attributions."""

    def __init__(self, scratch: Path, manifest: DatasetManifest, version: VersionName, categories: Categories) -> None:
        self._scratch = scratch
        self._categories = categories
        self._about = describe_dataset(manifest, version)
        self._rows = scratch / "rows.part"
        self._skipped = scratch / LEFT_OUT
        self._rows.write_text("", encoding="utf-8")
        self._skipped.write_text("image,mask,area,reason\n", encoding="utf-8")
        self._missing = 0

    def add(self, sample: Sample) -> dict[str, bytes]:
        """Add an image. Return its label file by relative path."""
        lines, missing = [], []
        for mask in sample.masks:
            path, reason = polygon_of(mask)
            if reason is None:
                lines.append(label_line(path, mask.size, self._categories.number_of(mask.label)))
            else:
                missing.append((image_name(sample.id), mask.id, mask.area, reason))
        with self._skipped.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(missing)
        with self._rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps({name: sample.row[name] for name in _CREDITED}) + "\n")
        self._missing += len(missing)
        return {f"labels/{image_stem(sample.id)}.txt": "".join(lines).encode("ascii")}

    def finish(self) -> dict[str, Path]:
        """Return the export's files by relative path. The last file completes the export."""
        credits, data = self._scratch / ATTRIBUTIONS, self._scratch / "data.yaml"
        with self._rows.open(encoding="utf-8") as rows, credits.open("w", encoding="utf-8", newline="") as file:
            write_attributions_csv(map(json.loads, rows), file)
        names = dict(enumerate(self._categories.names))
        settings = {"train": "images", "val": "images", "names": names, "segmint": self._about}
        text = yaml_text(settings)
        data.write_text(f"# YOLO requires `val`, which lists the same images: nothing is split.\n{text}", "utf-8")
        return {path.name: path for path in (self._skipped, credits, data)}

    def notes(self) -> list[str]:
        """Return notes for the user about the export."""
        if not self._missing:
            return []
        return [f"{counted(self._missing, 'mask')} without a label, because no polygon matches them: {LEFT_OUT}"]


def polygon_of(mask: MaskAnnotation) -> tuple[Points, str | None]:
    """Return the path of a mask as points (N, 2), and the reason if the path can't be a label."""
    pixels = mask.mask
    path = pixel_path(pixels)
    if len(path) < 3 or (path.max(axis=0) == path.min(axis=0)).any():
        return path, "too small or too thin for a polygon"
    painted = paint(path, mask.size)
    iou = int((painted & pixels).sum()) / int((painted | pixels).sum())
    if iou < LEAST_IOU:
        return path, f"its parts are too far apart for one polygon: IoU {iou:.3f}"
    return path, None


def label_line(path: Points, size: Size, number: int = 0) -> str:
    """Return a line of a label file: the class `number`, and the points x, y relative to the image's width and height.

    Each point is the center of its pixel. Multiplying by the image's size and truncating the product therefore recovers
    the pixel.
    """
    height, width = size
    values: list[Any] = [f"{(x + 0.5) / width:.6f} {(y + 0.5) / height:.6f}" for x, y in path.tolist()]
    return f"{number} {' '.join(values)}\n"


@dataclass
class _Ring:
    """Contour: its points (N, 2) as pixel x and y, and the rings attached to it.

    `hanging` maps the position of a bridge on this contour to the rings at its other end.
    """

    points: Points
    start: int = 0
    hanging: dict[int, list["_Ring"]] = field(default_factory=dict)

    def hang(self, place: int, ring: "_Ring", start: int) -> None:
        """Attach another ring, with a bridge from point `place` of this ring to point `start` of the other ring."""
        ring.start = start
        self.hanging.setdefault(place, []).append(ring)


def pixel_path(mask: Mask) -> Points:
    """Return the path of a mask (height, width) bool as points (N, 2), pixel x and y. For an empty mask, N is 0.

    The shortest bridges join the parts. A part with fewer pixels than its bridge is skipped. If there are more than
    `MOST_PARTS` parts, only the largest are used. Therefore, compare the path with the mask; see `paint`.
    """
    left, top, window = window_of(mask)
    if not window.size:
        return np.zeros((0, 2), np.int32)
    window = window.view(np.uint8)
    contours, tree = cv2.findContours(window, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rings = [_Ring(contour[:, 0, :].astype(np.int32)) for contour in contours]
    parents = tree[0, :, 3]
    parts = [int(index) for index in np.flatnonzero(parents == _OUTER)]
    if len(parts) > MOST_PARTS:
        parts = sorted(parts, key=lambda index: (-cv2.contourArea(contours[index]), index))[:MOST_PARTS]
    for index in parts:
        holes = [rings[hole] for hole in np.flatnonzero(parents == index)]
        _hang_holes(rings[index], holes, window)
    outer = [rings[index] for index in parts]
    root = _hang_parts(outer, window) if len(outer) > 1 else outer[0]
    path: Points = _simplified(_walk(root)) + np.array([left, top])
    return path


def paint(path: Points, shape: Size) -> Mask:
    """Return the mask (height, width) bool that Ultralytics rasterizes from a path."""
    canvas = np.zeros(shape, np.uint8)
    if len(path):
        cv2.fillPoly(canvas, [path.astype(np.int32)], (1,))
    return canvas.astype(bool)


def _hang_holes(outer: _Ring, holes: Sequence[_Ring], window: Mask) -> None:
    """Attach each hole by a row of mask pixels that runs left from the hole's leftmost border pixel to another ring.

    The other ring is the outer ring or a hole that starts farther to the left, so the bridges form a tree.
    """
    if not holes:
        return
    begins = {id(ring): int(ring.points[:, 0].min()) for ring in holes} | {id(outer): _OUTER}
    places: dict[tuple[int, int], list[tuple[_Ring, int]]] = {}
    for ring in (outer, *holes):
        seen = set()
        for place, point in enumerate(map(tuple, ring.points.tolist())):
            if point not in seen:
                seen.add(point)
                places.setdefault(point, []).append((ring, place))
    for hole in holes:
        start = int(np.lexsort((hole.points[:, 1], hole.points[:, 0]))[0])
        x, y = (int(value) for value in hole.points[start])
        gaps = np.flatnonzero(window[y, :x] == 0)
        end = int(gaps[-1]) + 1 if len(gaps) else 0
        for ring, place in places.get((end, y), ()):
            if begins[id(ring)] < begins[id(hole)]:
                ring.hang(place, hole, start)
                break


def _hang_parts(parts: list[_Ring], window: Mask) -> _Ring:
    """Join the parts with the shortest bridges, starting with the largest part. Return the largest part."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(window, connectivity=8)
    sizes = {id(part): int(stats[labels[part.points[0][1], part.points[0][0]], cv2.CC_STAT_AREA]) for part in parts}
    parts = sorted(parts, key=lambda part: -sizes[id(part)])
    root, waiting = parts[0], parts[1:]
    nearest = dict(zip(map(id, waiting), _bridges(root, waiting, labels.shape), strict=True))
    while waiting:
        part = min(waiting, key=lambda part: nearest[id(part)][0])
        waiting = [other for other in waiting if other is not part]
        length, ring, place, start = nearest[id(part)]
        if length > sizes[id(part)]:
            continue
        ring.hang(place, part, start)
        for other, bridge in zip(waiting, _bridges(part, waiting, labels.shape), strict=True):
            nearest[id(other)] = min(nearest[id(other)], bridge, key=lambda bridge: bridge[0])
    return root


def _bridges(ring: _Ring, parts: Sequence[_Ring], shape: tuple[int, ...]) -> list[tuple[int, _Ring, int, int]]:
    """Return the shortest bridge from a ring to each part: pixel count, ring, and the positions of both ends."""
    if not parts:
        return []
    away = np.ones(shape, np.uint8)
    away[ring.points[:, 1], ring.points[:, 0]] = 0
    steps = cv2.distanceTransform(away, cv2.DIST_C, 3)  # exact, because a bridge has as many pixels as its longer side
    bridges = []
    for part in parts:
        start = int(steps[part.points[:, 1], part.points[:, 0]].argmin())
        apart = np.abs(ring.points - part.points[start]).max(axis=1)
        place = int(apart.argmin())
        bridges.append((int(apart[place]) - 1, ring, place, start))
    return bridges


def _walk(root: _Ring) -> Points:
    """Return the points of a ring and of all attached rings, in the order of one closed path."""
    path: list[list[int]] = []
    # Each item contains a ring, the number of its finished points, and True if only the next point remains.
    stack: list[tuple[_Ring, int, bool]] = [(root, 0, False)]
    while stack:
        ring, done, once = stack.pop()
        count = len(ring.points)
        while done <= count:
            place = (ring.start + done) % count
            path.append(ring.points[place].tolist())
            if once:
                break
            done += 1
            if hanging := ring.hanging.pop(place, None):
                # Cross each bridge, come back to this point, and then continue.
                stack.append((ring, done - 1, False))
                for other in hanging:
                    stack += [(ring, done - 1, True), (other, 0, False)]
                break
    return np.array(path, np.int64)


def _simplified(path: Points) -> Points:
    """Remove repeated points, and points inside a straight run of adjacent pixels."""
    path = path[np.r_[True, (path[1:] != path[:-1]).any(axis=1)]]
    if len(path) > 1 and (path[0] == path[-1]).all():
        path = path[:-1]
    if len(path) < 3:
        return path
    after = np.roll(path, -1, axis=0) - path
    before = np.roll(after, 1, axis=0)
    straight = (after == before).all(axis=1) & (np.abs(after).max(axis=1) == 1)
    simple: Points = path[~straight]
    return simple


FILE_LIST = "file_list.txt"
"""File with the names of images that have masks, without endings. SAM 2's samplers fail for images without masks."""


class Sa1bWriter(IndexedWriter):
    """Writer of one JSON file per image, with the same content as in the dataset's tar, and of the list of images."""

    def add(self, sample: Sample) -> dict[str, bytes]:
        """Add an image. Return its JSON file by relative path."""
        name = f"images/{image_stem(sample.id)}.json"
        self.describe_image(sample, json=name)
        if any(mask.area for mask in sample.masks):
            with (self.scratch / FILE_LIST).open("a", encoding="ascii") as file:
                file.write(f"{image_stem(sample.id)}\n")
        size = sample.row["height"], sample.row["width"]
        rows = [
            {**vars(mask), "segmentation": mask.rle, "index": mask.id % MASKS_PER_IMAGE_LIMIT} for mask in sample.masks
        ]
        return {name: annotations_json(sample.id, image_name(sample.id), size, rows)}

    def finish(self) -> dict[str, Path]:
        """Return the export's files by relative path. The last file completes the export."""
        names = self.scratch / FILE_LIST
        names.touch()  # no image may have masks
        return {FILE_LIST: names, **super().finish()}


MOST_FILES = 1_000_000
"""Maximum number of masks that are exported as a file each, unless the user chose the images."""


class LabelMapsWriter(IndexedWriter):
    """Writer of one label map per image, with 16 bits per pixel, and a JSON file that describes its masks.

    The number i + 1 is where mask i is visible. An image has at most 10,000 masks, so 16 bits suffice.
    """

    def add(self, sample: Sample) -> dict[str, bytes]:
        """Add an image. Return its files by relative path."""
        name = f"masks/{image_stem(sample.id)}"
        labels = paint_label_map([mask.rle for mask in sample.masks], (sample.row["height"], sample.row["width"]))
        visible = np.bincount(labels.reshape(-1), minlength=len(sample.masks) + 1)
        masks = []
        for number, mask in enumerate(sample.masks, 1):
            share = round(int(visible[number]) / max(1, mask.area), 6)
            masks.append({"value": number, **_description(mask, self.categories), "visible": share})
        image = self.describe_image(sample, json=f"{name}.json")
        # `segmint import` recognizes the file by its first key.
        document = {"label_map": f"{name}.png", "image": image, "masks": masks}
        return {f"{name}.png": encode_png(labels), f"{name}.json": json_line(document)}


class PngMasksWriter(IndexedWriter):
    """Writer of one PNG file per mask, with one bit per pixel, and a JSON file per image that describes its masks."""

    def add(self, sample: Sample) -> dict[str, bytes]:
        """Add an image. Return its files by relative path."""
        name = f"masks/{image_stem(sample.id)}"
        files: dict[str, bytes] = {}
        masks = []
        for mask in sample.masks:
            path = f"{name}/{mask.id}.png"
            files[path] = png_of_mask(mask)
            masks.append({**_description(mask, self.categories), "png": path})
        document = {"image": self.describe_image(sample, json=f"{name}.json"), "masks": masks}
        return {**files, f"{name}.json": json_line(document)}


def _description(mask: MaskAnnotation, categories: Categories) -> dict[str, Any]:
    return {"id": mask.id, "category": categories.name_of(mask), "area": mask.area, **categories.facts_of(mask)}


def png_of_mask(mask: MaskAnnotation) -> bytes:
    """Encode a mask as a PNG with one bit per pixel. Its pixels aren't kept in memory."""
    return encode_png(coco.decode(mask.rle).astype(bool))


def encode_png(pixels: NDArray[Any]) -> bytes:
    """Encode pixels (height, width) bool, uint8, or uint16 as a PNG."""
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()
