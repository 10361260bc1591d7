"""Masks that a segmenter found in an image: checks, filters, and conversion to the columns of a row.

Filters of a segmenter's masks, as the configuration sets them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Self

import numpy as np
from pycocotools import mask as coco
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from segmint.infra.arrays import Box, Size
from segmint.infra.errors import SegmintError
from segmint.model.automatic import rle
from segmint.operators.annotations.image import UnreadableMaskError, checked_rle
from segmint.operators.custom.contract import Mask
from segmint.operators.rows import FUNNEL_STEPS, IMPORT, PLAUSIBLE_IOU, Row
from segmint.operators.segment.mask_config import without_artifacts
from segmint.operators.segment.segment import check_count


class MaskFilters(BaseModel):
    """Filters that are applied to a segmenter's masks in this order. All of them are off by default.

    The filters are those of SAM's masks with the same purpose, except for the filter at the edges of crops. Areas are
    in pixels of the released image.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    min_score: float | None = None
    """Drop masks whose score is lower. Masks without a score stay."""
    min_area: int | None = Field(default=None, ge=1)
    """Drop masks with fewer pixels."""
    max_area_ratio: float | None = Field(default=None, gt=0, le=1)
    """Drop masks that cover at least this share of the image."""
    nms_iou: float | None = Field(default=None, ge=0, le=1)
    """Drop a mask if the IoU of its box with the box of a mask with a higher score exceeds this value. Masks without a
    score come last, and masks with equal scores count in their order. The masks that stay are sorted by their score."""
    cleanup_area: int | None = Field(default=None, ge=1)
    """Fill holes and remove islands of fewer pixels. A mask that consists only of such islands is dropped."""
    drop_redaction_artifacts: float | None = Field(default=None, gt=0, le=1)
    """Drop masks whose IoU with a redacted region is at least this value."""


class MaskError(SegmintError):
    """Raised for a mask that can't be stored, because the segmenter violates `segmint.Mask`."""


def _check_text(text: str) -> str:
    if not text.strip():
        raise ValueError("expected text")
    text.encode()  # raises ValueError for lone surrogates, which Arrow can't store
    return text


_Text = Annotated[str, AfterValidator(_check_text)]


class _MaskValues(BaseModel):
    """Fields of `segmint.Mask` except the pixels, with their limits."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, from_attributes=True)

    score: Annotated[float, Field(ge=PLAUSIBLE_IOU[0], le=PLAUSIBLE_IOU[1])] | None
    stability: Annotated[float, Field(ge=0, le=1)] | None
    label: _Text | None
    label_score: float | None
    label_source: Annotated[str, Field(pattern=rf"\A({IMPORT}|model:[0-9a-f]{{64}})\z")] | None
    points: tuple[tuple[float, float, Annotated[int, Field(ge=0, le=1)]], ...]
    box: Box | None
    text: _Text | None

    @model_validator(mode="after")
    def _check_label(self) -> Self:
        if self.label is None and (self.label_score is not None or self.label_source is not None):
            raise ValueError("a label_score or a label_source needs a label")
        if self.label_source == IMPORT and self.label_score is not None:
            raise ValueError(f"a label whose label_source is {IMPORT} has no label_score")
        return self

    @property
    def prompts(self) -> list[Row]:
        """Prompts of the mask, as values of the column `prompts`."""
        prompts: list[Row] = [{"kind": "point", "x": x, "y": y, "label": label} for x, y, label in self.points]
        if self.box is not None:
            x, y, width, height = self.box
            prompts.append({"kind": "box", "x": x, "y": y, "w": width, "h": height})
        if self.text is not None:
            prompts.append({"kind": "text", "text": self.text})
        return prompts


def found_columns(row: Mapping[str, Any], masks: Sequence[Mask], filters: MaskFilters, source: str) -> dict[str, Any]:
    """Return the columns `masks` and `funnel` of an image, after checks and filters.

    `row` contains the keys of `PREPARED`. `source` is the `label_source` of labels for which the segmenter names none.
    Raises `MaskError` for the first invalid mask, and `RejectedError` (`too_many_masks`) if more masks remain than an
    image has ids for.
    """
    size = (row["height"], row["width"])
    if isinstance(masks, str | bytes | Mapping) or not isinstance(masks, Sequence):
        raise MaskError(f"with_masks got {type(masks).__name__}: expected a list of segmint.Mask")
    found: list[Row] = []
    for place, mask in enumerate(masks):
        values = _checked(place, mask)
        if filters.min_score is None or values.score is None or values.score >= filters.min_score:
            found.append(_mask_row(values, _encoded(place, mask.pixels, size), source))
    steps = dict.fromkeys(FUNNEL_STEPS, 0)
    steps |= {"predicted": len(masks), "over_iou": len(found), "stable": len(found)}
    found = [each for each in found if _passes_area(each["area"], filters, size)]
    steps |= {"under_max_area": len(found), "inside_crop": len(found)}
    if filters.nms_iou is not None:
        found = _suppressed(found, filters.nms_iou)
    steps |= {"after_nms1": len(found), "after_nms2": len(found)}
    if filters.cleanup_area is not None:
        found = list(_cleaned(found, filters.cleanup_area, steps))
    steps["written"] = len(found)
    columns = without_artifacts(row, {"masks": found, "funnel": steps}, filters.drop_redaction_artifacts)
    check_count(len(columns["masks"]))
    return columns


def added_columns(earlier: Mapping[str, Any], columns: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Return the columns `masks` and `funnel` of an image to whose masks a stage adds others.

    `earlier` contains the columns before the stage, and `columns` those of `found_columns`. The stage's masks come last
    and get the column `model`. Each step of the funnel is the sum of both. Raises `RejectedError` (`too_many_masks`) if
    the image then has more masks than ids.
    """
    masks = [*earlier["masks"], *({**mask, "model": model} for mask in columns["masks"])]
    check_count(len(masks))
    funnel = {step: earlier["funnel"][step] + count for step, count in columns["funnel"].items()}
    return {"masks": masks, "funnel": funnel}


