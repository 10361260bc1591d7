"""Audit of one image's masks: run lengths against area and box, scores against thresholds, points against crops."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco

from segmint.catalogs.findings import Code, Finding, FindingLocation
from segmint.model.automatic import rle
from segmint.operators.schemas import AUTOMATIC, PLAUSIBLE_IOU

Numbers = list[float]


@dataclass(frozen=True)
class MaskLimits:
    """Thresholds that a dataset was built with. A threshold of 0 or less is off."""

    pred_iou_thresh: float
    stability_score_thresh: float
    by_segmenter: bool = False  # whether a segmenter made the masks, which then may have no scores and no points
    adding: frozenset[str] = frozenset()  # values of `model` in masks that stages or `segmint apply` added, which, too
    applied: frozenset[str] = frozenset()  # those among them of `segmint apply`, whose masks have higher numbers


def audit_masks(
    size: tuple[int, int],
    masks: Sequence[Mapping[str, Any]],
    limits: MaskLimits | None,
    place: FindingLocation,
    *,
    decode: bool,
    measured: Callable[[Mapping[str, Any], int, Numbers], Mapping[str, Any]] | None = None,
) -> Iterator[Finding]:
    """Yield findings about an image's rows in `masks/*.parquet`. The image's `size` is (height, width).

    pycocotools measures every mask. With `decode`, each mask without findings so far is also decoded, and its pixels
    are counted. Scores are compared with the thresholds in `limits`, if given. Annotated masks and those of a segmenter
    or a stage don't need scores or a point, and their scores aren't compared with thresholds. For each mask, only the
    first problem with its pixels and the first problem with its scores are reported.

    `measured` is called with the row, the area, and COCO's box of each mask whose run lengths fit its image. It returns
    the row to compare with them.
    """
    sound: list[Mapping[str, Any]] = []
    for row in masks:
        findings = list(_code_findings(size, row, place))
        yield from findings
        yield from _frame_findings(size, row, limits, place)
        yield from _score_findings(row, limits, place)
        if not findings:
            sound.append(row)
    for row in sound:
        code = _coco(row)
        # Measure one mask at a time, because pycocotools 2.0.11 returns no areas for over 255 masks.
        area, box = int(coco.area(code)), coco.toBbox(code).tolist()
        if measured is not None:
            row = measured(row, area, box)
        findings = list(_pixel_findings(size, row, area, box, place))
        yield from findings
        if decode and not findings:
            yield from _decoded_findings(row, code, place)


def _code_findings(size: tuple[int, int], row: Mapping[str, Any], place: FindingLocation) -> Iterator[Finding]:
    segmentation = row["segmentation"] or {}
    found = segmentation.get("size")
    if found != list(size):
        yield _finding(place, row, Code.RLE_SIZE, f"[height, width] {list(size)}", found)
        return
    try:
        # pycocotools trusts its input, so invalid run lengths must be found here.
        rle.area(rle.Rle(size, segmentation.get("counts") or ""))
    except ValueError as error:
        yield _finding(place, row, Code.BAD_RLE, f"run lengths of {size[0] * size[1]} pixels", error)


def _pixel_findings(
    size: tuple[int, int], row: Mapping[str, Any], area: int, coco_box: Numbers, place: FindingLocation
) -> Iterator[Finding]:
    if area != row["area"] or area == 0:
        yield _finding(place, row, Code.MASK_AREA, f"area {area or 'over 0'} by its run lengths", row["area"])
        return
    x, y, width, height = coco_box
    around = [x, y, width - 1, height - 1]  # COCO's boxes count pixels; SA-1B's extend from the first pixel to the last
    box = finite_numbers(row["bbox"], 4)
    if box is not None and not is_inside([box[0], box[1], box[2] + 1, box[3] + 1], size):
        yield _finding(place, row, Code.BOX_OUTSIDE, f"a box in {size[1]} x {size[0]} pixels", row["bbox"])
    elif box != around:
        yield _finding(place, row, Code.MASK_BOX, f"bbox {around}", row["bbox"])


def _decoded_findings(row: Mapping[str, Any], code: dict[str, Any], place: FindingLocation) -> Iterator[Finding]:
    pixels = np.asarray(coco.decode(code)).astype(bool)
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    box = [float(v) for v in (columns[0], rows[0], columns[-1] - columns[0], rows[-1] - rows[0])]
    ours = rle.decode(rle.Rle((pixels.shape[0], pixels.shape[1]), code["counts"].decode("ascii")))
    if int(pixels.sum()) != row["area"] or box != row["bbox"] or not np.array_equal(ours, pixels):
        expected = f"{row['area']} pixels in the box {row['bbox']}"
        yield _finding(place, row, Code.MASK_PIXELS, expected, f"{int(pixels.sum())} in {box}")


def _frame_findings(
    size: tuple[int, int], row: Mapping[str, Any], limits: MaskLimits | None, place: FindingLocation
) -> Iterator[Finding]:
    image = f"{size[1]} x {size[0]} pixels"
    crop = finite_numbers(row["crop_box"], 4)
    if crop is None or min(crop[2:]) <= 0 or not is_inside(crop, size):
        yield _finding(place, row, Code.CROP_OUTSIDE, f"a crop in {image}", row["crop_box"])
        return
    points = row["point_coords"]
    for point in points or ([] if points == [] and not _made_by_sam(row, limits) else [None]):
        x_y = finite_numbers(point, 2)
        if x_y is None or not all(low <= v <= low + n for v, low, n in zip(x_y, crop[:2], crop[2:], strict=True)):
            yield _finding(place, row, Code.POINT_OUTSIDE, f"a point in the crop {crop} of {image}", points)


def _score_findings(row: Mapping[str, Any], limits: MaskLimits | None, place: FindingLocation) -> Iterator[Finding]:
    iou, stability = row["predicted_iou"], row["stability_score"]
    if not _made_by_sam(row, limits):
        iou, stability = iou if iou is not None else 1.0, stability if stability is not None else 1.0
        limits = None
    if not _between(iou, *PLAUSIBLE_IOU) or not _between(stability, 0.0, 1.0):
        low, high = PLAUSIBLE_IOU
        expected = f"predicted_iou from {low} to {high}, stability_score from 0 to 1"
        yield _finding(place, row, Code.SCORE_RANGE, expected, f"{iou} and {stability}")
    elif limits is not None:
        # Scores were compared with the thresholds in float32.
        least = float(np.float32(limits.pred_iou_thresh))
        if limits.pred_iou_thresh > 0 and not iou > least:
            expected = f"predicted_iou over {limits.pred_iou_thresh}"
            yield _finding(place, row, Code.UNDER_THRESHOLD, expected, iou)
        least = float(np.float32(limits.stability_score_thresh))
        if limits.stability_score_thresh > 0 and not stability >= least:
            expected = f"stability_score of at least {limits.stability_score_thresh}"
            yield _finding(place, row, Code.UNDER_THRESHOLD, expected, stability)


def _made_by_sam(row: Mapping[str, Any], limits: MaskLimits | None) -> bool:
    """Return whether SAM made the mask in a build. Masks that segmint didn't write have no source and count as such."""
    if limits is not None and (limits.by_segmenter or row.get("model") in limits.adding):
        return False
    return row.get("source") in (None, AUTOMATIC)


