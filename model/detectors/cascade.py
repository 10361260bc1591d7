"""Face detection by the three networks of MTCNN (Zhang et al. 2016, arXiv 1604.02878) on one image pyramid.

The caller passes in the networks of `facenet_pytorch.MTCNN`, so this package depends only on torch.
"""

import copy
from collections.abc import Callable
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchvision.ops import nms

from segmint.infra.arrays import Floats32, Ints, Pixels
from segmint.model.detectors.detection import Detection, Kind, by_score, merge
from segmint.model.detectors.second_look import LOOK_SCORE

SMALLEST = 20
"""Side in pixels of the smallest face that is found."""


class PNetLayers(Protocol):
    """Layers of `facenet_pytorch.models.mtcnn.PNet` that this module uses."""

    conv1: Any
    prelu1: Any
    conv2: Any
    prelu2: Any
    conv3: Any
    prelu3: Any
    conv4_1: Any
    conv4_2: Any


def propose(layers: PNetLayers, pixels: Tensor, least: float) -> tuple[Tensor, Tensor, Tensor]:
    """Find the cells that P-Net classifies as faces with a probability of at least `least`.

    `pixels` is one image, (1, 3, H, W) float32 in [-1, 1]. The cells of P-Net's output are two pixels apart. Returns
    the row and column of each cell (N, 2) int64, its probability (N,), and its offsets (N, 4) relative to the cell's
    square.
    """
    found = layers.conv2(_pooled(_prelu(layers.conv1(pixels), layers.prelu1.weight)))
    features = layers.prelu3(layers.conv3(layers.prelu2(found)))[0].permute(1, 2, 0)
    no_face, face = _by_cell(layers.conv4_1, features).unbind(dim=-1)
    probabilities = torch.sigmoid(face - no_face)
    cells = torch.nonzero(probabilities >= least)
    row, column = cells.unbind(dim=1)
    return cells, probabilities[row, column], _by_cell(layers.conv4_2, features[row, column])


def _by_cell(convolution: Any, features: Tensor) -> Tensor:
    """Apply a 1x1 convolution to channels-last features (..., C)."""
    return functional.linear(features, convolution.weight.flatten(1), convolution.bias)


def _prelu(features: Tensor, slopes: Tensor) -> Tensor:
    """Apply PReLU to (1, C, H, W) with `slopes` (C,), one per channel.

    To torch, this looks like a PReLU whose channels are all values of a row. If C isn't a multiple of 8, this takes a
    fifth of the time on a CPU.
    """
    _, channels, height, width = features.shape
    rows = features.permute(0, 2, 3, 1).reshape(height, width * channels)
    found = functional.prelu(rows, slopes.repeat(width))
    return found.reshape(1, height, width, channels).permute(0, 3, 1, 2)


def _pooled(features: Tensor) -> Tensor:
    """Return the maximum of each 2x2 block of (1, C, H, W). An odd last row or column forms smaller blocks.

    On a CPU, `max_pool2d` takes eight times as long, because it also records the position of each maximum.
    """
    return _pairs(_pairs(features, 2), 3)


def _pairs(features: Tensor, dim: int) -> Tensor:
    """Return the maximum of the neighbors 2k and 2k + 1 along `dim`. If the last value has no neighbor, it's copied."""
    even = (slice(None),) * dim + (slice(None, None, 2),)
    odd = (slice(None),) * dim + (slice(1, None, 2),)
    first, second = features[even], features[odd]
    pairs = second.shape[dim]
    found = torch.maximum(first.narrow(dim, 0, pairs), second)
    return found if first.shape[dim] == pairs else torch.cat([found, first.narrow(dim, pairs, 1)], dim)


_CELL = 12  # side in pixels of the squares that P-Net classifies, two pixels apart
_STRIDE = 2
_FACTOR = 0.8  # ratio between levels
_PNET_SCORE, _RNET_SCORE = 0.6, 0.7  # minimum scores
# Number of rows of P-Net's output to compute together, so that a strip fits into a CPU's cache, and number of
# candidates per batch of R-Net or O-Net. On a GPU, larger strips and batches, of at most half a gigabyte, mean fewer
# kernel launches.
_STRIP, _BATCH = 32, 256
CUDA_STRIP, CUDA_BATCH = 512, 1024
_BORDER, _GRAY = 32, 127  # padding of images that are smaller than a face
_LARGER = 1.6  # minimum ratio of a half's side to its level's; with up to 1.3, we found a false face in multiface
_SAME_IOU = 0.7
_SAME_LEVEL_IOU = 0.5

Sums = NDArray[Any]  # int32 or float64