def _checked(place: int, mask: Any) -> _MaskValues:
    """Check everything but the pixels of a mask. Raises `MaskError` if it is invalid."""
    if not isinstance(mask, Mask):
        raise MaskError(f"mask {place} is of type {type(mask).__name__}: expected segmint.Mask")
    try:
        return _MaskValues.model_validate(mask)
    except ValidationError as error:
        first, *_ = error.errors(include_url=False)
        raise MaskError(": ".join([f"mask {place}", *map(str, first["loc"]), first["msg"]])) from error


def _encoded(place: int, pixels: Any, size: Size) -> rle.Rle:
    """Check a mask's pixels, and return them in COCO's canonical encoding."""
    if isinstance(pixels, Mapping):
        return _recoded(place, pixels, size)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.bool_ or pixels.shape != size:
        found = type(pixels).__name__
        if isinstance(pixels, np.ndarray):
            found = f"an array of {pixels.dtype} with the shape {pixels.shape}"
        raise MaskError(f"mask {place} is {found}: expected bool pixels of the image's height and width, {size}")
    return rle.encode(pixels)


def _recoded(place: int, code: Mapping[str, Any], size: Size) -> rle.Rle:
    """Return COCO's run-length encoding of a mask in the canonical form, which `rle.encode` gives."""
    counts = code.get("counts")
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    try:
        checked = checked_rle({"size": code.get("size"), "counts": counts})
    except UnreadableMaskError as error:
        raise MaskError(f"mask {place}: {error}") from error
    if checked["size"] != list(size):
        raise MaskError(f"mask {place}: its size is {checked['size']}: expected {list(size)}, height and width")
    return rle.Rle(size, rle.compress(rle.decompress(checked["counts"].decode("ascii"))))


def _passes_area(area: int, filters: MaskFilters, size: Size) -> bool:
    if area < (filters.min_area or 1):
        return False
    return filters.max_area_ratio is None or area < filters.max_area_ratio * (size[0] * size[1])


def _suppressed(found: Sequence[Row], threshold: float) -> list[Row]:
    """Suppress masks by the IoU of their boxes, as between SAM's masks."""
    from segmint.model.automatic.candidates import nms  # imports torch

    boxes = np.array([each["bbox"] for each in found], np.int64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores = [-np.inf if each["predicted_iou"] is None else each["predicted_iou"] for each in found]
    return [found[place] for place in nms(boxes, np.array(scores, np.float32), threshold).tolist()]


def _cleaned(found: Sequence[Row], area: int, steps: dict[str, int]) -> Iterator[Row]:
    """Clean masks as SAM's are cleaned in the profile `sa1b`, and count what changed in `steps`."""
    from segmint.model.automatic.candidates import MaskPatch, clean_patch
    from segmint.model.automatic.crops import box_of  # imports torch

    for each in found:
        height, width = each["segmentation"]["size"]
        pixels = rle.decode(rle.Rle((height, width), each["segmentation"]["counts"]))
        done = clean_patch(MaskPatch.pack(pixels, box_of(pixels)), (height, width), area, keep_largest=False)
        steps["holes_filled"] += done.holes
        steps["islands_removed"] += done.islands
        steps["cleaned"] += done.holes or done.islands
        if done.patch is None:
            steps["removed_by_cleanup"] += 1
        elif done.holes or done.islands:
            yield {**each, **_measured(done.patch.encode((height, width)))}
        else:
            yield each


def _mask_row(values: _MaskValues, code: rle.Rle, source: str) -> Row:
    """Return a mask as a value of `SEGMENTED_MASK`."""
    height, width = code.size
    return {
        **_measured(code),
        "predicted_iou": values.score,
        "stability_score": values.stability,
        "crop_box": [0.0, 0.0, float(width), float(height)],
        "point_coords": [],
        "output": None,
        "label": values.label,
        "label_score": values.label_score,
        "label_source": None if values.label is None else values.label_source or source,
        "prompts": values.prompts or None,
    }


def _measured(code: rle.Rle) -> Row:
    """Return the columns of a mask that follow from its pixels."""
    segmentation = {"size": list(code.size), "counts": code.counts}
    encoded = code.coco()
    x, y, width, height = coco.toBbox(encoded).tolist()
    return {"segmentation": segmentation, "bbox": [x, y, width - 1, height - 1], "area": int(coco.area(encoded))}
