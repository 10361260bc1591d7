"""A shard's masks by image, with a vectorized check, `sound_masks`, that avoids auditing most of them one by one."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pycocotools import mask as coco

from segmint.catalogs.findings import Code, Finding, FindingLocation
from segmint.infra.arrays import Bools, Floats, Ints
from segmint.model.automatic.rle import decompress_many
from segmint.operators.audit.masks import MaskColumns, MaskLimits
from segmint.operators.audit.rows import ShardTables, int_column
from segmint.operators.audit.submissions import (
    MaskOrigins,
    annotated_images,
    audit_next_mask,
    audit_origins,
    codes_hold,
)
from segmint.operators.redactions import container_ids
from segmint.operators.rows import MASKS_PER_IMAGE_LIMIT, PLAUSIBLE_IOU, Row


class ShardMasks:
    """Masks of a shard, grouped by image. The shard's tables must have passed `audit_identity`.

    Methods identify an image by its ordinal.
    """

    def __init__(self, tables: ShardTables, limits: MaskLimits | None) -> None:
        """Run the vectorized check on all masks.

        For `limits`, see `segmint.operators.audit.masks.audit_masks` and
        `segmint.operators.audit.submissions.audit_origins`.
        """
        self._table = tables.masks
        ordinals, owners = int_column(tables.images, "ordinal"), int_column(tables.masks, "ordinal")
        starts, stops = (np.searchsorted(owners, ordinals, side) for side in ("left", "right"))
        self._spans = dict(zip(ordinals.tolist(), zip(starts.tolist(), stops.tolist(), strict=True), strict=True))
        self._columns = MaskColumns.of(tables.masks, limits)
        sides = [int_column(tables.images, name) for name in ("height", "width")]
        sizes = np.repeat(np.stack(sides, axis=1), stops - starts, axis=0)
        wrong = np.cumsum(np.concatenate(([0], ~sound_masks(self._columns, sizes, limits))))
        self._sound = frozenset(ordinals[wrong[starts] == wrong[stops]].tolist())
        self._origins = MaskOrigins.of(tables.masks)
        applied = pc.is_in(
            tables.masks.column("model"), pa.array(sorted(limits.applied if limits else ()), pa.string())
        )
        self._applied = frozenset(tables.masks.filter(applied).column("annotation_id").to_pylist())
        self._limits = limits
        self._ids = int_column(tables.masks, "annotation_id")
        self._annotated = annotated_images(tables.images, tables.masks)
        self._worked_on = self._annotated | masks_of_work(tables.masks)

    def count(self, ordinal: int) -> int:
        """Return the number of masks in an image."""
        start, stop = self._spans[ordinal]
        return int(stop - start)

    def sound(self, ordinal: int) -> bool:
        """Return whether the vectorized check shows that all of an image's masks pass `audit_masks`."""
        return ordinal in self._sound

    def annotated(self, ordinal: int) -> bool:
        """Return whether an image is annotated."""
        return ordinal in self._annotated

    def audit_origins(self, row: Row, place: FindingLocation) -> Iterator[Finding]:
        """Yield findings about the origins of an image's masks. `row` is the image's row of `images`."""
        start, stop = self._spans[row["ordinal"]]
        codes: list[str] | None = [text.decode(errors="replace") for text in self._columns.text(start, stop)]
        if not self.sound(row["ordinal"]) and not codes_hold(self.table_rows(row["ordinal"]), row):
            codes = None
        ids = self._ids[start:stop].tolist()
        if self.annotated(row["ordinal"]):
            yield from audit_next_mask(row, ids, place, self._origins.source[start:stop], self._applied)
        yield from audit_origins(row, self._origins, (start, stop), codes, ids, place, self._limits)

    def audit_containers(self, row: Row, place: FindingLocation) -> Iterator[Finding]:
        """Yield findings for masks whose container differs from the one computed from the pixels.

        If no mask of the image has a container, they may be unknown, so the image is skipped. Images with damaged run
        lengths and masks that `audit_origins` reports are skipped as well.
        """
        start, stop = self._spans[row["ordinal"]]
        masks, ids = self.table_rows(row["ordinal"]), self._ids[start:stop].tolist()
        found = [mask["container"] for mask in masks]
        if found.count(None) == len(found) or not codes_hold(masks, row):
            return
        reported = self._origins.bad_container[start:stop]
        for id, said, wanted, bad in zip(ids, found, container_ids(masks, ids), reported, strict=True):
            if said != wanted and not bad:
                expected = f"container {wanted}, the smallest mask that contains it"
                yield place.mask_finding(id, Code.BAD_CONTAINER, expected, said)

    def audit_work(self, row: Row, images: FindingLocation, place: FindingLocation) -> Iterator[Finding]:
        """Yield findings about the annotation columns of an image and its masks; see the function `audit_work`."""
        if row["ordinal"] in self._worked_on:
            yield from audit_work(row, self.table_rows(row["ordinal"]), images, place)

    def table_rows(self, ordinal: int) -> list[Row]:
        """Return the rows of an image's masks, with all columns."""
        start, stop = self._spans[ordinal]
        rows: list[Row] = self._table.slice(start, stop - start).to_pylist()
        return rows

    def annotations(self, ordinal: int) -> Sequence[Row]:
        """Return the rows of an image's masks with only the keys that `annotations_json` needs.

        For an image whose masks are sound, this is ten times as fast as `table_rows`.
        """
        span = self._spans[ordinal]
        rows = list(self._columns.rows(*span)) if self.sound(ordinal) else self.table_rows(ordinal)
        if not self.annotated(ordinal):
            return rows
        first = (ordinal + 1) * MASKS_PER_IMAGE_LIMIT
        return [{**row, "index": id - first} for row, id in zip(rows, self._ids[slice(*span)].tolist(), strict=True)]


