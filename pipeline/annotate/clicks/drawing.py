"""A mask of low-resolution logits in the image's frame: the pixels of `Predictor.upscale`, for less work on a CPU.

Both steps of interpolation are one matrix for each axis (`segmint.model.automatic.interpolation`), so that only the box
around the mask is computed. That sums in another order, which could turn a pixel whose logit is all but 0. Where there
is one, the mask is upscaled as the predictor does it.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segmint.model.automatic.boxes import box_of, xyxy_to_xywh
from segmint.model.automatic.filters import stability_scores
from segmint.model.automatic.interpolation import Interpolation, interpolation
from segmint.model.automatic.rle import encode_patch
from segmint.model.sam.predictor import Embedding, Predictor

STABILITY_OFFSET = 1.0

# Of float32, times the operations of both orders of summing: what a mean of logits may differ by, relative to them.
_DIFFERENCE = 16 * 2.0**-24

_NO_BOX = (0.0, 0.0, 0.0, 0.0)
_COLUMNS = 128
_PIXELS = 1 << 17


@dataclass(frozen=True)
class DrawnMask:
    """A mask in the image's frame; `bbox` is (x, y, width, height) as in the dataset."""

    counts: str
    area: int
    stability: float
    bbox: tuple[float, float, float, float]


def draw_mask(predictor: Predictor, embedding: Embedding, logits: Tensor) -> DrawnMask:
    """Return the mask of logits (256, 256) float32: where the upscaled ones are over 0."""
    side = predictor.sam.image_size
    if logits.device.type == "cpu":
        drawn = _draw_box(logits, embedding, side)
        if drawn is not None:
            return drawn
    upscaled = predictor.upscale(logits[None, None], embedding)[0]
    mask: NDArray[np.bool_] = (upscaled[0] > 0).cpu().numpy()
    return _drawn(mask, (0, 0), embedding, float(stability_scores(upscaled, STABILITY_OFFSET)[0]))


def _draw_box(logits: Tensor, embedding: Embedding, side: int) -> DrawnMask | None:
    """Return the mask, computed inside its box; None if a pixel there is too near to 0."""
    rows, columns = _interpolations(logits.shape[-1], side, embedding.input_size, embedding.frame_size)
    over = logits.numpy() > -STABILITY_OFFSET
    x0, y0, x1, y1 = box_of(over)
    down, across = rows.reach(y0, y1), columns.reach(x0, x1)
    height, width = down.stop - down.start, across.stop - across.start
    if not over.any() or height < 1 or width < 1:
        return _drawn(np.zeros((1, 1), dtype=np.bool_), (0, 0), embedding, math.nan)
    margin = float(logits.abs().max()) * _DIFFERENCE
    touched = rows.touched(down)
    wide = torch.cat(list(columns.bands(across, logits[touched].T, step=_COLUMNS))).T
    mask = np.empty((height, width), dtype=np.bool_)
    inner = outer = done = 0
    for band in rows.bands(down, wide, step=max(1, _PIXELS // width), first=touched.start):
        values = band.numpy()
        np.greater(values, 0, out=mask[done : done + len(values)])
        if np.count_nonzero(values > margin) != np.count_nonzero(values > -margin):
            return None
        inner += int(np.count_nonzero(values > STABILITY_OFFSET))
        outer += int(np.count_nonzero(values > -STABILITY_OFFSET))
        done += len(values)
    return _drawn(mask, (across.start, down.start), embedding, inner / outer if outer else math.nan)


@lru_cache(maxsize=16)
def _interpolations(
    low_side: int, side: int, input_size: tuple[int, int], frame_size: tuple[int, int]
) -> tuple[Interpolation, Interpolation]:
    """Both axes' interpolations, rows first; some 2 MB for a frame of 1500 x 2250 pixels."""
    vertical, horizontal = zip(input_size, frame_size, strict=True)
    return interpolation(low_side, side, *vertical), interpolation(low_side, side, *horizontal)


def _drawn(window: NDArray[np.bool_], corner: tuple[int, int], embedding: Embedding, stability: float) -> DrawnMask:
    """Return the mask of a window (h, w) of the frame, with its `corner` (x, y)."""
    area = int(np.count_nonzero(window))
    x0, y0, x1, y1 = box_of(window)
    patch, at = window[y0 : y1 + 1, x0 : x1 + 1], (corner[0] + x0, corner[1] + y0)
    x, y, width, height = xyxy_to_xywh((x0, y0, x1, y1))
    return DrawnMask(
        counts=encode_patch(patch, at, embedding.frame_size).counts,
        area=area,
        stability=0.0 if math.isnan(stability) else stability,
        bbox=(float(x + corner[0]), float(y + corner[1]), float(width), float(height)) if area else _NO_BOX,
    )
