"""Masks that a segmenter found in an image: checks, filters, and conversion to the columns of a row."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from segmint.catalogs.reasons import Reason, RejectedError
from segmint.infra.errors import SegmintError
from segmint.model.automatic import rle
from segmint.operators.custom.contract import Mask
from segmint.operators.rows import Row
from segmint.operators.schemas import FUNNEL_STEPS, IMPORT, MASKS_PER_IMAGE_LIMIT, PLAUSIBLE_IOU
from segmint.operators.segment.artifacts import RedactionArtifacts
from segmint.operators.segmenter.filters import MaskFilters

_SOURCE = re.compile(r"model:[0-9a-f]{64}")


class MaskError(SegmintError):
    """Raised for a mask that can't be stored, because the segmenter violates `segmint.Mask`."""


@dataclass(frozen=True)
class _FoundMask:
    """A mask whose pixels and values were checked."""

    said: Mask
    code: rle.Rle
    area: int  # pixels
    bbox: list[float]  # [x, y, w, h] as in `MASK`

    @classmethod
    def of(cls, said: Mask, code: rle.Rle) -> "_FoundMask":
        measured = {"size": list(code.size), "counts": code.counts.encode("ascii")}
        x, y, width, height = coco.toBbox(measured).tolist()
        return cls(said, code, int(coco.area(measured)), [x, y, width - 1, height - 1])


def found_columns(row: Mapping[str, Any], masks: Sequence[Mask], filters: MaskFilters, source: str) -> dict[str, Any]:
    """Return the columns `masks` and `funnel` of an image, after checks and filters.

    `row` contains the keys of `PREPARED`. `source` is the `label_source` of labels for which the segmenter names none.
    Raises `MaskError` for the first invalid mask, and `RejectedError` (`too_many_masks`) if more masks remain than an
    image has ids for.
    """
    size = (row["height"], row["width"])
    if isinstance(masks, str | bytes | Mapping) or not isinstance(masks, Sequence):
        raise MaskError(f"with_masks got {type(masks).__name__}: expected a list of segmint.Mask")
    for place, mask in enumerate(masks):
        _check(place, mask)
    kept = [(place, mask) for place, mask in enumerate(masks) if _passes_score(mask, filters)]
    steps = dict.fromkeys(FUNNEL_STEPS, 0)
    steps |= {"predicted": len(masks), "over_iou": len(kept), "stable": len(kept)}
    found = [_FoundMask.of(mask, _encoded(place, mask.pixels, size)) for place, mask in kept]
    found = [each for each in found if _passes_area(each, filters, size)]
    steps |= {"under_max_area": len(found), "inside_crop": len(found)}
    if filters.nms_iou is not None:
        found = _suppressed(found, filters.nms_iou)
    steps |= {"after_nms1": len(found), "after_nms2": len(found)}
    if filters.cleanup_area is not None:
        found = list(_cleaned(found, filters.cleanup_area, steps))
    steps["written"] = len(found)
    columns = {"masks": [_mask_row(each, size, source) for each in found], "funnel": steps}
    columns = RedactionArtifacts(filters.drop_redaction_artifacts).dropped(dict(row), columns)
    left = len(columns["masks"])
    if left > MASKS_PER_IMAGE_LIMIT:
        detail = f"{left:,} masks; there are ids for {MASKS_PER_IMAGE_LIMIT:,} masks of one image"
        raise RejectedError(Reason.TOO_MANY_MASKS, detail)
    return columns


def _check(place: int, mask: Any) -> None:
    """Raise `MaskError` if something else than the pixels of a mask is invalid."""
    if not isinstance(mask, Mask):
        raise MaskError(f"mask {place} is of type {type(mask).__name__}: expected segmint.Mask")
    _check_number(place, "score", mask.score, PLAUSIBLE_IOU)
    _check_number(place, "stability", mask.stability, (0.0, 1.0))
    _check_number(place, "label_score", mask.label_score)
    for name in ("label", "text"):
        _check_text(place, name, getattr(mask, name))
    if mask.label is None and (mask.label_score is not None or mask.label_source is not None):
        raise MaskError(f"mask {place} has a label_score or a label_source, but no label")
    if mask.label_source == IMPORT and mask.label_score is not None:
        raise MaskError(f"mask {place} has a label_score, but its label_source is {IMPORT}: expected the model's hash")
    if mask.label_source not in (None, IMPORT) and not _SOURCE.fullmatch(str(mask.label_source)):
        expected = f"{IMPORT}, or model: and the SHA-256 of the weights"
        raise MaskError(f"mask {place} has the label_source {mask.label_source!r}: expected {expected}")
    for point in mask.points:
        if len(point) != 3 or point[2] not in (0, 1):
            raise MaskError(f"mask {place} has the point {point!r}: expected x, y, and 1 (inside) or 0 (outside)")
        _check_number(place, "points", point[0])
        _check_number(place, "points", point[1])
    if mask.box is not None:
        if len(mask.box) != 4:
            raise MaskError(f"mask {place} has the box {mask.box!r}: expected x, y, width, and height")
        for value in mask.box:
            _check_number(place, "box", value)


def _check_number(place: int, name: str, value: Any, limits: tuple[float, float] = (-math.inf, math.inf)) -> None:
    if value is None:
        return
    low, high = limits
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value) or not low <= value <= high:
        expected = "a finite number" if low == -math.inf else f"a number from {low:g} to {high:g}"
        raise MaskError(f"mask {place} has {name} {value!r}: expected {expected}")


