"""License plate detection by a RetinaFace-style network (Deng et al. 2019, arXiv 1905.00641) that also returns corners.

The network is an ONNX session. The caller passes it in as a function, so this package depends only on torch.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import cv2
import numpy as np

from segmint.infra.arrays import Box, Floats32, Pixels
from segmint.model.detectors.detection import (
    Detection,
    FindAll,
    Kind,
    Quad,
    Tile,
    bounds,
    by_score,
    iou,
    merge,
    resized,
    scaled_size,
    search,
    search_tiles,
    whole_first,
)
from segmint.model.detectors.second_look import LOOK_SCORE

Network = Callable[[Sequence[Pixels]], tuple[Floats32, Floats32, Floats32]]
"""Function that maps B windows of equal size, (H, W, 3) uint8 RGB, to loc (B, N, 4), conf (B, N, 2), and landms
(B, N, 8)."""

MEAN_BGR = (104, 117, 123)
_LEVELS = ((8, (24, 48)), (16, (96, 192)), (32, (384, 768)))
_CENTER_VARIANCE = 0.1
_SIZE_VARIANCE = 0.2
_SAME_PLATE_IOU = 0.3
SMALL = (0.35, 0.5, 0.7, 1.0, 1.4), (1.2, 2.0)
"""Scales at which the whole of a small image is searched, and scales for windows around what was found."""
LARGE = (0.35, 0.5, 0.7, 1.0), (1.2, 1.4, 1.7, 2.0)
"""The same for all other images."""
GLANCE = 0.02
"""Minimum score of a spot that is enlarged and searched again.

With this value, the detector finds the same plates in 31 marked photographs of over 1 megapixel as if it enlarged the
whole images.
"""
_LEAST_PART = 0.1  # minimum score of a detection whose corners count for the box of a plate
_WINDOW = 256  # minimum side in pixels of the enlarged window around a spot
_LONG_SCORE = 0.1  # minimum score of a spot that is longer than half of that
_LONG_PIXELS = 4_000_000  # maximum number of pixels in an image for that


def host_blob(windows: Sequence[Pixels]) -> Floats32:
    """Create the input of the ONNX file's network from windows: (B, 3, H, W) float32, BGR minus its mean."""
    upright = [np.ascontiguousarray(window) for window in windows]
    return np.asarray(cv2.dnn.blobFromImages(upright, mean=MEAN_BGR, swapRB=True), np.float32)


