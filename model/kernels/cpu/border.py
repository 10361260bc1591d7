"""Counts, boxes, and pixels of masks at the crop's resolution, computed with the kernels of `border.h`."""

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from segmint.model.kernels.cpu.library import Kernels

_TAPS = 3
_LANES = 16
_LEAST_COLUMNS = 2 * _LANES
_MOST_COLUMNS = 1024


class _Axis(ctypes.Structure):
    _fields_ = (
        ("places", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("starts", ctypes.c_void_p),
        ("pixels", ctypes.c_int32),
        ("padded", ctypes.c_int32),
    )


class _Window(ctypes.Structure):
    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("top", ctypes.c_int32),
        ("left", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("columns", ctypes.c_int32),
    )


@dataclass(frozen=True)
class Axis:
    """Interpolation along one axis, from `side` logits to `pixels` pixels, in the kernels' layout.

    Attributes:
        places: (padded,) int32, index of the first of the three logits that each pixel uses.
        weights: (3, padded) float32, weights of these three logits.
        starts: (side + 1,) int32, for each logit, the first pixel whose place is at or after the logit.
        pixels: number of pixels. The arrays are padded to whole vectors.
    """

    places: NDArray[np.int32]
    weights: NDArray[np.float32]
    starts: NDArray[np.int32]
    pixels: int

    @classmethod
    def of(cls, weights: NDArray[np.float32], touches: NDArray[np.int64]) -> "Axis":
        """Create the axis of an `Interpolation` with these weights (pixels, side) and touches (pixels, 2).

        Raises ValueError if a pixel uses more than three logits.
        """
        pixels, side = weights.shape
        if int((touches[:, 1] - touches[:, 0]).max()) > _TAPS:
            raise ValueError(f"a pixel uses more than {_TAPS} of {side} logits: expected a low-resolution mask")
        places = np.minimum(touches[:, 0], side - _TAPS)
        used = weights[np.arange(pixels)[:, None], places[:, None] + np.arange(_TAPS)].T
        more = -pixels % _LANES + _LANES
        return cls(
            np.pad(places, (0, more), mode="edge").astype(np.int32),
            np.pad(used, ((0, 0), (0, more))).astype(np.float32, order="C"),
            np.searchsorted(places, np.arange(side + 1)).astype(np.int32),
            pixels,
        )

    def pointer(self) -> Any:
        """Return the axis as a C argument. The argument is valid as long as this object exists."""
        arrays = (array.ctypes.data for array in (self.places, self.weights, self.starts))
        return ctypes.byref(_Axis(*arrays, self.pixels, len(self.places)))

    def logits_of(self, first: int, last: int) -> tuple[int, int]:
        """Return the start and exclusive end of the logits that the pixels from `first` to `last` (inclusive) use."""
        return int(self.places[first]), int(self.places[last]) + _TAPS


def suits(side: int, image_size: int) -> bool:
    """Return whether the kernels can upscale masks of size `side` to images of size `image_size`."""
    return side % _LANES == 0 and _LEAST_COLUMNS <= side <= _MOST_COLUMNS and image_size >= side


@dataclass(frozen=True)
class MeasuredMask:
    """Mask that has been measured but not drawn, with the logits that its pixels use.

    Attributes:
        logits: (rows, columns) float32, a copied part of the mask's low-resolution logits.
        corner: (x, y) of this part.
        area: number of foreground pixels.
        box: (4,) int64 as x0, y0, x1, y1, ends inclusive.
    """

    logits: NDArray[np.float32]
    corner: tuple[int, int]
    area: int
    box: NDArray[np.int64]


def measure(kernels: Kernels, logits: Tensor, down: Axis, across: Axis, offset: float) -> NDArray[np.int64]:
    """Measure the masks of logits (N, S, S) float32, and return counts and boxes (N, 7) like `mask_tiles.measure`.

    Raises ValueError if a logit isn't finite.
    """
    logits = logits.contiguous()
    numbers = np.empty((len(logits), 7), dtype=np.int64)
    bad = kernels.function("measure", ctypes.c_int64)(
        ctypes.c_void_p(logits.data_ptr()),
        ctypes.c_int64(len(logits)),
        ctypes.c_int32(logits.shape[2]),
        down.pointer(),
        across.pointer(),
        ctypes.c_float(offset),
        ctypes.c_void_p(numbers.ctypes.data),
    )
    if bad:
        raise ValueError(f"mask {bad - 1} of {len(logits)} has logits that are not finite: expected finite numbers")
    return numbers


def keep(logits: Tensor, numbers: NDArray[np.int64], down: Axis, across: Axis) -> MeasuredMask:
    """Copy the part of one mask's logits (S, S) inside its box, with its numbers (7,), to draw the mask later.

    The copy lets the chunk's other masks be freed.
    """
    side = logits.shape[1]
    x0, y0, x1, y1 = numbers[3:].tolist()
    top, bottom = down.logits_of(y0, y1)
    left, right = across.logits_of(x0, x1)
    left = min(left, side - _LEAST_COLUMNS) // _LANES * _LANES
    right = max(-(-right // _LANES) * _LANES, left + _LEAST_COLUMNS)
    part = np.array(logits[top:bottom, left:right].numpy(), order="C")
    return MeasuredMask(part, (left, top), int(numbers[1]), numbers[3:])


def draw(kernels: Kernels, mask: MeasuredMask, down: Axis, across: Axis, offset: float) -> NDArray[np.bool_]:
    """Draw the pixels of the mask inside its box, (height, width) bool. `offset` must be the same as for `measure`.

    Raises RuntimeError if the number of pixels doesn't match the measured area, because the kernels are then broken.
    """
    x0, y0, x1, y1 = mask.box.tolist()
    pixels = np.zeros((y1 - y0 + 1, x1 - x0 + 1), dtype=np.bool_)
    (left, top), (rows, columns) = mask.corner, mask.logits.shape
    kernels.function("draw_mask")(
        ctypes.byref(_Window(mask.logits.ctypes.data, top, left, rows, columns)),
        down.pointer(),
        across.pointer(),
        ctypes.c_float(offset),
        ctypes.c_void_p(mask.box.ctypes.data),
        ctypes.c_void_p(pixels.ctypes.data),
    )
    if np.count_nonzero(pixels) != mask.area:
        raise RuntimeError(f"a mask of {mask.area} pixels was drawn with {np.count_nonzero(pixels)}: broken kernels")
    return pixels
