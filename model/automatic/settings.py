"""Hyperparameters of automatic mask generation, and the profiles that set their defaults."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, cast, get_args

import numpy as np

from segmint.infra.arrays import Floats, Size
from segmint.model.sam.geometry import SAM1

Profile = Literal["official", "sa1b", "sam2"]

# A CPU decodes the image side of a few prompts at a time so that their maps stay in its cache. The tokens have only
# small products, which run once per chunk. Chunks of more than 8 prompts gain little, and each additional prompt takes
# another 2 MB.
DEFAULT_POINTS_PER_CHUNK = 8

# A GPU needs many prompts at once. With SA-1B's settings, a crop of layer 1 has 256 points.
CUDA_POINTS_PER_CHUNK = 256

# While a chunk is drawn, each point takes 2^21 numbers with `SAM1`, and the kernels can index only 2^31. In practice,
# chunks stop getting faster long before this limit.
MAX_POINTS_PER_CHUNK = 1023


def small_chunk(points_per_chunk: int) -> int:
    """Return the smaller of the two chunk sizes that a GPU uses. A CPU uses only one size.

    The smaller size is a quarter of `points_per_chunk`. With SA-1B's settings, a crop of layer 2 has 64 points, and
    decoding it as a chunk of 256 would take four times as long.
    """
    return max(1, points_per_chunk // 4)


class _ProfileDefault:
    """Placeholder for a default that depends on the profile."""

    def __repr__(self) -> str:
        return "the profile's"


_OF_PROFILE: Any = _ProfileDefault()


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """Settings for proposing and filtering masks. The profile provides the default for each key that you omit.

    The default profile is `sa1b`, so `MaskSettings(points_per_side=16)` equals `MaskSettings.sa1b(points_per_side=16)`.

    The profile also controls two behaviors that have no key. `sa1b` cuts crops from the original image if you pass one,
    and it drops a mask if all islands of the mask are smaller than `min_mask_region_area`. The other profiles always
    cut crops from the image itself, and they keep the largest island of such a mask.

    Attributes:
        profile: "official" (behaves like SAM's reference code), "sam2" (behaves like SAM 2's reference code), or "sa1b"
            (SAM paper, Appendix B).
        points_per_side: number of grid points along each side of the full image.
        crop_n_layers: number of crop layers. Layer L has 2^L x 2^L crops.
        crop_n_points_downscale_factor: in layer L, each crop's grid has int(points_per_side / factor^L) points per
            side.
        crop_overlap_ratio: overlap of the crops in layer 1, as a fraction of the image's short side.
        pred_iou_thresh: drops masks unless their predicted IoU exceeds this value. 0 or less disables the filter.
        stability_score_thresh: drops masks with a stability score below this value. 0 or less disables the filter.
        stability_score_offset: distance of the two stability thresholds from 0, in logits.
        box_nms_thresh: NMS threshold within a crop. A mask suppresses another if the IoU of their boxes exceeds it.
        crop_nms_thresh: NMS threshold between masks of different crops.
        min_mask_region_area: area in pixels below which holes are filled and islands are removed. 0 disables cleanup.
        max_mask_area_ratio: drops masks that cover at least this fraction of the image. 0 disables the filter.
        use_m2m: decodes each mask a second time, from its point and its logits, before the filters run. Adds 3 prompts
            per point.
        points_per_chunk: number of prompts to decode at once, at most 1,023 on CUDA. None uses the device's default (8
            on a CPU, 256 on CUDA). The value mainly affects speed and memory, but it also changes the last bits of the
            logits, so datasets record it.
    """

    profile: Profile = "sa1b"
    points_per_side: int = _OF_PROFILE
    crop_n_layers: int = _OF_PROFILE
    crop_n_points_downscale_factor: int = _OF_PROFILE
    crop_overlap_ratio: float = _OF_PROFILE
    pred_iou_thresh: float = _OF_PROFILE
    stability_score_thresh: float = _OF_PROFILE
    stability_score_offset: float = _OF_PROFILE
    box_nms_thresh: float = _OF_PROFILE
    crop_nms_thresh: float = _OF_PROFILE
    min_mask_region_area: int = _OF_PROFILE
    max_mask_area_ratio: float = _OF_PROFILE
    use_m2m: bool = False
    points_per_chunk: int | None = _OF_PROFILE

    @classmethod
    def official(cls, **overrides: Any) -> Self:
        """Return the defaults of SAM's reference generator, without crops and cleanup. Raises ValueError like `of`.

        If you enable crops, each layer has half as many points per side as the previous one, unless you set the factor.
        """
        return cls.of("official", **overrides)

    @classmethod
    def sa1b(cls, **overrides: Any) -> Self:
        """Return SA-1B's settings (SAM paper, Appendix B). Raises ValueError like `of`."""
        return cls.of("sa1b", **overrides)

    @classmethod
    def sam2(cls, **overrides: Any) -> Self:
        """Return the defaults of SAM 2's reference generator. See `official`. Raises ValueError like `of`."""
        return cls.of("sam2", **overrides)

    @classmethod
    def of(cls, profile: str, /, **overrides: Any) -> Self:
        """Return the settings of the profile with this name. Explicit keys override its defaults.

        Raises ValueError if a key is unknown or a value is invalid. The message includes the key, the value, and what
        was expected.
        """
        known = [field.name for field in fields(cls) if field.name != "profile"]
        unknown = sorted(set(overrides) - set(known))
        if unknown:
            raise ValueError(f"masks.{unknown[0]} is not a setting: expected one of {', '.join(known)}")
        return cls(profile=cast(Profile, profile), **overrides)

    def __post_init__(self) -> None:
        if self.profile not in get_args(Profile):
            raise ValueError(f"masks.profile is {self.profile!r}: expected 'official', 'sa1b', or 'sam2'")
        for key, value in _defaults(self.profile, self.crop_n_layers).items():
            if getattr(self, key) is _OF_PROFILE:
                object.__setattr__(self, key, value)
        self._check_int("points_per_side", 1)
        self._check_int("crop_n_layers", 0)
        self._check_int("crop_n_points_downscale_factor", 1)
        self._check_int("min_mask_region_area", 0)
        if not isinstance(self.use_m2m, bool):
            raise ValueError(f"masks.use_m2m is {self.use_m2m!r}: expected true or false")
        if self.points_per_chunk is not None:
            self._check_int("points_per_chunk", 1)
        self._check_real("crop_overlap_ratio", 0.0, 1.0)
        self._check_real("pred_iou_thresh")
        self._check_real("stability_score_thresh")
        self._check_real("stability_score_offset", 0.0)
        self._check_real("box_nms_thresh", 0.0, 1.0)
        self._check_real("crop_nms_thresh", 0.0, 1.0)
        self._check_real("max_mask_area_ratio", 0.0, 1.0)
        if self.points_of_layer(self.crop_n_layers) < 1:
            factor = self.crop_n_points_downscale_factor
            raise ValueError(
                f"masks.points_per_side is {self.points_per_side}: expected at least "
                f"{factor**self.crop_n_layers}, so that crops of layer {self.crop_n_layers} have a point "
                f"(crop_n_points_downscale_factor is {factor})"
            )

    @property
    def encodes(self) -> int:
        """Number of times that the image encoder runs per image. Layer L has 4^L crops."""
        return sum(4**layer for layer in range(self.crop_n_layers + 1))

    @property
    def points(self) -> int:
        """Number of grid points per image, including the points of all crops."""
        return sum(4**layer * self.count_of_layer(layer) for layer in range(self.crop_n_layers + 1))

    def chunk_on(self, device: str) -> int:
        """Return `points_per_chunk`, or the default for "cpu" or "cuda". Raises ValueError if it is too large."""
        if self.points_per_chunk is not None:
            if device == "cuda":
                self._check_int("points_per_chunk", 1, MAX_POINTS_PER_CHUNK)
            return self.points_per_chunk
        return CUDA_POINTS_PER_CHUNK if device == "cuda" else DEFAULT_POINTS_PER_CHUNK

    def points_of_layer(self, layer: int) -> int:
        """Return the number of points per side in a crop's grid. Layer 0 is the full image."""
        return int(self.points_per_side / self.crop_n_points_downscale_factor**layer)

    def grid_of_layer(self, layer: int) -> Floats:
        """Return the grid points of a crop in this layer, (P, 2) float64 as (x, y).

        The coordinates are fractions of the crop's width and height.
        """
        return point_grid(self.points_of_layer(layer))

    def count_of_layer(self, layer: int) -> int:
        """Return the number of grid points of a crop in this layer."""
        return self.points_of_layer(layer) ** 2

    def _plain(self, key: str) -> Any:
        """Return a setting, after a NumPy number was converted to Python's."""
        value = getattr(self, key)
        if isinstance(value, np.generic):
            value = value.item()
            object.__setattr__(self, key, value)
        return value

    def _check_int(self, key: str, least: int, most: float = math.inf) -> None:
        value = self._plain(key)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            bounds = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
            raise ValueError(f"masks.{key} is {value!r}: expected an integer {bounds}")

    def _check_real(self, key: str, least: float = -math.inf, most: float = math.inf) -> None:
        value = self._plain(key)
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not least <= value <= most:
            bounds = {
                (False, False): "",
                (True, False): f" of at least {least:g}",
                (True, True): f" from {least:g} to {most:g}",
            }[least > -math.inf, most < math.inf]
            raise ValueError(f"masks.{key} is {value!r}: expected a finite number{bounds}")


