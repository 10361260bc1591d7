"""Masks in the image's frame from the decoder's logits, prompts, and cleaned regions.

Upscaling of low-resolution logits to a mask in the image's frame, equal to `Predictor.upscale` but cheaper on a CPU.

`Predictor.upscale` interpolates twice. Here, both steps are combined into one matrix per axis
(`segmint.model.automatic.proposals`), so the pixels around the mask's border can be computed without the rest:

1. *Banded.* The frame is computed in bands of rows, and each band is thresholded while it is in a core's cache. Only
   the positions where a pixel differs from the pixel above it are stored, because the mask's runs start and end there.
   The complete mask is never in memory.
2. *Solid.* A pixel is a weighted mean of the logits that it touches. If all of these logits are over +1, the pixel is
   in the masks at -1, 0, and +1. If none of them is over -1, the pixel isn't in any of the three masks. Columns of a
   band that consist only of such pixels are skipped.
3. *Exact.* The matrices add the terms in a different order than the predictor, which could flip a pixel whose logit is
   almost 0. The row of such a pixel is therefore computed again, exactly as the predictor would (`ExactRows`). If a
   band has many such pixels, the predictor upscales the whole mask instead.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segmint.catalogs.dataset.submissions import canonical_area
from segmint.infra.arrays import Bools, Floats32, Ints, Size
from segmint.infra.errors import UsageError
from segmint.model.automatic.candidates import MaskPatch, clean_patch
from segmint.model.automatic.crops import box_of
from segmint.model.automatic.proposals import Interpolation, interpolation
from segmint.model.automatic.rle import Rle, decode, encode_runs
from segmint.model.sam.geometry import Geometry
from segmint.model.sam.predictor import Embedding, Predictor
from segmint.operators.annotations.folder import iou

STABILITY_OFFSET = 1.0

# Relative rounding difference of the weighted means: float32's unit roundoff times the number of operations in both
# orders.
DIFFERENCE = 32 * 2.0**-24
_SOLID = STABILITY_OFFSET * (1 + 2.0**-10)  # a mean of logits over this exceeds the offset despite rounding

_MOST_DOUBTS = 64  # maximum number of pixels near 0 that are corrected at a time
_COLUMNS = 64
_PIXELS = 1 << 18
_PRODUCT = 1 << 18  # multiplications; beyond that, BLAS would wake other threads, which takes longer than they save
_GAP = 64  # solid columns; narrower gaps are computed, too, instead of splitting a span

_TRIED = 12  # rows that are compared with torch's
_UNITS = 32


@dataclass(frozen=True)
class DrawnMask:
    """Mask in the image's frame. `bbox` is (x, y, width, height), as in the dataset."""

    counts: str
    area: int
    stability: float
    bbox: tuple[float, float, float, float]


class DoubtfulError(Exception):
    """Error that reports too many upscaled logits near 0."""


def draw_mask(predictor: Predictor, embedding: Embedding, logits: Tensor) -> DrawnMask:
    """Upscale logits (256, 256) float32 and return the mask of the pixels whose logits are over 0."""
    if logits.device.type == "cpu":
        try:
            return draw_border(logits, embedding, predictor.sam.geometry)
        except DoubtfulError:
            pass
    values: Floats32 = predictor.upscale(logits[None, None], embedding)[0, 0].cpu().numpy()
    changes = _ColumnRuns(embedding.frame_size, 0)
    changes.add(values > 0, 0)
    return changes.mask(
        _stability(*(int(np.count_nonzero(values > each)) for each in (STABILITY_OFFSET, -STABILITY_OFFSET)))
    )


def prepare_drawing(predictor: Predictor, embedding: Embedding) -> None:
    """Precompute the interpolations for images of this size, so that the first click doesn't wait for them."""
    axes_of(predictor.sam.geometry, embedding.input_size, embedding.frame_size)


