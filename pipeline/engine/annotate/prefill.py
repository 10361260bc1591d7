"""Prefilled masks for images of the semi-automatic stage (SAM paper, Section 4).

A one-class detector finds boxes of objects in the released image, and the model predicts a mask for each box. The
confident masks are prefilled, so annotators only add the objects that are missing. A mask is confident if a build with
the dataset's settings would keep it: it passes the thresholds of predicted IoU and stability, and NMS by box doesn't
suppress it.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.infra.arrays import Box, Floats32, Pixels, Size
from segmint.infra.errors import UsageError
from segmint.infra.log import get_logger
from segmint.model.automatic.candidates import nms, over_iou, stable, under_max_area
from segmint.model.automatic.crops import box_of, xyxy_to_xywh
from segmint.model.automatic.rle import encode
from segmint.model.automatic.settings import MaskSettings
from segmint.model.sam.predictor import Embedding, Predictor
from segmint.operators.annotations.folder import iou
from segmint.operators.audit.privacy import DetectorFailedError, IsolatedDetector, NotLoadedError
from segmint.operators.images import JpegDecoder, decode_jpeg
from segmint.operators.prepare.onnx_file import contract
from segmint.operators.segment.mask_config import MasksConfig
from segmint.pipeline.engine.annotate.source import OpenImage, RecentImages

SAME_IOU = 0.7
"""IoU above which a mask counts as a duplicate of a mask in the dataset."""

MOST_BOXES = 300
"""Maximum number of boxes per image that prompt the model. The detector's best boxes come first."""

_LEAST_SIDE = 1.0  # pixels of a box inside the image


@dataclass(frozen=True)
class PrefilledMask:
    """Mask that the model predicted for a box (x, y, width, height), in pixels of the released image."""

    counts: str  # compressed run lengths
    area: int
    iou: float  # predicted
    stability: float
    box: tuple[float, float, float, float]
    bbox: tuple[float, float, float, float]  # bounding box of the pixels, as in the dataset

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "box": list(self.box), "bbox": list(self.bbox)}


@dataclass(frozen=True)
class _DrawnMask:
    mask: PrefilledMask
    corners: tuple[int, int, int, int]


def clipped(boxes: Sequence[Box], size: Size) -> list[Box]:
    """Clip boxes (x0, y0, x1, y1) to an image of `size` (height, width), keeping their order.

    Boxes that are narrower or shorter than a pixel after clipping are dropped.
    """
    height, width = size
    found = [(max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))) for x0, y0, x1, y1 in boxes]
    return [box for box in found if min(box[2] - box[0], box[3] - box[1]) >= _LEAST_SIDE]


@torch.inference_mode()
def prefill(
    predictor: Predictor, embedding: Embedding, boxes: Sequence[Box], there: Sequence[str], settings: MaskSettings
) -> list[PrefilledMask]:
    """Predict a mask for each box (x0, y0, x1, y1), and return the confident masks by descending predicted IoU.

    `there` contains the compressed run lengths of the masks that the image already has; masks that duplicate them are
    dropped. `settings` are the mask settings of the dataset's build.
    """
    height, width = embedding.frame_size
    drawn = [mask for box in clipped(boxes, (height, width)) for mask in _drawn(predictor, embedding, box, settings)]
    if not drawn:
        return []
    ious = np.array([each.mask.iou for each in drawn], np.float32)
    corners = np.array([each.corners for each in drawn], np.int64)
    kept = [drawn[index].mask for index in nms(corners, ious, settings.box_nms_thresh)]
    known = [{"size": [height, width], "counts": counts.encode()} for counts in there]
    if not known:
        return kept
    codes = [{"size": [height, width], "counts": mask.counts.encode()} for mask in kept]
    overlaps = np.asarray(iou(codes, known), np.float64)
    return [mask for mask, overlap in zip(kept, overlaps.max(axis=1), strict=True) if overlap <= SAME_IOU]


