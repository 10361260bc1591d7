"""Configuration of the segment stage: its parts `masks` and `model`.

Filter of masks that trace a redacted region instead of an object: the ellipse over a face, the box of a plate.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from segmint.infra.assets import AUTO, absolute_name
from segmint.infra.units import auto_or, validated
from segmint.model.automatic.settings import MaskSettings, Profile
from segmint.operators.prepare.release import CropLayers
from segmint.operators.redactions import redactions

ARTIFACT_IOU = 0.8
"""Minimum IoU with a redacted region at which profile `sa1b` drops a mask.

Masks are compared with the outline halfway through the region's band. A mask that follows either edge of the band has
about this IoU with that outline.
"""

Share = Annotated[float, Field(ge=0.0, le=1.0)]


def _auto_off_or_share(value: Any) -> Any:
    if value is False:  # YAML's `off`
        return "off"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value in ("auto", "off") or (number and 0 < value <= 1):
        return value if isinstance(value, str) else float(value)
    raise ValueError("expected auto, off, or a number over 0 and up to 1")


AutoOrCount = Annotated[
    Literal["auto"] | int, auto_or(lambda value: type(value) is int and value >= 1, " or a positive integer")
]


class MasksConfig(BaseModel):
    """Automatic mask generation. `profile` sets the defaults of all other keys, and explicit keys override them.

    The defaults below are those of profile `sa1b`, from Appendix B of the SAM paper. Frame: pixels of the released
    image.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    profile: Profile = "sa1b"
    points_per_side: int = Field(default=32, ge=1)
    """Number of points per side of the grid on the full image."""
    crop_n_layers: int = Field(default=2, ge=0, le=6)
    """Number of crop layers. Layer L cuts the image into 2^L × 2^L overlapping crops. 0 uses only the full image."""
    crop_n_points_downscale_factor: int = Field(default=2, ge=1)
    """Factor by which the grid shrinks per layer: in layer L, it has points_per_side / factor^L points per side."""
    crop_overlap_ratio: Share = 512 / 1500
    """Overlap of neighboring crops in layer 1, as a share of the short side. It is halved in each further layer."""
    pred_iou_thresh: float = 0.88
    """Keep only masks whose predicted IoU exceeds this value. 0 or less turns the filter off."""
    stability_score_thresh: float = 0.95
    """Keep only masks whose stability score is at least this value. 0 or less turns the filter off."""
    stability_score_offset: float = Field(default=1.0, ge=0.0)
    """Logit offset of the stability score, which compares the masks at the thresholds minus and plus this value."""
    box_nms_thresh: Share = 0.7
    """Within a crop, suppress a box if its IoU with a better box exceeds this value."""
    crop_nms_thresh: Share = 0.7
    """Across crops, suppress a box if its IoU with a box from a smaller crop exceeds this value."""
    min_mask_region_area: int = Field(default=100, ge=0)
    """Remove islands and fill holes smaller than this area, in pixels. 0 turns this off."""
    max_mask_area_ratio: Share = 0.95
    """Remove masks that cover at least this share of the image. 0 turns the filter off."""
    use_m2m: bool = False
    """Decode each mask a second time, from its point and its logits, before the filters."""
    drop_redaction_artifacts: Annotated[Literal["auto", "off"] | float, BeforeValidator(_auto_off_or_share)] = "auto"
    """Drop masks whose IoU with a redacted region is at least this value.

    `auto` uses the value with which the dataset was created. For a new dataset, that is 0.8 with profile sa1b, and off
    with other profiles.
    """
    points_per_chunk: AutoOrCount = "auto"
    """Number of prompts that the decoder processes at once. It changes the last bits, so it is part of the numerics."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_profile(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("profile", "sa1b") not in get_args(Profile):
            return data
        layers = data.get("crop_n_layers")
        asked = {"crop_n_layers": layers} if type(layers) is int and layers in range(7) else {}
        # Use a huge grid, so that the fields' own validators report invalid values.
        defaults = MaskSettings.of(data.get("profile", "sa1b"), points_per_side=2**40, **asked)
        own = ("points_per_side", "points_per_chunk")
        filled = {key: value for key, value in asdict(defaults).items() if key not in own}
        return {**filled, **data}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        try:
            self.settings()
        except ValueError as error:
            raise ValueError(str(error).removeprefix("masks.")) from error
        return self

    @model_serializer(mode="wrap")
    def _leave_out_default_m2m(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Omit the default, so that datasets and masks from before this key existed stay identical.
        values: dict[str, Any] = serialize(self)
        return {key: value for key, value in values.items() if key != "use_m2m" or value}

    @property
    def original_crops(self) -> CropLayers | None:
        """Crops that are cut from an original larger than the released image, or None if there are no such crops."""
        if self.profile != "sa1b" or self.crop_n_layers == 0:
            return None
        return CropLayers(self.crop_n_layers, self.crop_overlap_ratio)

    @property
    def artifact_iou(self) -> float | None:
        """Value of `drop_redaction_artifacts`, with `auto` as in a new dataset. None: no mask is an artifact."""
        if self.drop_redaction_artifacts == "auto":
            return ARTIFACT_IOU if self.profile == "sa1b" else None
        return None if self.drop_redaction_artifacts == "off" else self.drop_redaction_artifacts

    def settings(self, points_per_chunk: int | None = None) -> MaskSettings:
        """Convert this configuration to the settings of `MaskGenerator`.

        If the configuration says `points_per_chunk: auto`, the argument `points_per_chunk` is used. If that is None,
        the generator chooses a value for its device.
        """
        values = self.model_dump(exclude={"drop_redaction_artifacts"})
        if self.points_per_chunk == "auto":
            values["points_per_chunk"] = points_per_chunk
        return MaskSettings(**values)


class ModelConfig(BaseModel):
    """Model and compute settings. All except `weights` are resolved once and then pinned as numerics."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: Annotated[
        str, AfterValidator(validated(lambda value: value if value == AUTO else absolute_name(value)))
    ] = Field(default=AUTO, min_length=1)
    """mobile_sam, vit_b, vit_l, vit_h, or the path or URI of a checkpoint.

    `auto` uses the weights with which the dataset was created. For a new dataset, these are vit_h on a GPU, and
    mobile_sam on a CPU.
    """
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device that runs the model. `auto` is cuda if it is available, otherwise cpu."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the model. `auto` is bf16 on a GPU that supports it, otherwise fp32. bf16 needs a GPU."""
    decoder_precision: Literal["auto", "fp16"] = "auto"
    """Precision of the mask decoder. `auto` is that of `precision`. fp16 needs a GPU and precision bf16."""
    encoder: Literal["auto", "eager", "compiled"] = "auto"
    """Image encoder: eager, or compiled by `torch.compile`. `auto` is compiled on a GPU with Triton, else eager."""
    kernels: Literal["auto", "torch", "lanes16-1"] = "auto"
    """Kernels that compute masks on a CPU: segmint's own, lanes16-1, wherever they apply, or torch's for everything.

    `auto` is lanes16-1 if the machine that creates the dataset and the nodes of its cluster have the library of CPU
    kernels, and torch otherwise.
    """
    images_per_batch: int = Field(default=1, ge=1, le=64)
    """Number of images that a GPU encodes together if masks.crop_n_layers is 0. An incomplete batch is padded."""
    threads: AutoOrCount = "auto"
    """Number of torch's threads in one segment actor.

    `auto` is resolved on the machine that creates the dataset. If this machine's CPU runs the build, it is each actor's
    share from `pipeline/building/first_numerics.py`. If a cluster's CPUs run it, it is the number of this machine's
    physical cores. On a GPU, it is 1.
    """


def without_artifacts(row: Mapping[str, Any], columns: dict[str, Any], artifact_iou: float | None) -> dict[str, Any]:
    """Return an image's columns `masks` and `funnel` without artifacts of de-identification.

    `row` contains the keys of `PREPARED`. `artifact_iou` is the minimum IoU of an artifact with a region, or None if no
    mask is one. The IoU used here equals the `redaction_iou` that would be written for the mask.
    """
    masks = columns["masks"]
    if artifact_iou is None or not row["regions"] or not masks:
        return columns
    counts = [mask["segmentation"]["counts"] for mask in masks]
    near = redactions(row, counts).iou
    kept = [mask for mask, iou in zip(masks, near.tolist(), strict=True) if iou < artifact_iou]
    funnel = {**columns["funnel"], "written": len(kept), "redaction_artifacts": len(masks) - len(kept)}
    return {**columns, "masks": kept, "funnel": funnel}