class _ColumnRuns:
    """Starts and ends of a mask's runs in each column, collected band by band. `left` is the x of the first column."""

    def __init__(self, frame: tuple[int, int], left: int) -> None:
        self._frame = frame
        self._left = left
        self._above: Bools | None = None
        self._next = 0
        self._found: list[Ints] = []

    def add(self, rows: Bools, first: int) -> None:
        """Add the next rows, (n, width) bool. `first` is the row of the frame that they start at."""
        if self._above is None:
            self._note(np.flatnonzero(rows[0]), first)
        else:
            self._note(np.flatnonzero(rows[0] != self._above), first)
        inside = np.flatnonzero(rows[1:] != rows[:-1])
        row, column = np.divmod(inside, rows.shape[1])
        self._found.append((column + self._left) * (self._frame[0] + 1) + row + first + 1)
        self._above = rows[-1].copy()
        self._next = first + len(rows)

    def mask(self, stability: float) -> DrawnMask:
        """Combine the added rows into a mask."""
        height = self._frame[0]
        if self._above is not None:
            self._note(np.flatnonzero(self._above), self._next)
        # An extra row per column keeps the end of one column distinct from the start of the next.
        places = np.sort(np.concatenate([np.zeros(0, np.int64), *self._found]))
        column, row = np.divmod(places, height + 1)
        positions = column * height + row
        starts, ends = positions[0::2], positions[1::2]
        area = int((ends - starts).sum())
        box = (0.0, 0.0, 0.0, 0.0)
        if area:
            x, y = int(column[0]), int(row[0::2].min())
            box = (float(x), float(y), float(column[-1] - x), float(row[1::2].max() - 1 - y))
        stability = 0.0 if math.isnan(stability) else stability
        return DrawnMask(encode_runs(starts, ends, self._frame).counts, area, stability, box)

    def _note(self, columns: Ints, row: int) -> None:
        self._found.append((columns + self._left) * (self._frame[0] + 1) + row)