def _check_text(place: int, name: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, str) or not value.strip():
        raise MaskError(f"mask {place} has {name} {value!r}: expected text or None")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise MaskError(f"mask {place} has {name} {value!r}, which isn't valid Unicode") from error


def _encoded(place: int, pixels: Any, size: tuple[int, int]) -> rle.Rle:
    """Check a mask's pixels, and return them in COCO's canonical encoding."""
    if isinstance(pixels, Mapping):
        return _recoded(place, pixels, size)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.bool_ or pixels.shape != size:
        found = type(pixels).__name__
        if isinstance(pixels, np.ndarray):
            found = f"an array of {pixels.dtype} with the shape {pixels.shape}"
        raise MaskError(f"mask {place} is {found}: expected bool pixels of the image's height and width, {size}")
    return rle.encode(pixels)


def _recoded(place: int, code: Mapping[str, Any], size: tuple[int, int]) -> rle.Rle:
    """Return COCO's run-length encoding of a mask in the canonical form, without runs of 0 pixels between others."""
    said = code.get("size")
    if not isinstance(said, Sequence) or list(said) != list(size):
        raise MaskError(f"mask {place} has run lengths of the size {said!r}: expected {list(size)}, height and width")
    lengths = _run_lengths(place, code.get("counts"))
    pixels = size[0] * size[1]
    # Also check single lengths, because the sum of larger ones could wrap around to the expected value.
    if lengths.size == 0 or lengths.min() < 0 or lengths.max() > pixels or int(lengths.sum()) != pixels:
        total = int(lengths.sum())
        raise MaskError(f"mask {place} has run lengths of {total} pixels: expected {pixels}, all of them 0 or more")
    ends = np.cumsum(lengths)
    starts, stops = ends[0::2][: lengths.size // 2], ends[1::2]
    occupied = stops > starts
    return rle.encode_runs(starts[occupied], stops[occupied], size)


def _run_lengths(place: int, counts: Any) -> NDArray[np.int64]:
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    if isinstance(counts, str):
        try:
            return rle.decompress(counts)
        except ValueError as error:
            raise MaskError(f"mask {place}: {error}") from error
    lengths = np.asarray(counts)
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise MaskError(f"mask {place} has counts of type {type(counts).__name__}: expected text or whole numbers")
    return lengths.astype(np.int64)


def _passes_score(mask: Mask, filters: MaskFilters) -> bool:
    return filters.min_score is None or mask.score is None or mask.score >= filters.min_score


def _passes_area(found: _FoundMask, filters: MaskFilters, size: tuple[int, int]) -> bool:
    if found.area < (filters.min_area or 1):
        return False
    return filters.max_area_ratio is None or found.area < filters.max_area_ratio * (size[0] * size[1])


def _suppressed(found: Sequence[_FoundMask], threshold: float) -> list[_FoundMask]:
    """Suppress masks by the IoU of their boxes, as between SAM's masks."""
    from segmint.model.automatic.nms import nms  # imports torch

    boxes = np.array([each.bbox for each in found], np.int64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores = np.array([-np.inf if each.said.score is None else each.said.score for each in found], np.float32)
    return [found[place] for place in nms(boxes, scores, threshold).tolist()]


def _cleaned(found: Sequence[_FoundMask], area: int, steps: dict[str, int]) -> Iterator[_FoundMask]:
    """Clean masks as SAM's are cleaned in the profile `sa1b`, and count what changed in `steps`."""
    from segmint.model.automatic.boxes import box_of  # imports torch
    from segmint.model.automatic.candidates import MaskPatch
    from segmint.model.automatic.cleanup import clean_patch

    for each in found:
        pixels = each.said.pixels
        if not isinstance(pixels, np.ndarray):
            pixels = rle.decode(each.code)
        done = clean_patch(MaskPatch.pack(pixels, box_of(pixels)), each.code.size, area, keep_largest=False)
        steps["holes_filled"] += done.holes
        steps["islands_removed"] += done.islands
        steps["cleaned"] += done.holes or done.islands
        if done.patch is None:
            steps["removed_by_cleanup"] += 1
        elif done.holes or done.islands:
            yield _FoundMask.of(each.said, done.patch.encode(each.code.size))
        else:
            yield each


def _mask_row(found: _FoundMask, size: tuple[int, int], source: str) -> Row:
    """Convert a mask to a value of `SEGMENTED_MASK`."""
    said = found.said
    label_source = said.label_source
    if said.label is not None and label_source is None:
        label_source = source
    return {
        "segmentation": {"size": list(size), "counts": found.code.counts},
        "bbox": found.bbox,
        "area": found.area,
        "predicted_iou": _float(said.score),
        "stability_score": _float(said.stability),
        "crop_box": [0.0, 0.0, float(size[1]), float(size[0])],
        "point_coords": [],
        "output": None,
        "label": said.label,
        "label_score": _float(said.label_score),
        "label_source": label_source,
        "prompts": _prompts(said) or None,
    }


def _prompts(said: Mask) -> list[Row]:
    """Return what the mask was made from, as values of the column `prompts`."""
    prompts: list[Row] = [
        {"kind": "point", "x": float(x), "y": float(y), "label": int(label)} for x, y, label in said.points
    ]
    if said.box is not None:
        x, y, width, height = map(float, said.box)
        prompts.append({"kind": "box", "x": x, "y": y, "w": width, "h": height})
    if said.text is not None:
        prompts.append({"kind": "text", "text": said.text})
    return prompts


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)
