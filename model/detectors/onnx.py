"""ONNX detectors whose network has YuNet's outputs, or one tensor of boxes and scores.

YuNet: Wu et al. 2023, doi 10.1007/s11633-023-1423-y. The outputs match `face_detection_yunet_2023mar.onnx` in
https://github.com/opencv/opencv_zoo.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmint.model.detectors.detection import Detection, Kind, Pixels, by_score, merge, resized, search, whole_first

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
    size: tuple[int, int] | None
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
