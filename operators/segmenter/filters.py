"""Filters of a segmenter's masks, as the configuration sets them."""

from pydantic import BaseModel, ConfigDict, Field


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