_SHA256 = re.compile(r"[0-9a-f]{64}")
_OF_MASKS = ("parent", "seconds", "origin", "model")


def masks_of_work(masks: pa.Table) -> frozenset[int]:
    """Return the ordinals of images with a mask that has a value in one of the columns that `audit_work` checks."""
    said = [masks.filter(pc.is_valid(masks.column(name))).column("ordinal") for name in _OF_MASKS]
    return frozenset(ordinal for column in said for ordinal in column.to_pylist())


def audit_work(row: Row, masks: Sequence[Row], images: FindingLocation, place: FindingLocation) -> Iterator[Finding]:
    """Yield findings about the annotation columns of an image's row and of its `masks`' rows.

    `images` and `place` locate findings in the image's row and in the masks' rows. A mask's parent must be an earlier
    mask of the same image, which may have been deleted since. Hashes must be 64 lowercase hexadecimal digits.
    """
    report = partial(images.image_finding, row["id"])
    yield from _seconds(row["seconds"], report)
    if row["masks_model"] is not None:
        yield from _hash("masks_model", row["masks_model"], report)
    if row["submission"] is not None:
        yield from _hash("submission.sha256", row["submission"]["sha256"], report)
    first = row["id"] * MASKS_PER_IMAGE_LIMIT
    for mask in masks:
        id = mask["annotation_id"]
        report = partial(place.mask_finding, id)
        if mask["parent"] is not None and not first <= mask["parent"] < id:
            expected = f"a parent from {first} to {id - 1}" if id > first else "no parent: it is its image's first mask"
            yield report(Code.UNKNOWN_PARENT, expected, mask["parent"])
        yield from _seconds(mask["seconds"], report)
        if mask["origin"] is not None:
            yield from _hash("origin.sha256", mask["origin"]["sha256"], report)
        if mask["model"] is not None:
            yield from _hash("model", mask["model"], report)


def _seconds(value: float | None, report: Callable[..., Finding]) -> Iterator[Finding]:
    if value is not None and not 0 <= value < math.inf:
        yield report(Code.BAD_SECONDS, "seconds of 0 or more", value)


def _hash(name: str, value: Any, report: Callable[..., Finding]) -> Iterator[Finding]:
    if value is None or not _SHA256.fullmatch(value):
        yield report(Code.BAD_HASH, f"{name} of 64 hexadecimal digits", repr(value))


