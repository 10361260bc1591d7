"""Automatic mask generation with the interface of `segment_anything`, which returns masks as dictionaries."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmint.compat.predictor import SamPredictor
from segmint.compat.sam import Sam
from segmint.compat.utils.amg import uncompressed
from segmint.infra.arrays import Floats
from segmint.model.automatic.generator import MaskGenerator
from segmint.model.automatic.rle import MaskRecord, Rle, decode
from segmint.model.automatic.settings import MaskSettings
from segmint.model.sam import load as base
from segmint.pipeline.masks.results import Image, pixels_of

_KEYS = (
    "pred_iou_thresh",
    "stability_score_thresh",
    "stability_score_offset",
    "box_nms_thresh",
    "crop_n_layers",
    "crop_nms_thresh",
    "crop_overlap_ratio",
    "min_mask_region_area",
)
"""Settings that have the same name and meaning in segmint."""


@dataclass(frozen=True, kw_only=True)
class _GridSettings(MaskSettings):
    """Settings with arbitrary points. `grids` contains the (x, y) of each crop layer's points."""

    grids: tuple[tuple[tuple[float, float], ...], ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.grids) <= self.crop_n_layers:
            raise ValueError(
                f"point_grids has {len(self.grids)} grids: expected {self.crop_n_layers + 1}, one per layer"
            )

    def grid_of_layer(self, layer: int) -> Floats:
        return np.array(self.grids[layer])

    def count_of_layer(self, layer: int) -> int:
        return len(self.grids[layer])


def _checked_grid(grid: NDArray[Any]) -> tuple[tuple[float, float], ...]:
    points = np.asarray(grid, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points) or not ((points >= 0) & (points <= 1)).all():
        raise ValueError(f"point_grids has a grid of shape {points.shape}: expected (P, 2), as x and y from 0 to 1")
    return tuple((x, y) for x, y in points.tolist())


class SamAutomaticMaskGenerator:
    """Automatic mask generator: segmint's `official` profile with the reference's argument names and defaults.

    `output_mode` is `binary_mask` (bool arrays), `uncompressed_rle`, or `coco_rle`. `points_per_batch` has no effect,
    because segmint picks a batch size that suits the device. Changes to the attributes apply from the next image on.
    `point_grids` contains the points of each crop layer, (P, 2) as x and y from 0 to 1, and replaces `points_per_side`.
    Raises ValueError if both or neither of these two are given, if `output_mode` is unknown, or if a setting is out of
    range.
    """

    def __init__(
        self,
        model: base.Sam,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[NDArray[Any]] | None = None,
        min_mask_region_area: int = 0,
        output_mode: str = "binary_mask",
    ) -> None:
        if output_mode not in FORMS:
            raise ValueError(f"output_mode is {output_mode!r}: expected one of {', '.join(FORMS)}")
        self.points_per_side = points_per_side
        self.point_grids = point_grids
        self.points_per_batch = points_per_batch
        self.pred_iou_thresh = pred_iou_thresh
        self.stability_score_thresh = stability_score_thresh
        self.stability_score_offset = stability_score_offset
        self.box_nms_thresh = box_nms_thresh
        self.crop_n_layers = crop_n_layers
        self.crop_nms_thresh = crop_nms_thresh
        self.crop_overlap_ratio = crop_overlap_ratio
        self.crop_n_points_downscale_factor = crop_n_points_downscale_factor
        self.min_mask_region_area = min_mask_region_area
        self.output_mode = output_mode
        _ = self.settings  # validated before a model is prepared
        self.model = Sam.of(model)
        self.predictor = SamPredictor(self.model)
        self._prepared: MaskGenerator | None = None

    @property
    def settings(self) -> MaskSettings:
        """Attributes converted to segmint's settings. Raises ValueError if one is out of range."""
        if (self.points_per_side is None) == (self.point_grids is None):
            raise ValueError("expected either points_per_side or point_grids, and None for the other")
        keys = {name: getattr(self, name) for name in _KEYS}
        if self.point_grids is not None:
            grids = tuple(map(_checked_grid, self.point_grids))
            return _GridSettings.official(grids=grids, points_per_side=1, crop_n_points_downscale_factor=1, **keys)
        factor = self.crop_n_points_downscale_factor
        return MaskSettings.official(
            points_per_side=self.points_per_side, crop_n_points_downscale_factor=factor, **keys
        )

    def generate(self, image: Image) -> list[dict[str, Any]]:
        """Return a dictionary for each mask of an image.

        The image is (height, width, 3) uint8 RGB or anything that `pixels_of` accepts. The keys are `segmentation` in
        the format of `output_mode`, `area` in pixels, `bbox` and `crop_box` as [x, y, width, height] in whole pixels,
        `predicted_iou`, `point_coords` as [[x, y]], and `stability_score`.
        """
        records = self._generator().generate(pixels_of(image)).records
        return [_dictionary(record, FORMS[self.output_mode]) for record in records]

    def _generator(self) -> MaskGenerator:
        predictor, settings = self.model.predictor(), self.settings
        made = self._prepared
        if made is None or made.predictor is not predictor or made.settings != settings:
            made = self._prepared = MaskGenerator(predictor, settings)
        return made


def _dictionary(record: MaskRecord, form: Callable[[Rle], Any]) -> dict[str, Any]:
    return {
        "segmentation": form(record.segmentation),
        "area": record.area,
        "bbox": [int(number) for number in record.bbox],
        "predicted_iou": record.predicted_iou,
        "point_coords": [list(record.point_coords)],
        "stability_score": record.stability_score,
        "crop_box": [int(number) for number in record.crop_box],
    }


def _coco(rle: Rle) -> dict[str, Any]:
    return {"size": list(rle.size), "counts": rle.counts}


FORMS: dict[str, Callable[[Rle], Any]] = {
    "binary_mask": decode,
    "uncompressed_rle": uncompressed,
    "coco_rle": _coco,
}