def _defaults(profile: Profile, crop_n_layers: int) -> dict[str, Any]:
    """Return the profile's default for each key. If the user didn't set `crop_n_layers`, pass `_OF_PROFILE`."""
    has_crops = profile == "sa1b" or (crop_n_layers is not _OF_PROFILE and bool(crop_n_layers))
    return {
        "points_per_side": 32,
        "crop_n_layers": 2 if profile == "sa1b" else 0,
        "crop_n_points_downscale_factor": 2 if has_crops else 1,
        "crop_overlap_ratio": 512 / 1500,
        "pred_iou_thresh": 0.8 if profile == "sam2" else 0.88,
        "stability_score_thresh": 0.95,
        "stability_score_offset": 1.0,
        "box_nms_thresh": 0.7,
        "crop_nms_thresh": 0.7,
        "min_mask_region_area": 100 if profile == "sa1b" else 0,
        "max_mask_area_ratio": 0.95 if profile == "sa1b" else 0.0,
        "points_per_chunk": None,
    }


def point_grid(per_side: int) -> Floats:
    """Return evenly spaced points in the unit square, (per_side^2, 2) float64 as (x, y), row by row."""
    margin = 1 / (2 * per_side)
    line = np.linspace(margin, 1 - margin, per_side)
    y, x = np.meshgrid(line, line, indexing="ij")
    return np.stack([x.ravel(), y.ravel()], axis=1)


def crop_length(length: int, per_side: int, overlap: int) -> int:
    """Return the side length in pixels of each of `per_side` crops that together cover `length` pixels.

    Adjacent crops overlap by `overlap` pixels.
    """
    return math.ceil((overlap * (per_side - 1) + length) / per_side)


def enough_for_crops(frame_size: Size, layers: int, overlap_ratio: float) -> Size:
    """Return the smallest (height, width) of an original from which the last layer's crops fill the encoder's input.

    `frame_size` is the (height, width) of the frame. With an original of this size, the long side of such a crop has
    `SAM1.image_size` pixels or slightly more. The result can be smaller than the frame.
    """
    height, width = frame_size
    per_side = 2**layers
    overlap = int(overlap_ratio * min(height, width) * (2 / per_side))
    longest = max(crop_length(side, per_side, overlap) for side in frame_size)
    return -(-height * SAM1.image_size // longest), -(-width * SAM1.image_size // longest)