def draw_border(logits: Tensor, embedding: Embedding, geometry: Geometry) -> DrawnMask:
    """Draw a mask by computing only the pixels around its border. Raises `DoubtfulError` if too many are near 0."""
    axes = axes_of(geometry, embedding.input_size, embedding.frame_size)
    low = logits.numpy()
    over = low > -STABILITY_OFFSET
    x0, y0, x1, y1 = box_of(over)
    down, across = axes.rows.reach(y0, y1), axes.columns.reach(x0, x1)
    width = across.stop - across.start
    changes = _ColumnRuns(embedding.frame_size, across.start)
    if not over.any() or down.stop <= down.start or width < 1:
        return changes.mask(math.nan)
    margin = float(np.abs(low).max()) * DIFFERENCE
    touched = axes.rows.touched(down)
    wide = _widened(low[touched], axes.columns, across)
    inner = outer = 0
    step = max(1, _PIXELS // width)
    for start in range(down.start, down.stop, step):
        band = slice(start, min(start + step, down.stop))
        near = axes.rows.touched(band)
        inside, outside = _solid(low[near], axes.columns.touches[across])
        mask = np.empty((band.stop - band.start, width), np.bool_)
        mask[:] = inside
        solid = inside.copy()
        weights = axes.rows.weights[band, near].numpy()
        given = wide[near.start - touched.start : near.stop - touched.start]
        for left, right in _spans(~(inside | outside), _PRODUCT // weights.size):
            values = weights @ given[:, left:right]
            part = np.greater(values, 0, out=mask[:, left:right])
            if np.count_nonzero(values > margin) != np.count_nonzero(values > -margin):
                axes.settle(values, part, logits, (start, across.start + left), margin)
            inner += int(np.count_nonzero(values > STABILITY_OFFSET))
            outer += int(np.count_nonzero(values > -STABILITY_OFFSET))
            solid[left:right] = False
        whole = int(np.count_nonzero(solid)) * len(mask)
        inner, outer = inner + whole, outer + whole
        changes.add(mask, start)
    return changes.mask(_stability(inner, outer))


def _stability(inner: int, outer: int) -> float:
    """Return the IoU of the masks at +1 and -1, given their areas. The mask at +1 lies inside the mask at -1."""
    return inner / outer if outer else math.nan


def _solid(logits: Floats32, touches: Ints) -> tuple[Bools, Bools]:
    """Return two masks (width,): the columns inside the mask at +1, and the columns outside the mask at -1.

    `logits` are (n, 256). `touches` (width, 2) contains the start and end of the logits that each column touches. A
    column is inside if all of these logits exceed the offset, and outside if all are below its negative.
    """
    start, end = touches.T
    found = []
    for odd in (logits.min(axis=0) <= _SOLID, logits.max(axis=0) >= -_SOLID):
        count = np.concatenate(([0], np.cumsum(odd)))
        found.append(count[start] == count[end])
    return found[0], found[1]


def _widened(logits: Floats32, columns: Interpolation, across: slice) -> Floats32:
    """Interpolate logits (n, 256) along their rows to the pixel columns `across`, (n, width)."""
    wide = np.empty((len(logits), across.stop - across.start), np.float32)
    for start in range(0, wide.shape[1], _COLUMNS):
        span = slice(across.start + start, min(across.start + start + _COLUMNS, across.stop))
        near = columns.touched(span)
        wide[:, start : start + _COLUMNS] = logits[:, near] @ columns.weights[span, near].numpy().T
    return wide


def _spans(wanted: Bools, most: int) -> Iterator[tuple[int, int]]:
    """Split the wanted columns into spans (start, end) of at most `most` columns, which include small gaps."""
    places = np.flatnonzero(wanted)
    if places.size:
        cuts = np.flatnonzero(np.diff(places) > _GAP)
        starts = places[np.concatenate(([0], cuts + 1))]
        ends = places[np.concatenate((cuts, [places.size - 1]))] + 1
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            yield from ((left, min(left + most, end)) for left in range(start, end, most))


@dataclass(frozen=True)
class Step:
    """Interpolation step along the rows.

    Each new row is a mean of the given rows `before` and `after` it; `weight` is the weight of the row after it.
    """

    before: Ints
    after: Ints
    weight: Floats32

    @classmethod
    def make(cls, given: int, wanted: int) -> "Step | None":
        """Compute the step from `given` to `wanted` rows in float32. Return None if torch uses different weights."""
        scale = np.float32(given) / np.float32(wanted)
        middle = np.maximum(scale * (np.arange(wanted, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
        before = np.minimum(middle.astype(np.int64), given - 1)
        after = np.minimum(before + 1, given - 1)
        weight = np.clip(middle - before.astype(np.float32), 0, 1, dtype=np.float32)
        units = (torch.arange(given) % _UNITS == torch.arange(_UNITS)[:, None]).float()[None, :, :, None]
        found = F.interpolate(units, (wanted, 1), mode="bilinear", align_corners=False)[0, :, :, 0].numpy()
        apart = np.flatnonzero(before != after)
        is_torchs = np.array_equal(found[after[apart] % _UNITS, apart], weight[apart])
        reached = (np.float32(2) * weight + np.float32(1)) / np.float32(2) - np.float32(0.5)
        return cls(before, after, weight) if is_torchs and np.array_equal(reached, weight) else None

    def row(self, pair: Tensor, row: int, width: int) -> Tensor:
        """Interpolate one row (width,) from the two rows (2, n) around it."""
        # torch places the first row at half the scale minus one half, so this scale results in the wanted weight.
        scale = 1 / (2 * float(self.weight[row]) + 1)
        drawn: Tensor = torch.ops.aten.upsample_bilinear2d(pair[None, None], [1, width], False, scale, None)
        return drawn[0, 0, 0]


@dataclass(frozen=True)
class ExactRows:
    """Rows of upscaled logits for one image size, computed one at a time, with the same bits as `Predictor.upscale`.

    torch's bilinear interpolation computes a row from two rows and a weight, always in the same way. To reproduce a
    single row, the two rows are interpolated at a scale that results in the same weight. Some weights can't be reached
    this way, and torch uses a different kernel for small images. Therefore, `make` tries some rows of each image size
    first, and returns None if the bits differ.
    """

    side: int
    filled: int  # columns of the square input without the padding
    width: int
    square: Step
    frame: Step

    @classmethod
    def make(cls, low_side: int, side: int, input_size: Size, frame_size: Size) -> "ExactRows | None":
        """Prepare the rows for one image size. Return None if torch computes single rows differently."""
        square, frame = Step.make(low_side, side), Step.make(input_size[0], frame_size[0])
        if square is None or frame is None:
            return None
        rows = cls(side, input_size[1], frame_size[1], square, frame)
        noise = torch.randn(low_side, low_side, generator=torch.Generator().manual_seed(0))
        padded = F.interpolate(noise[None, None], (side, side), mode="bilinear", align_corners=False)
        filled = padded[..., : input_size[0], : input_size[1]]
        whole = F.interpolate(filled, frame_size, mode="bilinear", align_corners=False)[0, 0].numpy()
        tried = np.unique(np.linspace(0, frame_size[0] - 1, _TRIED).astype(np.int64)).tolist()
        return rows if all(np.array_equal(rows.row(noise, row), whole[row]) for row in tried) else None

    def row(self, logits: Tensor, row: int) -> Floats32:
        """Compute one row (width,) of the frame from logits (256, 256)."""
        with torch.inference_mode():
            near = [
                self.square.row(logits[[self.square.before[at], self.square.after[at]]], at, self.side)
                for at in (int(self.frame.before[row]), int(self.frame.after[row]))
            ]
            drawn: Floats32 = self.frame.row(torch.stack(near)[:, : self.filled], row, self.width).numpy()
            return drawn


@dataclass(frozen=True)
class _AxisInterpolations:
    """Interpolations along both axes for one image size, about 4 MB for a frame of 1500 x 2250 pixels."""

    rows: Interpolation
    columns: Interpolation
    exact: ExactRows | None  # None if torch computes single rows differently, or upscales in one step

    def settle(
        self,
        values: Floats32,
        mask: Bools,
        logits: Tensor,
        corner: tuple[int, int],
        margin: float,
    ) -> None:
        """Correct the pixels of a mask (h, w) whose `values` are near 0 so that they equal the predictor's.

        `corner` is the (row, column) in the frame of the mask's first pixel. Raises `DoubtfulError` if too many pixels
        are near 0.
        """
        rows, columns = np.nonzero(np.abs(values) <= margin)
        if rows.size > _MOST_DOUBTS or self.exact is None:
            raise DoubtfulError
        low = logits.numpy()
        doubts: dict[int, list[int]] = {}
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            (y0, y1), (x0, x1) = self.rows.touches[corner[0] + row], self.columns.touches[corner[1] + column]
            if abs(values[row, column]) <= float(np.abs(low[y0:y1, x0:x1]).max()) * DIFFERENCE:
                doubts.setdefault(row, []).append(column)
        for row, places in doubts.items():
            exact = self.exact.row(logits, corner[0] + row)
            mask[row, places] = exact[[corner[1] + place for place in places]] > 0


@lru_cache(maxsize=16)
def axes_of(geometry: Geometry, input_size: Size, frame_size: Size) -> _AxisInterpolations:
    """Return the interpolations of an image with these sizes. They are cached, because images have few sizes."""
    vertical, horizontal = zip(input_size, frame_size, strict=True)
    has_two_steps = geometry.placement == "padded"
    return _AxisInterpolations(
        interpolation(*geometry.mask_axis(*vertical)),
        interpolation(*geometry.mask_axis(*horizontal)),
        ExactRows.make(geometry.low_res_size, geometry.image_size, input_size, frame_size) if has_two_steps else None,
    )


LEAST_PIXELS = 100
"""Area in pixels below which specks are removed and holes are filled."""

LEAST_IOU = 0.98
"""Minimum IoU between a mask and its cleaned version. If it is lower, the mask stays unchanged."""


def clean_mask(mask: Rle) -> Rle:
    """Remove the small specks and holes of a nonempty mask, unless that would change the mask too much.

    If every piece of the mask is small, the largest piece stays.
    """
    pixels = decode(mask)
    cleaned = clean_patch(MaskPatch.pack(pixels, box_of(pixels)), mask.size, LEAST_PIXELS, keep_largest=True).patch
    if cleaned is None:
        return mask
    found = cleaned.encode(mask.size)
    codes = [{"size": list(mask.size), "counts": each.counts.encode()} for each in (mask, found)]
    return found if float(iou(codes[:1], codes[1:])[0][0]) >= LEAST_IOU else mask


MOST_POINTS = 1000
_HANDLE = 64  # characters


class MaskPart(StrEnum):
    """Choice among the masks of a single prompt."""

    AUTO = "auto"
    WHOLE = "whole"
    PART = "part"
    SUBPART = "subpart"


@dataclass(frozen=True)
class ClickPrompt:
    """Prompt for the model, with coordinates in pixels of the image.

    `points` contains (x, y, label), and `box` is (x, y, width, height). A prompt can correct an earlier result: `mask`
    contains the run lengths of a mask to correct, and `after` is the handle of a prediction to correct.
    """

    points: tuple[tuple[float, float, int], ...] = ()
    box: tuple[float, float, float, float] | None = None
    mask: str | None = None
    after: str | None = None
    part: MaskPart = MaskPart.AUTO

    @property
    def is_several(self) -> bool:
        """True if the prompt contains several points, or combines points and a box."""
        return len(self.points) + (self.box is not None) > 1


def parse_prompt(value: Any, size: Size) -> ClickPrompt:
    """Parse a request body for an image of `size` (height, width). Raises `UsageError` if it is invalid."""
    if not isinstance(value, Mapping) or not isinstance(value.get("prompt"), Mapping):
        raise UsageError("expected {prompt: {points, box, mask, from}, part}")
    said, part = value["prompt"], value.get("part", MaskPart.AUTO)
    unknown = {*said} - {"points", "box", "mask", "from"} | {*value} - {"prompt", "part"}
    if unknown:
        raise UsageError(f"unknown: {', '.join(sorted(map(str, unknown)))[:100]}")
    if not isinstance(part, str) or part not in set(MaskPart):
        raise UsageError(f"part: expected one of {', '.join(MaskPart)}")
    points, box, mask, after = (said.get(name) for name in ("points", "box", "mask", "from"))
    if not isinstance(points or [], list) or len(points or []) > MOST_POINTS:
        raise UsageError(f"points: expected a list of at most {MOST_POINTS} [x, y, label]")
    prompt = ClickPrompt(
        points=tuple(_point(point, size) for point in points or []),
        box=None if box is None else _box(box, size),
        mask=None if mask is None else checked_counts(mask, size),
        after=after,
        part=MaskPart(part),
    )
    if after is not None and not (isinstance(after, str) and len(after) <= _HANDLE):
        raise UsageError("from: expected a handle")
    if not (prompt.points or prompt.box or prompt.mask):
        raise UsageError("expected points, a box, or a mask")
    starts = prompt.box or prompt.mask or after
    if prompt.points and not starts and not any(label for _, _, label in prompt.points):
        raise UsageError("points: only background points given; expected at least one inside the object")
    return prompt


def _numbers(value: Any, count: int) -> list[float]:
    if not isinstance(value, list) or len(value) != count:
        return []
    plain = all(isinstance(each, int | float) and not isinstance(each, bool) for each in value)
    return [float(each) for each in value] if plain and all(map(_is_finite, value)) else []


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _point(value: Any, size: Size) -> tuple[float, float, int]:
    height, width = size
    numbers = _numbers(value, 3)
    if not numbers or numbers[2] not in (0, 1) or not (0 <= numbers[0] <= width and 0 <= numbers[1] <= height):
        raise UsageError(f"points: expected [x, y, 0 or 1] inside the {width} x {height} pixels")
    return numbers[0], numbers[1], int(numbers[2])


def _box(value: Any, size: Size) -> tuple[float, float, float, float]:
    height, width = size
    x, y, w, h = _numbers(value, 4) or [-1.0] * 4
    if not (w > 0 and h > 0 and x >= 0 and y >= 0 and x + w <= width + 1e-6 and y + h <= height + 1e-6):
        raise UsageError(f"box: expected [x, y, w, h] inside the {width} x {height} pixels, with an area")
    return x, y, w, h


def checked_counts(value: Any, size: Size) -> str:
    """Return a mask's run lengths. Raises `UsageError` if they don't fit an image of `size` (height, width)."""
    if not isinstance(value, str):
        raise UsageError("mask: expected run lengths")
    try:
        area = canonical_area(value, size)
    except ValueError as error:
        raise UsageError(f"mask: {error}") from error
    if not area:
        raise UsageError("mask: it has no pixels")
    return value
