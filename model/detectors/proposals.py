"""MTCNN's P-Net (Zhang et al. 2016, arXiv 1604.02878), run so that most of an image costs little.

The same layers as in `facenet_pytorch`, which are passed in. The box offsets are computed where a face is likely alone.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Layers(Protocol):
    """The part of `facenet_pytorch.models.mtcnn.PNet` that is used."""

    conv1: Any
    prelu1: Any
    conv2: Any
    prelu2: Any
    conv3: Any
    prelu3: Any
    conv4_1: Any
    conv4_2: Any


def propose(layers: Layers, pixels: Tensor, least: float) -> tuple[Tensor, Tensor, Tensor]:
    """Find the cells that P-Net takes for faces with a probability of at least `least`.

    `pixels` are those of one image, (1, 3, H, W) float32 in [-1, 1]. Returns rows and columns (N, 2) int64 of P-Net's
    answer, whose cells are two pixels apart; probabilities (N,); and offsets (N, 4) in parts of a cell's square.
    """
    found = layers.conv2(_pooled(_prelu(layers.conv1(pixels), layers.prelu1.weight)))
    features = layers.prelu3(layers.conv3(layers.prelu2(found)))[0].permute(1, 2, 0)
    no_face, face = _by_cell(layers.conv4_1, features).unbind(dim=-1)
    probabilities = torch.sigmoid(face - no_face)
    cells = torch.nonzero(probabilities >= least)
    row, column = cells.unbind(dim=1)
    return cells, probabilities[row, column], _by_cell(layers.conv4_2, features[row, column])


def _by_cell(convolution: Any, features: Tensor) -> Tensor:
    """A convolution of one pixel, of features (..., C)."""
    return functional.linear(features, convolution.weight.flatten(1), convolution.bias)


def _prelu(features: Tensor, slopes: Tensor) -> Tensor:
    """PReLU of (1, C, H, W) by channels' `slopes`, (C,).

    The values of a row are taken for its channels: on a CPU a fifth of the time for a C that is no multiple of 8.
    """
    _, channels, height, width = features.shape
    rows = features.permute(0, 2, 3, 1).reshape(height, width * channels)
    found = functional.prelu(rows, slopes.repeat(width))
    return found.reshape(1, height, width, channels).permute(0, 3, 1, 2)


def _pooled(features: Tensor) -> Tensor:
    """The maximum of each 2 x 2 values of (1, C, H, W); a last odd row or column has fewer.

    An eighth of the time of `max_pool2d`, which on a CPU also notes where each maximum was.
    """
    return _pairs(_pairs(features, 2), 3)


def _pairs(features: Tensor, dim: int) -> Tensor:
    """The maximum of neighbors 2 k and 2 k + 1 along `dim`; a last odd one stays as it is."""
    even = (slice(None),) * dim + (slice(None, None, 2),)
    odd = (slice(None),) * dim + (slice(1, None, 2),)
    first, second = features[even], features[odd]
    pairs = second.shape[dim]
    found = torch.maximum(first.narrow(dim, 0, pairs), second)
    return found if first.shape[dim] == pairs else torch.cat([found, first.narrow(dim, pairs, 1)], dim)