def _drawn(predictor: Predictor, embedding: Embedding, box: Box, settings: MaskSettings) -> Iterator[_DrawnMask]:
    """Predict the mask of a box, and yield it if the model is confident."""
    found = predictor.predict(embedding, boxes=np.array([box]), multimask=False)
    if not bool(over_iou(found.predicted_iou, settings.pred_iou_thresh)):
        return
    logits: Floats32 = predictor.upscale(found.low_res_logits, embedding)[0, 0].cpu().numpy()
    offset = settings.stability_score_offset
    counts = [int(np.count_nonzero(logits > each)) for each in (offset, -offset)]
    inner, outer = torch.tensor(counts, dtype=torch.float32)
    stability = inner / outer
    mask = logits > 0
    area = int(np.count_nonzero(mask))
    fits = under_max_area(np.array([area]), embedding.frame_size, settings.max_mask_area_ratio)
    if not area or not bool(stable(stability, settings.stability_score_thresh)) or not bool(fits):
        return
    x0, y0, x1, y1 = box
    corners = box_of(mask)
    asked = (x0, y0, x1 - x0, y1 - y0)
    iou = float(found.predicted_iou)
    yield _DrawnMask(
        PrefilledMask(encode(mask).counts, area, iou, float(stability), asked, xyxy_to_xywh(corners)), corners
    )


class ObjectFinder(AbstractContextManager["ObjectFinder"]):
    """Detector that runs a TorchScript file in a separate process. A context manager.

    The file follows the contract for detectors in docs/configuration.md, like the files that `segmint train --task
    objects` writes.
    """

    def __init__(self, path: Path) -> None:
        """Load the file and run it once on a blank image. Raises `UsageError` if either fails."""
        try:
            self._detector = IsolatedDetector(path, "object")
            self._detector.try_out()
        except NotLoadedError as error:
            raise UsageError(f"--prefill: {path} can't be loaded as TorchScript: {error}") from error
        except DetectorFailedError as error:
            self._detector.close()
            raise UsageError(
                f"--prefill: {path} failed on a blank image. Expected {contract(path)}: {error}"
            ) from error

    def boxes(self, image: Pixels) -> list[Box]:
        """Detect objects in an image, (H, W, 3) uint8 RGB, and return their boxes (x0, y0, x1, y1), best first.

        Raises `DetectorFailedError` if the detector fails on the image.
        """
        return [found.box for found in self._detector.detect(image)[:MOST_BOXES]]

    def __exit__(self, *_: object) -> None:
        self._detector.close()


@dataclass(frozen=True)
class _ImagePrefill:
    base: str
    jpeg_sha256: str
    masks: tuple[PrefilledMask, ...]


class PrefillCache:
    """Cache, `recent`, of the most recent images' prefilled masks, which are computed along with the embeddings.

    Thread-safe.
    """

    def __init__(
        self, finder: ObjectFinder, predictor: Predictor, decoder: JpegDecoder, settings: MaskSettings
    ) -> None:
        self._finder = finder
        self._predictor = predictor
        self._decoder = decoder
        self._settings = settings
        self.recent: RecentImages[_ImagePrefill] = RecentImages(64)

    def make(self, image: OpenImage, pixels: Pixels, embedding: Embedding) -> None:
        """Compute and store an image's masks. If the detector fails, log a warning and store no masks."""
        try:
            boxes = self._finder.boxes(pixels)
        except DetectorFailedError as error:
            get_logger("annotate").warning("detector_failed", image=image.place.id, error=str(error))
            boxes = []
        masks = prefill(self._predictor, embedding, boxes, list(image.counts.values()), self._settings)
        self.recent.put(image.place.id, _ImagePrefill(image.base, image.jpeg_sha256, tuple(masks)))

    def of(self, image: OpenImage, embedding: Embedding) -> tuple[PrefilledMask, ...]:
        """Return the masks of an image's current state, computing them if necessary."""
        for _ in range(2):
            made = self.recent.get(image.place.id)
            if made is not None and made.base == image.base:
                return made.masks
            self.make(image, self._decoder.run(decode_jpeg, image.jpeg), embedding)
        return ()  # another request has opened a different state of the image


def mask_settings(manifest: DatasetManifest) -> MaskSettings:
    """Return the settings that built a dataset's masks, or the defaults if the manifest doesn't record them."""
    try:
        return MasksConfig.model_validate(manifest.config.get("masks") or {}).settings()
    except ValidationError:
        return MasksConfig().settings()
