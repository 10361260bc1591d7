"""Detection type, and tiled search of large images to find small objects.

From top to bottom: detections and boxes, the search in tiles, and ONNX detectors, whose network has YuNet's outputs or
one tensor of boxes and scores.

YuNet: Wu et al. 2023, doi 10.1007/s11633-023-1423-y. The outputs match `face_detection_yunet_2023mar.onnx` in
https://github.com/opencv/opencv_zoo.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import cv2
import numpy as np
from numpy.typing import NDArray

from segmint.infra.arrays import Box, Pixels, Size

Kind = Literal["face", "plate", "object"]
Point = tuple[float, float]
Quad = tuple[Point, Point, Point, Point]

_SAME_OVERLAP = 0.6

STRIDES = (8, 16, 32)

YUNET_OUTPUTS = tuple(f"{part}_{stride}" for part in ("cls", "obj", "bbox", "kps") for stride in STRIDES)
"""Names of YuNet's outputs, in the order in which `OnnxNetwork.run` returns them."""

_COLUMNS = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}

_YUNET_SCORE, _LISTED_SCORE = 0.6, 0.5

_LARGEST_TILE = 1536

_LAST_LEVEL = 320
"""Once the longer side of the shrunken image is at most this many pixels, the search ends. YuNet finds faces of about
10 to 300 pixels."""

_MOST_BOXES = 5_000
"""Maximum number of boxes in one tile. A network that reports more is broken."""


@dataclass(frozen=True)
class Detection:
    """Detected face, plate, or object.

    `box` is (x0, y0, x1, y1). `quad` contains the four corners of a plate, and is None for faces and objects. Both are
    in float pixels of the image that was searched, and may extend beyond its border. `score` is in [0, 1]. `source` is
    the detector's name. `orientation` is the counterclockwise angle in degrees by which the image was rotated during
    the search.
    """

    kind: Kind
    score: float
    box: Box
    quad: Quad | None
    source: str
    orientation: int = 0

    def mapped(self, scale_x: float, scale_y: float, dx: float = 0.0, dy: float = 0.0) -> "Detection":
        """Transform the detection to a frame in which (x, y) becomes (x · scale_x + dx, y · scale_y + dy)."""

        def moved(point: Point) -> Point:
            return point[0] * scale_x + dx, point[1] * scale_y + dy

        x0, y0, x1, y1 = self.box
        return replace(self, box=(*moved((x0, y0)), *moved((x1, y1))), quad=_moved(self.quad, moved))


class Detector(Protocol):
    """Detector of one kind of object in photographs."""

    @property
    def name(self) -> str:
        """Name of the detector, which is the `source` of its detections."""

    @property
    def kind(self) -> Kind:
        """Kind of object that the detector finds."""

    @property
    def score(self) -> float:
        """Minimum score of the detector's results."""

    def detect(self, image: Pixels) -> list[Detection]:
        """Search `image`, (H, W, 3) uint8 RGB. Detections are in pixels of the image, best score first."""


@runtime_checkable
class CandidateDetector(Detector, Protocol):
    """Detector that can also search small views of its candidates, as the bundled detectors do."""

    def look(self, window: Pixels) -> list[Detection]:
        """Search a view, (H, W, 3) uint8 RGB, as made by `second_look`. Detections are in pixels of the view."""


def lenient(detector: Detector, score: float) -> Detector:
    """Copy a detector, and lower its minimum score to at most `score`. The copy shares the detector's networks."""
    other: Any = copy.copy(detector)
    other.score = min(score, detector.score)
    return other  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Tile:
    """Window of an image, in whole pixels."""

    x: int
    y: int
    width: int
    height: int


def _spans(length: int, side: int, overlap: int) -> list[tuple[int, int]]:
    if length <= side:
        return [(0, length)]
    count = math.ceil((length - overlap) / (side - overlap))
    span = math.ceil((length + (count - 1) * overlap) / count)
    last = length - span
    return [(round(last * i / (count - 1)), span) for i in range(count)]


def tiles(height: int, width: int, side: int, overlap: int) -> list[Tile]:
    """Cover an image with windows of at most `side` pixels per side, and return them row by row.

    Neighboring windows overlap by at least `overlap` pixels, so anything smaller is entirely inside one of them. All
    windows have the same size, and they aren't larger than needed. Raises ValueError unless 0 <= overlap < side.
    """
    if not 0 <= overlap < side:
        raise ValueError(f"the overlap is {overlap} px for tiles of {side} px: expected 0 <= overlap < side")
    columns = _spans(width, side, overlap)
    return [Tile(x, y, w, h) for y, h in _spans(height, side, overlap) for x, w in columns]


