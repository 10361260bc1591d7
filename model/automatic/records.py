"""Output of mask generation: the masks, and the number that remained after each step."""

import base64
import io
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from segmint.model.automatic.rle import Rle, decode

XYWH = tuple[float, float, float, float]


@dataclass(frozen=True)
class MaskRecord:
    """Mask with the fields of an SA-1B annotation. All coordinates are in pixels of the frame.

    A mask that is only drawn needs no more than `segmentation` and `area`.

    Attributes:
        segmentation: the mask over the whole frame.
        area: number of foreground pixels.
        bbox: (x, y, width, height) between the outermost pixels, inclusive. A single pixel has width 0.
        predicted_iou: the model's estimate of the mask's quality. It can exceed 1.
        stability_score: see `filters.stability_scores`.
        crop_box: (x, y, width, height) of the crop in which the generator found the mask.
        point_coords: (x, y) of the point that prompted the mask.
        output: index of the mask among the decoder's three outputs, 0 to 2, or None if unknown.
    """

    segmentation: Rle
    area: int
    bbox: XYWH = (0.0, 0.0, 0.0, 0.0)
    predicted_iou: float = 0.0
    stability_score: float = 0.0
    crop_box: XYWH = (0.0, 0.0, 0.0, 0.0)
    point_coords: tuple[float, float] = (0.0, 0.0)
    output: int | None = None

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Pixels of the mask, (height, width) bool. Each access decodes them again, so that records stay small."""
        return decode(self.segmentation)

    def __repr__(self) -> str:
        x, y, width, height = self.bbox
        return (
            f"MaskRecord(area={self.area}, bbox=({x:g}, {y:g}, {width:g}, {height:g}), "
            f"predicted_iou={self.predicted_iou:.3f}, stability_score={self.stability_score:.3f})"
        )

    def _repr_html_(self) -> str:
        """Render the mask in white on black for notebooks, with the text of `repr` below."""
        from PIL import Image

        picture = Image.fromarray(self.mask)
        picture.thumbnail((320, 320), Image.Resampling.NEAREST)
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
        return f'<figure style="margin:0"><img src="{source}" alt="the mask"><figcaption>{self!r}</figcaption></figure>'


@dataclass(frozen=True)
class Funnel:
    """Number of masks that remain after each step, over all crops. You can add the funnels of several images.

    From `predicted` to `after_nms2`, each count is at most the previous one. If a step is turned off, its count equals
    the previous one. `written` is `after_nms2 - removed_by_cleanup`.

    Attributes:
        predicted: masks that the decoder returned, three per prompt, without the padding of the last chunk.
        over_iou: remaining masks with a predicted IoU above the threshold.
        stable: remaining masks with a stability score of at least the threshold.
        under_max_area: remaining masks that cover less than the maximum fraction of the image.
        inside_crop: remaining masks that don't touch the inner edges of their crop.
        after_nms1: remaining masks after NMS within each crop.
        after_nms2: remaining masks after NMS across crops.
        cleaned: masks of `after_nms2` with a small hole or island. Includes masks that were dropped later.
        removed_by_cleanup: masks of `after_nms2` that cleanup dropped because all their islands were small, or that the
            NMS after cleanup suppressed.
        written: masks that the generator returned.
        holes_filled: masks of `after_nms2` with a small hole. Includes masks that were dropped later.
        islands_removed: masks of `after_nms2` with a small island. Includes masks that were dropped later. If a mask
            has both a hole and an island, `cleaned` counts it once. Profiles other than `sa1b` keep the largest island
            even if it is small, and count such a mask here too.
        redaction_artifacts: masks that trace a redacted region. The generator doesn't know the regions, so its count is
            0. Builds drop such masks, count them here, and leave them out of `written`.
    """

    predicted: int = 0
    over_iou: int = 0
    stable: int = 0
    under_max_area: int = 0
    inside_crop: int = 0
    after_nms1: int = 0
    after_nms2: int = 0
    cleaned: int = 0
    removed_by_cleanup: int = 0
    written: int = 0
    holes_filled: int = 0
    islands_removed: int = 0
    redaction_artifacts: int = 0

    def __add__(self, other: "Funnel") -> "Funnel":
        """Add the counts of two funnels."""
        return Funnel(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class GeneratedMasks:
    """Masks of one image, in the order of the reference code, with the number of masks after each step."""

    records: tuple[MaskRecord, ...]
    funnel: Funnel

    def __repr__(self) -> str:
        return f"Generated({len(self.records)} masks of {self.funnel.predicted:,} predicted)"