class Networks(Protocol):
    """Networks of `facenet_pytorch.MTCNN`, which take pixels in [-1, 1] and return offsets relative to boxes."""

    @property
    def pnet(self) -> PNetLayers:
        """Layers of P-Net; see `propose`."""

    @property
    def rnet(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """R-Net: maps (B, 3, 24, 24) to offsets (B, 4) and probabilities (B, 2)."""

    @property
    def onet(self) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
        """O-Net: maps (B, 3, 48, 48) to offsets (B, 4), landmarks (B, 10), and probabilities (B, 2)."""


class CascadeDetector:
    """MTCNN's cascade, which finds faces of at least `SMALLEST` pixels in images of any size.

    Unlike a search in overlapping tiles, this builds the pyramid from the whole image, so no work is repeated. P-Net
    processes each level in strips of rows, so the memory hardly grows with the image. R-Net and O-Net process the
    candidates in batches.
    """

    kind: Kind = "face"
    name = "mtcnn"

    def __init__(
        self,
        networks: Networks,
        score: float = 0.7,
        device: str = "cpu",
    ) -> None:
        """Set up the cascade. `score` is the minimum score of O-Net."""
        self.score = score
        self._networks = networks
        self._device = torch.device(device)
        on_gpu = self._device.type == "cuda"
        self.strip, self.batch = (CUDA_STRIP, CUDA_BATCH) if on_gpu else (_STRIP, _BATCH)

    def detect(self, image: Pixels) -> list[Detection]:
        """Find faces in `image`, (H, W, 3) uint8 RGB. Boxes are in pixels of the image, best score first."""
        height, width = image.shape[:2]
        border = 0 if min(height, width) >= SMALLEST else _BORDER
        if border:  # a border can cut off a face, but P-Net classifies only complete squares
            image = np.pad(image, ((border, border), (border, border), (0, 0)), constant_values=_GRAY)
        with torch.inference_mode():
            boxes = self._propose(_halves(image))
            sums = _sums(image)
            boxes, scores = self._confirm(sums, self._refine(sums, boxes))
        found = [
            Detection("face", round(score, 4), (x0, y0, x1, y1), None, self.name)
            for (x0, y0, x1, y1), score in zip((boxes - border).tolist(), scores.tolist(), strict=True)
        ]
        return by_score(merge(by_score(found)))

    def look(self, window: Pixels) -> list[Detection]:
        """Search a view of a candidate, (H, W, 3) uint8 RGB, at scores from `LOOK_SCORE`. Boxes are in its pixels."""
        closer = copy.copy(self)
        closer.score = LOOK_SCORE
        return closer.detect(window)

    def _propose(self, halves: list[Pixels]) -> Tensor:
        """Run P-Net on all levels, and return its squares (N, 4) as x0, y0, x1, y1 in pixels of the image."""
        height, width = halves[0].shape[:2]
        scale = _CELL / SMALLEST
        levels = [torch.zeros((0, 9))]
        while min(height, width) * scale >= _CELL:
            size = int(width * scale + 1), int(height * scale + 1)
            # Average the smallest half that is clearly larger than the level.
            half = next(each for each in reversed(halves) if each is halves[0] or each.shape[1] >= _LARGER * size[0])
            level = np.asarray(cv2.resize(half, size, interpolation=cv2.INTER_AREA), np.uint8)
            found = self.scan(level, scale)
            levels.append(found[nms(found[:, :4], found[:, 4], _SAME_LEVEL_IOU)])
            scale *= _FACTOR
        found = torch.cat(levels)
        found = found[nms(found[:, :4], found[:, 4], _SAME_IOU)]
        return _squares(_shifted(found[:, :4], found[:, 5:], 0))

    def scan(self, level: Pixels, scale: float) -> Tensor:
        """Run P-Net on one level, and return (N, 9): the box in pixels of the image, the score, and the offsets."""
        found = [torch.zeros((0, 9))]
        for top in range(0, level.shape[0] - _CELL + _STRIDE, self.strip * _STRIDE):
            strip = level[top : top + (self.strip - 1) * _STRIDE + _CELL]
            cells, scores, offsets = propose(self._networks.pnet, self._input(strip[None]), _PNET_SCORE)
            at = (cells.flip(1) * _STRIDE).float()
            at[:, 1] += top
            box = torch.cat([((at + 1) / scale).floor(), ((at + _CELL) / scale).floor()], dim=1)
            found.append(torch.cat([box, scores[:, None], offsets], dim=1).cpu())
        return torch.cat(found)

    def _refine(self, sums: Sums, boxes: Tensor) -> Tensor:
        """Run R-Net on P-Net's squares, and return the squares (N, 4) of the faces that it confirms."""
        boxes, offsets, scores = self._judge(sums, boxes, 24, self._networks.rnet)
        likely = scores > _RNET_SCORE
        boxes, offsets, scores = boxes[likely], offsets[likely], scores[likely]
        kept = nms(boxes, scores, _SAME_IOU)
        return _squares(_shifted(boxes[kept], offsets[kept], 1))

    def _confirm(self, sums: Sums, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Run O-Net on R-Net's squares, and return the boxes (N, 4) and scores (N,) of the faces that it confirms."""
        boxes, offsets, scores = self._judge(sums, boxes, 48, self._networks.onet)
        likely = scores >= self.score
        return _shifted(boxes[likely], offsets[likely], 1), scores[likely]

    def _judge(
        self, sums: Sums, boxes: Tensor, side: int, network: Callable[[Tensor], tuple[Tensor, ...]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run a network on the part of each box inside the image, resized to `side` x `side` pixels.

        Boxes without such a part are dropped. Returns the remaining boxes (N, 4), their offsets (N, 4), and their
        scores (N,).
        """
        height, width = sums.shape[0] - 1, sums.shape[1] - 1
        limits = torch.tensor([width, height, width, height])
        # As in MTCNN, use whole pixels, and include the first and the last pixel.
        inside = torch.minimum(boxes.trunc().clamp(min=1), limits.float()) - torch.tensor([1.0, 1.0, 0.0, 0.0])
        is_there = (inside[:, 2:] > inside[:, :2]).all(dim=1)
        boxes, windows = boxes[is_there], inside[is_there].long().numpy()
        offsets, scores = [torch.zeros((0, 4))], [torch.zeros(0)]
        for start in range(0, len(windows), self.batch):
            seen = _averages(sums, windows[start : start + self.batch], side)
            answers = network(self._input(seen))
            offsets.append(answers[0].cpu())
            scores.append(answers[-1][:, 1].cpu())
        return boxes, torch.cat(offsets), torch.cat(scores)

    def _input(self, images: NDArray[Any]) -> Tensor:
        """Convert images (B, H, W, 3), uint8 or float32, to the input of the networks, (B, 3, H, W) float32."""
        return torch.from_numpy(images).to(self._device).float().permute(0, 3, 1, 2).sub_(127.5).mul_(0.0078125)


def _halves(image: Pixels) -> list[Pixels]:
    """Return the image, then the image at half, a quarter, and so on of its size, down to a few pixels per side.

    An odd last row or column is dropped, because OpenCV averages whole 2x2 squares ten times as fast.
    """
    found = [image]
    while min(found[-1].shape[:2]) >= 2 * _CELL:
        height, width = (side // 2 for side in found[-1].shape[:2])
        whole = found[-1][: 2 * height, : 2 * width]
        found.append(np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)))
    return found


def _sums(image: Pixels) -> Sums:
    """Return the integral image (H + 1, W + 1, 3). The mean of any window then takes only four of its values."""
    whole = image.shape[0] * image.shape[1] * 255 < 2**31
    return np.asarray(cv2.integral(image, sdepth=cv2.CV_32S if whole else cv2.CV_64F))


def _averages(sums: Sums, windows: Ints, side: int) -> Floats32:
    """Resize windows (N, 4) of the image, as x0, y0, x1, y1, to `side` x `side` pixels: (N, side, side, 3) float32.

    Each output pixel is the mean of all image pixels that it covers, even if only partly. `torch.nn.AdaptiveAvgPool2d`,
    which facenet_pytorch uses to resize candidates for R-Net and O-Net, does the same.
    """
    step = np.arange(side)
    first, length = windows[:, :2, None], (windows[:, 2:] - windows[:, :2])[:, :, None]
    begin = first + step * length // side  # (N, 2, side): across and down
    end = first - -(step + 1) * length // side
    (left, top), (right, bottom) = begin.swapaxes(0, 1), end.swapaxes(0, 1)
    width = sums.shape[1]
    flat = sums.reshape(-1, 3)

    def corner(rows: Ints, columns: Ints) -> Sums:
        return np.asarray(flat.take(rows[:, :, None] * width + columns[:, None, :], axis=0))  # faster than flat[...]

    total = corner(bottom, right) - corner(top, right) - corner(bottom, left) + corner(top, left)
    count = (bottom - top)[:, :, None] * (right - left)[:, None, :]
    return np.asarray(total / count[..., None], np.float32)


def _shifted(boxes: Tensor, offsets: Tensor, last: int) -> Tensor:
    """Move boxes (N, 4) by `offsets` (N, 4), relative to their sides. `last` is 1 if the ends are inclusive."""
    sides = (boxes[:, 2:] - boxes[:, :2] + last).repeat(1, 2)
    return boxes + offsets * sides


def _squares(boxes: Tensor) -> Tensor:
    """Return the squares around the centers of the boxes (N, 4). Each square has the length of the longer side."""
    sides = boxes[:, 2:] - boxes[:, :2]
    side = sides.max(dim=1, keepdim=True).values
    first = boxes[:, :2] + sides / 2 - side / 2
    return torch.cat([first, first + side], dim=1)