def bounds(points: Iterable[Point]) -> Box:
    """Return the axis-aligned bounding box of points (x, y)."""
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def turned_back(found: Detection, angle: int, size: tuple[int, int]) -> Detection:
    """Map a detection in an image that was turned counterclockwise by `angle` back to the unturned image.

    `size` is the unturned image's (width, height). The corners of a plate keep their order. Coordinates refer to
    pixels' edges, so the mapping is exact.
    """
    width, height = size

    def back(point: Point) -> Point:
        x, y = point
        return {0: (x, y), 90: (width - y, x), 180: (width - x, height - y), 270: (y, height - x)}[angle]

    x0, y0, x1, y1 = found.box
    box = bounds((back((x0, y0)), back((x1, y1))))
    return replace(found, box=box, quad=_moved(found.quad, back), orientation=angle)


def _moved(quad: Quad | None, move: Callable[[Point], Point]) -> Quad | None:
    """Move each of the corners, if there are any."""
    if quad is None:
        return None
    a, b, c, d = map(move, quad)
    return a, b, c, d


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def _shared(first: Box, second: Box) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0.0) * max(height, 0.0)


def iou(first: Box, second: Box) -> float:
    """Return the IoU of two boxes. Disjoint boxes have an IoU of 0."""
    shared = _shared(first, second)
    return shared / (_area(first) + _area(second) - shared) if shared else 0.0


def overlap_of_smaller(first: Box, second: Box) -> float:
    """Return the intersection of two boxes as a fraction of the smaller box's area, or 0 for disjoint boxes."""
    shared = _shared(first, second)
    return shared / min(_area(first), _area(second)) if shared else 0.0


def merge(ranked: Iterable[Detection]) -> list[Detection]:
    """Drop each detection that overlaps a higher-ranked one by more than `_SAME_OVERLAP` of the smaller box.

    The smaller box is the reference because a tile can cut off a face. The box of the visible part is then inside the
    box of the whole face.
    """
    kept: list[Detection] = []
    for candidate in ranked:
        if all(overlap_of_smaller(candidate.box, other.box) <= _SAME_OVERLAP for other in kept):
            kept.append(candidate)
    return kept


def by_score(detections: Iterable[Detection]) -> list[Detection]:
    """Sort detections by score, best first.

    Ties are sorted by position, so the order doesn't depend on how the image was searched.
    """
    return sorted(detections, key=lambda d: (-d.score, d.box))


def resized(image: Pixels, scale: float) -> Pixels:
    """Resize the image by `scale`, to at least one pixel per side. If the image shrinks, average over areas."""
    height, width = scaled_size(image.shape[0], image.shape[1], scale)
    if (height, width) == image.shape[:2]:
        return image
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), np.uint8)


def scaled_size(height: int, width: int, scale: float) -> Size:
    """Multiply the height and width by `scale`, and round to whole pixels."""
    return max(round(height * scale), 1), max(round(width * scale), 1)


Find = Callable[[Pixels], Sequence[Detection]]
FindAll = Callable[[Iterable[Pixels]], Iterable[Sequence[Detection]]]
"""`Find` for several windows of one image, which yields the detections in each window, in order."""


def is_cut(box: Box, window: tuple[int, int], tile: Tile, shape: Size) -> bool:
    """Return whether a tile cuts off a box: the box touches a side of the tile that isn't a side of the image.

    `window` (h, w) is the size of the tile as it was searched, and the box is in its pixels. `shape` (h, w) is the
    image's size.
    """
    x0, y0, x1, y1 = box
    return (
        (x0 <= 0 < tile.x)
        or (y0 <= 0 < tile.y)
        or (x1 >= window[1] and tile.x + tile.width < shape[1])
        or (y1 >= window[0] and tile.y + tile.height < shape[0])
    )


def search(image: Pixels, scaled: Pixels, find: FindAll, side: int, overlap: int) -> list[tuple[bool, Detection]]:
    """Run `find` on every tile of `scaled`, a copy of the image at any size.

    Returns pairs (cut, detection) in pixels of the image. If `cut` is True, the box touches a side of its tile inside
    the image, and the next tile shows the object better.
    """
    height, width = scaled.shape[:2]
    back_x, back_y = image.shape[1] / width, image.shape[0] / height
    places = tiles(height, width, side, overlap)
    windows = (scaled[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width] for tile in places)
    found = []
    for tile, detections in zip(places, find(windows), strict=True):
        for detection in detections:
            cut = is_cut(detection.box, (tile.height, tile.width), tile, (height, width))
            found.append((cut, detection.mapped(back_x, back_y, tile.x * back_x, tile.y * back_y)))
    return found


