"""The masks of a shard, image by image: their rows, and whether a vectorized check passed them, `sound_masks`."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pycocotools import mask as coco

from segmint.catalogs.findings import Code, Finding, FindingLocation
from segmint.model.automatic.rle import decompress_many
from segmint.operators.audit.mask_columns import Floats, Ints, MaskColumns
from segmint.operators.audit.masks import PLAUSIBLE_IOU, MaskLimits
from segmint.operators.audit.origins import (
    MaskOrigins,
    annotated_images,
    audit_next_mask,
    audit_origins,
    codes_hold,
)
from segmint.operators.audit.rows import ShardTables, int_column
from segmint.operators.rows import Row
from segmint.operators.schemas import MASKS_PER_IMAGE_LIMIT
from segmint.operators.segment.artifacts import RedactionArtifacts

Bools = NDArray[np.bool_]


class ShardMasks:
    """The masks of a shard in whose tables `audit_identity` found nothing wrong. Images are named by their ordinals."""

    def __init__(self, tables: ShardTables, limits: MaskLimits | None, artifacts: RedactionArtifacts | None) -> None:
        """`limits` are the thresholds of the scores, as in `segmint.operators.audit.masks.audit_masks`.

        `artifacts` are those of `segmint.operators.audit.origins.audit_origins`.
        """
        self._table = tables.masks
        ordinals, owners = int_column(tables.images, "ordinal"), int_column(tables.masks, "ordinal")
        starts, stops = (np.searchsorted(owners, ordinals, side) for side in ("left", "right"))
        self._spans = dict(zip(ordinals.tolist(), zip(starts.tolist(), stops.tolist(), strict=True), strict=True))
        self._columns = MaskColumns.of(tables.masks)
        sides = [tables.images.column(name).fill_null(-1).to_numpy() for name in ("height", "width")]
        sizes = np.repeat(np.stack(sides, axis=1).astype(np.int64), stops - starts, axis=0)
        wrong = np.cumsum(np.concatenate(([0], ~sound_masks(self._columns, sizes, limits))))
        self._sound = frozenset(ordinals[wrong[starts] == wrong[stops]].tolist())
        self._origins = MaskOrigins.of(tables.masks)
        self._artifacts = artifacts
        self._ids = int_column(tables.masks, "annotation_id")
        self._annotated = annotated_images(tables.images, tables.masks)
        self._worked_on = self._annotated | masks_of_work(tables.masks)

    def count(self, ordinal: int) -> int:
        """How many masks an image has."""
        start, stop = self._spans[ordinal]
        return int(stop - start)

    def sound(self, ordinal: int) -> bool:
        """Whether `audit_masks`, without decoding, would find nothing in an image's masks."""
        return ordinal in self._sound

    def annotated(self, ordinal: int) -> bool:
        """Whether people worked on an image."""
        return ordinal in self._annotated

    def audit_origins(self, row: Row, place: FindingLocation) -> Iterator[Finding]:
        """Findings in where the masks of an image come from; `row` is its row of `images`."""
        start, stop = self._spans[row["ordinal"]]
        codes: list[str] | None = [text.decode(errors="replace") for text in self._columns.text(start, stop)]
        if not self.sound(row["ordinal"]) and not codes_hold(self.table_rows(row["ordinal"]), row):
            codes = None
        ids = self._ids[start:stop].tolist()
        if self.annotated(row["ordinal"]):
            yield from audit_next_mask(row, ids, place, self._origins.source[start:stop])
        yield from audit_origins(row, self._origins, (start, stop), codes, ids, place, self._artifacts)

    def audit_work(self, row: Row, images: FindingLocation, place: FindingLocation) -> Iterator[Finding]:
        """Findings in what the row of an image, and those of its masks, say of people's work; see `people`."""
        if row["ordinal"] in self._worked_on:
            yield from audit_work(row, self.table_rows(row["ordinal"]), images, place)

    def table_rows(self, ordinal: int) -> list[Row]:
        """The rows of an image's masks, with all columns."""
        start, stop = self._spans[ordinal]
        rows: list[Row] = self._table.slice(start, stop - start).to_pylist()
        return rows

    def annotations(self, ordinal: int) -> Sequence[Row]:
        """The same with the keys that `annotations_json` takes, and for sound masks in a tenth of the time."""
        span = self._spans[ordinal]
        rows = list(self._columns.rows(*span)) if self.sound(ordinal) else self.table_rows(ordinal)
        if not self.annotated(ordinal):
            return rows
        first = (ordinal + 1) * MASKS_PER_IMAGE_LIMIT
        return [{**row, "index": id - first} for row, id in zip(rows, self._ids[slice(*span)].tolist(), strict=True)]


_SHA256 = re.compile(r"[0-9a-f]{64}")
_OF_MASKS = ("parent", "seconds", "origin", "model")


def masks_of_work(masks: pa.Table) -> frozenset[int]:
    """Return the ordinals of images whose masks have one of the columns that `audit_work` checks."""
    said = [masks.filter(pc.is_valid(masks.column(name))).column("ordinal") for name in _OF_MASKS]
    return frozenset(ordinal for column in said for ordinal in column.to_pylist())


def audit_work(row: Row, masks: Sequence[Row], images: FindingLocation, place: FindingLocation) -> Iterator[Finding]:
    """Findings in what an image's row, and the rows of its `masks`, say of people's work.

    `images` and `place` are where findings in the image's row and in those of its masks are made. A mask was made from
    an earlier one of its image, which may be gone; hashes are 64 hexadecimal digits in lower case.
    """
    where = f"id {row['id']}"
    yield from _seconds(row["seconds"], images, where, None)
    if row["submission"] is not None:
        yield from _hash("submission.sha256", row["submission"]["sha256"], images, where, None)
    first = row["id"] * MASKS_PER_IMAGE_LIMIT
    for mask in masks:
        id = mask["annotation_id"]
        where = f"mask {id}"
        if mask["parent"] is not None and not first <= mask["parent"] < id:
            expected = f"a parent from {first} to {id - 1}" if id > first else "no parent: it is its image's first mask"
            yield place.finding(Code.UNKNOWN_PARENT, expected, mask["parent"], where, mask=id)
        yield from _seconds(mask["seconds"], place, where, id)
        if mask["origin"] is not None:
            yield from _hash("origin.sha256", mask["origin"]["sha256"], place, where, id)
        if mask["model"] is not None:
            yield from _hash("model", mask["model"], place, where, id)


def _seconds(value: float | None, place: FindingLocation, where: str, mask: int | None) -> Iterator[Finding]:
    if value is not None and not 0 <= value < math.inf:
        yield place.finding(Code.BAD_SECONDS, "seconds of 0 or more", value, where, mask=mask)


def _hash(name: str, value: Any, place: FindingLocation, where: str, mask: int | None) -> Iterator[Finding]:
    if value is None or not _SHA256.fullmatch(value):
        yield place.finding(Code.BAD_HASH, f"{name} of 64 hexadecimal digits", repr(value), where, mask=mask)


_LAST_PIXEL = np.array([0.0, 0.0, 1.0, 1.0])
"""COCO's boxes count pixels, ours reach from the first to the last."""

_TEXT_AT_ONCE = 1 << 18
"""Bytes of run lengths that are decoded together: the result stays in a core's cache."""

_COCO_AT_ONCE = 255
"""Masks that pycocotools measures together: of more, version 2.0.11 gives no areas."""


def sound_masks(columns: MaskColumns, sizes: Ints, limits: MaskLimits | None) -> Bools:
    """Which of N masks have no finding by `audit_masks`, which looks at the others, without decoding; (N,).

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
