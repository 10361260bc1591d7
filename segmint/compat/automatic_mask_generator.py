"""Automatic mask generation with the interface of `segment_anything`, which returns masks as dictionaries."""

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from segmint.compat.predictor import SamPredictor
from segmint.compat.sam import Sam
from segmint.model.automatic.generator import MaskGenerator
from segmint.model.automatic.records import MaskRecord
from segmint.model.automatic.rle import Rle, decode, decompress
from segmint.model.automatic.settings import MaskSettings
from segmint.model.sam import sam as base
from segmint.pipeline.masks.interactive.images import Image, pixels_of


class SamAutomaticMaskGenerator:
    """Automatic mask generator: segmint's `official` profile with the reference's argument names and defaults.

    `output_mode` is `binary_mask` (bool arrays), `uncompressed_rle`, or `coco_rle`. `points_per_batch` has no effect
    because segmint picks a batch size that suits the device. Changes to the attributes apply from the next image.
    Raises ValueError for `point_grids`, which segmint does not support, for an unknown `output_mode`, and for settings
    out of range.
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
        if point_grids is not None or points_per_side is None:
            raise ValueError("point_grids is not supported: expected points_per_side, the side of an even grid")
        if output_mode not in _FORMS:
            raise ValueError(f"output_mode is {output_mode!r}: expected one of {', '.join(_FORMS)}")
        self.points_per_side = points_per_side
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
        return MaskSettings.official(
            points_per_side=self.points_per_side,
            pred_iou_thresh=self.pred_iou_thresh,
            stability_score_thresh=self.stability_score_thresh,
            stability_score_offset=self.stability_score_offset,
            box_nms_thresh=self.box_nms_thresh,
            crop_n_layers=self.crop_n_layers,
            crop_nms_thresh=self.crop_nms_thresh,
            crop_overlap_ratio=self.crop_overlap_ratio,
            crop_n_points_downscale_factor=self.crop_n_points_downscale_factor,
            min_mask_region_area=self.min_mask_region_area,
        )

    def generate(self, image: Image) -> list[dict[str, Any]]:
        """Return a dictionary for each mask of an image.

        The image is (height, width, 3) uint8 RGB or anything that `pixels_of` accepts. The keys are `segmentation` in
        the format of `output_mode`, `area` in pixels, `bbox` and `crop_box` as [x, y, width, height] in whole pixels,
        `predicted_iou`, `point_coords` as [[x, y]], and `stability_score`.
        """
        records = self._generator().generate(pixels_of(image)).records
        return [_dictionary(record, _FORMS[self.output_mode]) for record in records]

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


def _uncompressed(rle: Rle) -> dict[str, list[int]]:
    return {"size": list(rle.size), "counts": decompress(rle.counts).tolist()}


def _coco(rle: Rle) -> dict[str, Any]:
    return {"size": list(rle.size), "counts": rle.counts}


_FORMS: dict[str, Callable[[Rle], Any]] = {
    "binary_mask": decode,
    "uncompressed_rle": _uncompressed,
    "coco_rle": _coco,
}