def search_tiles(
    image: Pixels, find: FindAll, scale: float, places: Sequence[Tile]
) -> Iterator[tuple[bool, Detection]]:
    """Cut tiles from the image, resize each by `scale`, and run `find` on them. Yields the same pairs as `search`."""
    windows = (resized(image[at.y : at.y + at.height, at.x : at.x + at.width], scale) for at in places)
    for tile, detections in zip(places, find(windows), strict=True):
        height, width = scaled_size(tile.height, tile.width, scale)
        back_x, back_y = tile.width / width, tile.height / height
        for detection in detections:
            cut = is_cut(detection.box, (height, width), tile, (image.shape[0], image.shape[1]))
            yield cut, detection.mapped(back_x, back_y, tile.x, tile.y)


def whole_first(found: Iterable[tuple[bool, Detection]]) -> list[Detection]:
    """Rank the results of `search` for `merge`: objects that weren't cut off come first, then higher scores."""
    return [d for _, d in sorted(found, key=lambda pair: (pair[0], -pair[1].score, pair[1].box))]


class TiledDetector:
    """Detector that runs another detector on the whole image and on tiles, at the original and at double size.

    A tile is cut from the image before it's enlarged, so memory depends only on the tile size. For the search of the
    whole image, an image of more than `max_pixels` pixels is shrunk to that number. All boxes are merged in the image's
    frame.
    """

    def __init__(
        self,
        detector: Detector,
        name: str,
        tile_side: int = 768,
        tile_overlap: int = 192,
        max_pixels: int = 32_000_000,
    ) -> None:
        """Set up the detector. `name` becomes the source of its results.

        `tile_side` and `tile_overlap` are in pixels of the tile as it's searched, after it's enlarged.
        """
        self.name = name
        self.kind: Kind = detector.kind
        self.score = detector.score
        self._detector = detector
        self._tile_side = tile_side
        self._tile_overlap = tile_overlap
        self._max_pixels = max_pixels

    def detect(self, image: Pixels) -> list[Detection]:
        """Find objects in `image`, (H, W, 3) uint8 RGB. Boxes are in pixels of the image, best first.

        Raises the same errors as the underlying detector.
        """
        height, width = image.shape[:2]
        fit = min(1.0, math.sqrt(self._max_pixels / (height * width)))
        find = partial(map, self._detector.detect)
        found = search(image, resized(image, fit), find, side=max(height, width), overlap=0)
        for scale in (1.0, 2.0):
            side = round(self._tile_side / scale)
            if fit == scale == 1 and max(height, width) <= side:
                continue  # this tile is the whole image, which was already searched
            found += search_tiles(image, find, scale, tiles(height, width, side, round(self._tile_overlap / scale)))
        return [replace(each, source=self.name) for each in by_score(merge(whole_first(found)))]


Array = NDArray[Any]
Boxes = tuple[Array, Array]


@dataclass(frozen=True)
class OnnxNetwork:
    """ONNX network that searches one image.

    `run` takes (1, 3, H, W) BGR from 0 to 255 with the type `dtype`. It returns `YUNET_OUTPUTS` if `is_yunet` is true,
    and otherwise one tensor. `size` is the only height and width that the network accepts. If it's None, the network
    accepts multiples of 32.
    """

    run: Callable[[Array], Sequence[Array]]
    is_yunet: bool
    size: Size | None
    dtype: type[np.float32] | type[np.uint8]