_LAST_PIXEL = np.array([0.0, 0.0, 1.0, 1.0])
"""Offset from COCO's boxes, which count pixels, to ours, which extend from the first pixel to the last."""

TEXT_AT_ONCE = 1 << 18
"""Number of bytes of run lengths to decode at once. The result then fits in a core's cache."""

_COCO_AT_ONCE = 255
"""Number of masks that pycocotools measures at once. Version 2.0.11 returns no areas for more than this."""


def sound_masks(columns: MaskColumns, sizes: Ints, limits: MaskLimits | None) -> Bools:
    """Return which of N masks are certain to pass `audit_masks`, (N,) bool. Only the others need a full audit.

    `sizes`, (N, 2), contains the height and width of each mask's image. False doesn't mean that there is a finding.
    """
    sound: Bools = (columns.size == sizes).all(axis=1) & (sizes > 0).all(axis=1)
    with np.errstate(invalid="ignore", over="ignore"):  # damaged tables may contain any number
        sound &= _scores_hold(columns, limits) & _frames_hold(columns, sizes)
    for part in _parts(columns.counts_ends):
        sound[part] &= table_codes_hold(columns, part, sizes[part])
    _measure(columns, sound)
    return sound


def _scores_hold(columns: MaskColumns, limits: MaskLimits | None) -> Bools:
    iou, stability = columns.predicted_iou, columns.stability_score
    low, high = PLAUSIBLE_IOU
    hold: Bools = ((iou >= low) & (iou <= high)) | columns.without_iou
    hold &= ((stability >= 0) & (stability <= 1)) | columns.without_stability
    # Scores were compared with the thresholds in float32.
    if limits is not None and limits.pred_iou_thresh > 0:
        hold &= (iou > float(np.float32(limits.pred_iou_thresh))) | columns.by_people
    if limits is not None and limits.stability_score_thresh > 0:
        hold &= (stability >= float(np.float32(limits.stability_score_thresh))) | columns.by_people
    return hold


def _frames_hold(columns: MaskColumns, sizes: Ints) -> Bools:
    """Return whether crops and boxes are inside their images, and points inside their crops. NaN gives False."""
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
    """Return whether boxes [x, y, width, height] lie inside images of size [height, width]."""
    inside = (boxes[:, :2] >= 0) & (boxes[:, :2] + boxes[:, 2:] <= sizes[:, ::-1])
    return np.asarray(inside.all(axis=1), bool)


def _parts(ends: Ints) -> Iterator[slice]:
    """Yield slices of about `TEXT_AT_ONCE` bytes of run lengths, or one larger mask; `ends` are the masks' ends."""
    start = done = 0
    while start < len(ends):
        stop = max(start + 1, int(np.searchsorted(ends, done + TEXT_AT_ONCE, side="right")))
        yield slice(start, stop)
        start, done = stop, int(ends[stop - 1])


def table_codes_hold(columns: MaskColumns, part: slice, sizes: Ints) -> Bools:
    """Return whether each mask's run lengths can be read and cover exactly its image.

    No run may be negative or longer than the image.
    """
    begin = int(columns.counts_ends[part.start - 1]) if part.start else 0
    ends = columns.counts_ends[part] - begin
    counts, count_ends, _ = decompress_many(columns.counts[begin : begin + int(ends[-1])], ends)
    starts = np.concatenate(([0], count_ends[:-1]))
    some = count_ends > starts  # a damaged mask has no run lengths
    hold = some.copy()
    hold[some] = np.add.reduceat(counts, starts[some]) == np.prod(sizes[some], axis=1) if some.any() else False
    # If runs are longer than the image, their sum may overflow and wrap around to the right total.
    pixels = np.repeat(np.prod(sizes, axis=1), count_ends - starts)
    hold[np.searchsorted(count_ends, np.flatnonzero((counts < 0) | (counts > pixels)), side="right")] = False
    return hold


def _measure(columns: MaskColumns, sound: Bools) -> None:
    """Set `sound` to false for masks whose area or box differs from pycocotools' result.

    pycocotools trusts its input, so it receives only masks that have passed all checks so far.
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
