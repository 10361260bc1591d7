"""Vectorized check: which masks need no closer look. `segmint.operators.audit.masks` looks at the others."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from segmint.model.automatic.rle import decompress_many
from segmint.operators.audit.mask_columns import Floats, Ints, MaskColumns
from segmint.operators.audit.masks import PLAUSIBLE_IOU, MaskLimits

Bools = NDArray[np.bool_]

_LAST_PIXEL = np.array([0.0, 0.0, 1.0, 1.0])
"""COCO's boxes count pixels, ours reach from the first to the last."""

_TEXT_AT_ONCE = 1 << 18
"""Bytes of run lengths that are decoded together: the result stays in a core's cache."""

_COCO_AT_ONCE = 255
"""Masks that pycocotools measures together: of more, version 2.0.11 gives no areas."""


def sound_masks(columns: MaskColumns, sizes: Ints, limits: MaskLimits | None) -> Bools:
    """Which of N masks have no finding by `audit_masks` without decoding; (N,).

    `sizes` (N, 2) are height and width of each one's image, -1 if not known. False does not mean
    that there is a finding.
    """
    sound: Bools = (columns.size == sizes).all(axis=1) & (sizes > 0).all(axis=1)
    with np.errstate(invalid="ignore", over="ignore"):  # numbers without bounds may be anything
        sound &= _scores_hold(columns, limits) & _frames_hold(columns, sizes)
    for part in _parts(columns.counts_ends):
        sound[part] &= _codes_hold(columns, part, sizes[part])
    _measure(columns, sound)
    return sound


def _scores_hold(columns: MaskColumns, limits: MaskLimits | None) -> Bools:
    iou, stability = columns.predicted_iou, columns.stability_score
    low, high = PLAUSIBLE_IOU
    hold: Bools = ((iou >= low) & (iou <= high)) | columns.without_iou
    hold &= ((stability >= 0) & (stability <= 1)) | columns.without_stability
    # Scores were held against the thresholds in float32.
    if limits is not None and limits.pred_iou_thresh > 0:
        hold &= (iou > float(np.float32(limits.pred_iou_thresh))) | columns.by_people
    if limits is not None and limits.stability_score_thresh > 0:
        hold &= (stability >= float(np.float32(limits.stability_score_thresh))) | columns.by_people
    return hold


def _frames_hold(columns: MaskColumns, sizes: Ints) -> Bools:
    """Crops in their images and with points in them, boxes in their images; NaN is in nothing."""
    crop = columns.crop_box
    points = np.diff(columns.points_ends, prepend=0)
    hold: Bools = ((points > 0) | columns.without_points) & (crop[:, 2:] > 0).all(axis=1)
    hold &= _inside(crop, sizes) & _inside(columns.bbox + _LAST_PIXEL, sizes)
    crops = np.repeat(crop, points, axis=0)
    within = (columns.points >= crops[:, :2]) & (columns.points <= crops[:, :2] + crops[:, 2:])
    beside = np.flatnonzero(~within.all(axis=1))
    hold[np.searchsorted(columns.points_ends, beside, side="right")] = False
    return hold


def _inside(boxes: Floats, sizes: Ints) -> Bools:
    """Whether boxes [x, y, width, height] lie in images of [height, width]."""
    inside = (boxes[:, :2] >= 0) & (boxes[:, :2] + boxes[:, 2:] <= sizes[:, ::-1])
    return np.asarray(inside.all(axis=1), bool)


def _parts(ends: Ints) -> Iterator[slice]:
    """Masks with about `_TEXT_AT_ONCE` bytes of run lengths each time, or one with more; `ends` are those of each."""
    start = done = 0
    while start < len(ends):
        stop = max(start + 1, int(np.searchsorted(ends, done + _TEXT_AT_ONCE, side="right")))
        yield slice(start, stop)
        start, done = stop, int(ends[stop - 1])


def _codes_hold(columns: MaskColumns, part: slice, sizes: Ints) -> Bools:
    """Whether run lengths can be read, and cover each one's image with none that is negative or longer."""
    begin = int(columns.counts_ends[part.start - 1]) if part.start else 0
    ends = columns.counts_ends[part] - begin
    counts, count_ends, _ = decompress_many(columns.counts[begin : begin + int(ends[-1])], ends)
    starts = np.concatenate(([0], count_ends[:-1]))
    some = count_ends > starts  # nothing can be read of a damaged one
    hold = some.copy()
    hold[some] = np.add.reduceat(counts, starts[some]) == np.prod(sizes[some], axis=1) if some.any() else False
    # The sum of longer ones than the image may wrap around to the right one.
    pixels = np.repeat(np.prod(sizes, axis=1), count_ends - starts)
    hold[np.searchsorted(count_ends, np.flatnonzero((counts < 0) | (counts > pixels)), side="right")] = False
    return hold


def _measure(columns: MaskColumns, sound: Bools) -> None:
    """Takes masks whose area or box is not the one that pycocotools finds from `sound`.

    It trusts its input, so it gets only masks that are sound so far.
    """
    places = np.flatnonzero(sound)
    for begin in range(0, len(places), _COCO_AT_ONCE):
        part = places[begin : begin + _COCO_AT_ONCE]
        first = int(part[0])
        texts = columns.text(first, int(part[-1]) + 1)
        sizes = columns.size[part].tolist()
        codes = [{"size": size, "counts": texts[place - first]} for size, place in zip(sizes, part, strict=True)]
        areas = np.asarray(coco.area(codes), np.int64)
        around = coco.toBbox(codes) - _LAST_PIXEL
        sound[part] = (areas > 0) & (areas == columns.area[part]) & (around == columns.bbox[part]).all(axis=1)