class OnnxDetector:
    """Detector that runs an ONNX network on tiles of the image at 1, 1/2, 1/4, … of its size.

    A tile has the network's input size or, if that isn't fixed, at most 1536 pixels per side. It's padded with black.
    The search ends with the first size whose longer side is at most 320 pixels. Overlapping boxes are merged.
    """

    def __init__(self, network: OnnxNetwork, kind: Kind, score: float | None = None, name: str = "onnx") -> None:
        """Set up the detector, and test the network on a black image. Raises ValueError if the test fails.

        `score` is the minimum score. It defaults to 0.6 for YuNet, as in OpenCV's model zoo, and to 0.5 for other
        networks.
        """
        self.kind: Kind = kind
        self.name = name
        self.score = (_YUNET_SCORE if network.is_yunet else _LISTED_SCORE) if score is None else score
        self._network = network
        self._side = min(network.size or (_LARGEST_TILE,))
        self._find(np.zeros((*(network.size or (64, 96)), 3), np.uint8))

    def detect(self, image: Pixels) -> list[Detection]:
        """Find objects in `image`, (H, W, 3) uint8 RGB. Boxes are in pixels of the image, best score first.

        Raises ValueError if the network's outputs don't have the expected shapes and values.
        """
        found, scale, side = [], 1.0, max(image.shape[:2])
        while scale == 1 or side * scale * 2 > _LAST_LEVEL:
            scaled = resized(image, scale)
            found += search(image, scaled, partial(map, self._find), self._side, self._side // 4)
            scale /= 2
        return by_score(merge(whole_first(found)))

    def _find(self, window: Pixels) -> list[Detection]:
        """Find objects in one tile. Boxes are in pixels of the tile."""
        height, width = window.shape[:2]
        padded = np.zeros((1, 3, *(self._network.size or (_padded(height), _padded(width)))), self._network.dtype)
        padded[0, :, :height, :width] = window[..., ::-1].transpose(2, 0, 1)
        answers = self._network.run(padded)
        decode = yunet_boxes if self._network.is_yunet else listed_boxes
        try:
            boxes, scores = _likely(*decode(answers, padded.shape[2:]), self.score)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None
        found = (
            Detection(self.kind, round(min(score, 1.0), 4), (x0, y0, x1, y1), None, self.name)
            for (x0, y0, x1, y1), score in zip(boxes.tolist(), scores.tolist(), strict=True)
            if x1 > 0 and y1 > 0 and x0 < width and y0 < height
        )
        return merge(by_score(found))


def yunet_boxes(answers: Sequence[Array], size: tuple[int, ...]) -> Boxes:
    """Decode `YUNET_OUTPUTS` for an input of `size` (h, w) into boxes (N, 4) and scores (N,).

    Boxes are x0, y0, x1, y1 in pixels. Each stride has one row per cell, in reading order. A row contains the scores
    for the class and for objectness; the detection's score is their geometric mean. It also contains the box's center
    and the logarithms of its sides, relative to the cell. Raises ValueError if the shapes are different.
    """
    named = dict(zip(YUNET_OUTPUTS, answers, strict=True))
    boxes, scores = [], []
    for stride in STRIDES:
        rows, columns = size[0] // stride, size[1] // stride
        part = {}
        for name, width in _COLUMNS.items():
            values = named[f"{name}_{stride}"]
            if values.size != rows * columns * width:
                raise ValueError(
                    f"expected {name}_{stride} (1, {rows * columns}, {width}) for an input of {size[1]} x {size[0]} "
                    f"pixels, got {values.shape}"
                )
            part[name] = values.reshape(rows * columns, width).astype(np.float64)
        cells = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)
        with np.errstate(over="ignore", invalid="ignore"):
            center, half = (cells + part["bbox"][:, :2]) * stride, np.exp(part["bbox"][:, 2:]) * stride / 2
            boxes.append(np.concatenate([center - half, center + half], axis=1))
        scores.append(np.sqrt(part["cls"].clip(0, 1) * part["obj"].clip(0, 1))[:, 0])
    return np.concatenate(boxes), np.concatenate(scores)


def listed_boxes(answers: Sequence[Array], size: tuple[int, ...]) -> Boxes:
    """Split one tensor, (N, C) or (1, N, C) with C of at least 5, into boxes (N, 4) and scores (N,).

    The first five columns are x0, y0, x1, y1 in pixels of the input, and the score. Other columns are ignored. Raises
    ValueError if the shape is different.
    """
    (values,) = answers
    listed = values[0] if values.ndim == 3 and len(values) == 1 else values
    if listed.ndim != 2 or listed.shape[1] < 5:
        raise ValueError(
            f"expected one output (N, 5 or more) for an input of {size[1]} x {size[0]}, got {values.shape}"
        )
    listed = listed.astype(np.float64)
    return listed[:, :4], listed[:, 4]


def _likely(boxes: Array, scores: Array, least: float) -> Boxes:
    """Select the boxes with a score of at least `least`. Raises ValueError for values that show a broken network."""
    if not np.isfinite(scores).all() or scores.max(initial=0) > 1.001:
        raise ValueError(f"expected scores from 0 to 1, got {scores.max(initial=0):g}")
    kept = scores >= least
    boxes, scores = boxes[kept], scores[kept]
    if not np.isfinite(boxes).all() or (boxes[:, 2:] <= boxes[:, :2]).any():
        raise ValueError("expected finite boxes x0, y0, x1, y1 with x1 > x0 and y1 > y0")
    if len(boxes) > _MOST_BOXES:
        raise ValueError(f"expected at most {_MOST_BOXES:,} boxes in a tile, got {len(boxes):,}")
    return boxes, scores


def _padded(side: int) -> int:
    return -(-side // STRIDES[-1]) * STRIDES[-1]
