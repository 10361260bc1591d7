"""Export to YOLO segmentation labels: one text file per image, one polygon per mask, with bridges to holes and parts.

A polygon is one closed path through the centers of a mask's border pixels. Ultralytics rasterizes labels with
`cv2.fillPoly`, which fills a path by the even-odd rule and paints the pixels on the path. The path crosses each bridge
once in each direction, so a bridge only adds its own pixels to the mask. A bridge to a hole runs inside the mask and
therefore adds no pixels.
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from segmint.catalogs.attributions import write_attributions_csv
from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.reader import MaskAnnotation, Sample
from segmint.catalogs.dataset.versions.record import VersionName
from segmint.catalogs.layout import image_name, image_stem
from segmint.infra.wording import counted, yaml_text
from segmint.pipeline.export.categories import Categories
from segmint.pipeline.export.geojson import window_of
from segmint.pipeline.export.provenance import describe_dataset

LEAST_IOU = 0.99
"""Minimum IoU of a mask and its rasterized polygon. A mask with a lower IoU gets no label."""

LEFT_OUT = "left_out.csv"
ATTRIBUTIONS = "attributions.csv"

_CREDITED = ("id", "image_id", "attribution", "provider", "license", "source_url")

Mask = np.ndarray[Any, Any]

Points = np.ndarray[Any, Any]

MOST_PARTS = 200
"""Maximum number of parts to join per mask, largest first. The number is limited because joining computes the distance
between every pair of parts."""

_OUTER = -1


class YoloWriter:
    """Writer of one label file per image, a list of masks without a suitable polygon, and image attributions."""

    def __init__(
        self, scratch: Path, manifest: DatasetManifest, version: VersionName, categories: Categories | None = None
    ) -> None:
        self._scratch = scratch
        self._categories = categories or Categories()
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


def label_line(path: Points, size: tuple[int, int], number: int = 0) -> str:
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


def paint(path: Points, shape: tuple[int, int]) -> Mask:
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