@functools.lru_cache(maxsize=8)
def anchors(height: int, width: int) -> Floats32:
    """Return an image's anchors, (N, 3) float32 as center x, center y, and side in pixels, in the network's order.

    The anchors have three levels with strides of 8, 16, and 32. Within a level, they are in row order, with two squares
    per position. N equals the network's number of outputs for any height and width.
    """
    levels = []
    for stride, sides in _LEVELS:
        rows, columns = -(-height // stride), -(-width // stride)
        y, x, side = np.meshgrid(np.arange(rows), np.arange(columns), np.array(sides), indexing="ij")
        levels.append(np.stack([(x + 0.5) * stride, (y + 0.5) * stride, side], axis=-1).reshape(-1, 3))
    table: Floats32 = np.concatenate(levels).astype(np.float32)
    table.flags.writeable = False
    return table


def decode(loc: Floats32, landms: Floats32, at: Floats32) -> tuple[Floats32, Floats32]:
    """Decode boxes (N, 4) as x0, y0, x1, y1 and corners (N, 4, 2) as x, y, in pixels.

    The offsets `loc` (N, 4) and `landms` (N, 8) are relative to the anchors `at` (N, 3). Their variances are 0.1 for
    positions and 0.2 for sizes (SSD, arXiv 1512.02325).
    """
    center, side = at[:, :2], at[:, 2:]
    middle = center + loc[:, :2] * _CENTER_VARIANCE * side
    half = side * np.exp(loc[:, 2:] * _SIZE_VARIANCE) / 2
    corners = center[:, None] + landms.reshape(-1, 4, 2) * _CENTER_VARIANCE * side[:, None]
    return np.concatenate([middle - half, middle + half], axis=1), corners


class PlateDetector:
    """License plate detector that runs the network on tiles at several scales and combines the detections.

    The network is sensitive to scale. For example, a plate of 160 px scored 0.1 at its original size and 0.98 at double
    size. But at double size, the box covered only two thirds of the plate, and the boxes at other scales covered the
    rest. The detector therefore searches an image at each scale of `LARGE` or, if the image has at most
    `enlarged_pixels`, of `SMALL`. It first shrinks images of more than `max_pixels` to that size. The detector then
    takes a closer look: it enlarges and searches windows around all small boxes that scored at least `GLANCE`.

    A plate counts if it scores at least `score` at one scale and at least half of that at another scale. The result is
    the smallest rectangle, at any angle, around all boxes of the plate.
    """

    kind: Kind = "plate"
    name = "clp"

    def __init__(
        self,
        network: Network,
        score: float = 0.5,
        tile_side: int = 1536,
        tile_overlap: int = 128,
        enlarged_pixels: int = 1_000_000,
        max_pixels: int = 100_000_000,
        batch_pixels: int = 0,
    ) -> None:
        """Set up the detector.

        The default of `max_pixels` exceeds a released image: a side of a JPEG is at most 65,500 pixels long, and the
        short side is 1,500 pixels by default. `network` gets one window, or several windows of equal size that have up
        to `batch_pixels` pixels together.
        """
        self._network = network
        self.score = score
        self._tile_side = tile_side
        self._tile_overlap = tile_overlap
        self._enlarged_pixels = enlarged_pixels
        self._max_pixels = max_pixels
        self._batch_pixels = batch_pixels

    def detect(self, image: Pixels) -> list[Detection]:
        """Find plates in `image`, (H, W, 3) uint8 RGB.

        Boxes and corners are in pixels of the image, best score first.
        """
        pixels = image.shape[0] * image.shape[1]
        fit = min(1.0, (self._max_pixels / pixels) ** 0.5)
        whole, closer = SMALL if pixels <= self._enlarged_pixels else LARGE
        seen = []
        for scale in whole:
            scaled = shrunk(image, scale * fit)
            seen.append(search(image, scaled, self._find, self._tile_side, self._tile_overlap))
        spots = [each for found in seen for _, each in found]
        for scale in closer:
            seen.append(list(_search_around(image, self._find, spots, scale * fit)))
        hits = [each for found in seen for _, each in found]
        views = []
        for found in seen:
            views.append(merge(whole_first((is_cut, each) for is_cut, each in found if each.score >= self.score / 2)))
        return agreed(views, hits, self.score)

    def look(self, window: Pixels) -> list[Detection]:
        """Search a view of a candidate, (H, W, 3) uint8 RGB, at its own size and at scores from `LOOK_SCORE`.

        Boxes and corners are in pixels of the view, which is made as in `second_look`.
        """
        (found,) = self._find([window], LOOK_SCORE)
        return found

    def _find(self, windows: Iterable[Pixels], least: float = GLANCE) -> Iterator[list[Detection]]:
        """Yield the plates in each window that score at least `least`, in pixels of the window."""
        for alike in _batches(windows, self._batch_pixels):
            height, width = alike[0].shape[:2]
            for loc, conf, landms in zip(*self._network(alike), strict=True):
                likely = np.flatnonzero(conf[:, 1] >= least)
                boxes, corners = decode(loc[likely], landms[likely], anchors(height, width)[likely])
                found = [
                    Detection("plate", round(score, 4), _box(box), _quad(quad), self.name)
                    for score, box, quad in zip(conf[likely, 1].tolist(), boxes.tolist(), corners.tolist(), strict=True)
                ]
                yield merge(by_score(each for each in found if _is_inside(each.box, height, width)))


def _batches(windows: Iterable[Pixels], most_pixels: int) -> Iterator[list[Pixels]]:
    """Group adjacent windows of equal size. A group has at most `most_pixels` pixels, but at least one window."""
    alike: list[Pixels] = []
    for window in windows:
        is_full = (len(alike) + 1) * window.shape[0] * window.shape[1] > most_pixels
        if alike and (is_full or alike[0].shape != window.shape):
            yield alike
            alike = []
        alike.append(window)
    if alike:
        yield alike


def _search_around(
    image: Pixels, find: FindAll, spots: Sequence[Detection], scale: float
) -> Iterator[tuple[bool, Detection]]:
    """Run `find` on windows around `spots`, enlarged by `scale`. Yields the same pairs as `search`.

    Boxes longer than half a window have larger windows, but only from a score of `_LONG_SCORE` and in images of up to
    `_LONG_PIXELS`, because other scales already showed them large enough.
    """
    height, width = image.shape[:2]
    seen: list[tuple[float, float, float]] = []
    places: list[Tile] = []
    for spot in by_score(spots):
        x0, y0, x1, y1 = spot.box
        x, y, longer = (x0 + x1) / 2, (y0 + y1) / 2, max(x1 - x0, y1 - y0)
        side = round(max(_WINDOW / scale, 2 * longer))
        if 2 * longer > _WINDOW / scale and (spot.score < _LONG_SCORE or height * width > _LONG_PIXELS):
            continue
        if any(max(abs(x - to_x), abs(y - to_y)) < longest / 4 and side <= longest for to_x, to_y, longest in seen):
            continue
        seen.append((x, y, side))
        left, top = (round(min(max(at - side / 2, 0), max(end - side, 0))) for at, end in ((x, width), (y, height)))
        places.append(Tile(left, top, min(side, width - left), min(side, height - top)))
    return search_tiles(image, find, scale, places)


def agreed(views: Sequence[Sequence[Detection]], hits: Sequence[Detection], score: float) -> list[Detection]:
    """Combine detections from several views of one image, best score first.

    A detection with a score of at least `score` counts only if another view confirms it. For this, the other view needs
    a detection with any score whose box has an IoU of at least 0.3 with it. The combined detection keeps its score. Its
    box becomes the rectangle around the corners of all detections that overlap it in this way. Its corners also enclose
    those of unsure `hits` there, with a score of at least `_LEAST_PART`, because a plate may extend further.
    """
    every = [(index, found) for index, view in enumerate(views) for found in view]
    seeds = merge(by_score(found for _, found in every if found.score >= score))
    result = []
    for seed in seeds:
        members = [(index, found) for index, found in every if iou(seed.box, found.box) >= _SAME_PLATE_IOU]
        if len({index for index, _ in members}) > 1:
            parts = [found for _, found in members]
            unsure = [hit for hit in hits if hit.score >= _LEAST_PART and iou(seed.box, hit.box) >= _SAME_PLATE_IOU]
            result.append(replace(seed, box=bounds(_enclosing(parts)), quad=_enclosing([*parts, *unsure])))
    return merge(by_score(result))


def _enclosing(members: Sequence[Detection]) -> Quad:
    """Return the corners of the smallest rectangle, of any orientation, around the corners of all members."""
    points = np.array([point for member in members for point in member.quad or ()], np.float32)
    return _quad(cv2.boxPoints(cv2.minAreaRect(points)).tolist())


def _box(values: Sequence[float]) -> Box:
    x0, y0, x1, y1 = values
    return x0, y0, x1, y1


def _quad(points: Sequence[Sequence[float]]) -> Quad:
    a, b, c, d = ((x, y) for x, y in points)
    return a, b, c, d


def _is_inside(box: Box, height: int, width: int) -> bool:
    return box[2] > 0 and box[3] > 0 and box[0] < width and box[1] < height


def shrunk(image: Pixels, scale: float) -> Pixels:
    """Resize an image (H, W, 3) uint8 RGB by `scale` like `resized`, but shrink it five times as fast.

    To shrink the image, torch's antialiased bilinear filter sums integers, so the results are identical on every
    machine. MTCNN doesn't use this function: it found a false face with this filter, and another one with the bicubic
    filter.
    """
    height, width = scaled_size(image.shape[0], image.shape[1], scale)
    if scale >= 1 or (height, width) == image.shape[:2]:
        return resized(image, scale)
    import torch

    writable = image if image.flags.writeable else image.copy()  # torch warns about read-only arrays
    planes = torch.from_numpy(writable)[None].permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(planes, (height, width), mode="bilinear", antialias=True)
    return np.ascontiguousarray(small[0].permute(1, 2, 0).numpy())