def _finding(place: FindingLocation, row: Mapping[str, Any], code: Code, expected: object, found: object) -> Finding:
    """Return a finding about a mask's row. In data that segmint didn't write, the mask's id may be invalid."""
    id = row["annotation_id"]
    return place.finding(code, expected, found, f"mask {id}", mask=id if isinstance(id, int) else None)


def _coco(row: Mapping[str, Any]) -> dict[str, Any]:
    segmentation = row["segmentation"]
    return {"size": list(segmentation["size"]), "counts": segmentation["counts"].encode("ascii")}


def finite_number(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    try:
        return value if type(value) in (int, float) and math.isfinite(value) else None
    except OverflowError:
        return None


def finite_numbers(value: Any, count: int) -> Numbers | None:
    """Return a list of `count` finite numbers, or None for anything else."""
    if not isinstance(value, list) or len(value) != count:
        return None
    if any(finite_number(each) is None for each in value):
        return None
    return [float(each) for each in value]


def is_inside(box: Numbers, size: tuple[int, int]) -> bool:
    """Return whether a box [x, y, width, height] lies inside an image of size (height, width)."""
    x, y, width, height = box
    return x >= 0 and y >= 0 and x + width <= size[1] and y + height <= size[0]


def _between(value: float | None, low: float, high: float) -> bool:
    return value is not None and low <= value <= high
