"""Masks from boxes as a measure: matches for the AP if the boxes have scores, otherwise the IoU of each mask."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segmint.operators.evaluate.average_precision import MOST, MOST_LVIS
from segmint.operators.evaluate.coco_matching import ImageMatches, PredictedMask, match_masks
from segmint.operators.evaluate.instances import boxes_of, iou_assigned, iou_in_order, segment_boxes
from segmint.operators.rows import Row
from segmint.pipeline.engine.evaluate.instances.boxes import NO_CATEGORY, BoxesByImage, ImageBoxes
from segmint.pipeline.engine.evaluate.measure import HEAD, Model, PredictedResult, Predictions, with_embeddings
from segmint.pipeline.engine.evaluate.proposals.measure import true_masks
from segmint.pipeline.engine.evaluate.truth import Truth, TruthImage, TruthMask

_WEIGHTS = pa.field("weights", pa.int32(), nullable=False)  # index of the weights in the command, from 0


@dataclass(frozen=True)
class PrecisionMeasure:
    """Measure that matches masks from a detector's boxes with the truth, in a row for each image and category.

    With `federated`, as in LVIS, only the categories that were checked in an image count.
    """

    boxes: BoxesByImage
    refine: bool = True
    federated: bool = False

    name = "instances"

    @property
    def schema(self) -> pa.Schema:
        """`HEAD`, the weights, the category, and the fields of `ImageMatches`: scores, bits, and true masks by size."""
        return pa.schema(
            [
                *HEAD,
                _WEIGHTS,
                pa.field("category", pa.int64(), nullable=False),
                pa.field("scores", pa.list_(pa.float64()), nullable=False),
                pa.field("bits", pa.binary(), nullable=False),
                pa.field("true_masks", pa.list_(pa.int64()), nullable=False),
            ]
        )

    def check(self, truths: Sequence[Truth]) -> None:
        """Accept any single truth."""

    def rows(self, models: Sequence[Model], image: TruthImage) -> list[Row]:
        """Prompt each model with the image's boxes."""
        wanted = self.boxes.of(image.image_id, image.name)
        wanted = wanted.best_of_all(MOST_LVIS) if self.federated else wanted.best(MOST)
        assert wanted.scores is not None, "a file without scores is another measure"
        checked = image.checked if self.federated else None
        truth: dict[int, list[TruthMask]] = {}
        for true in image.masks:
            truth.setdefault(_category(true) if self.boxes.categories else NO_CATEGORY, []).append(true)
        rows: list[Row] = []
        for weights, masks in enumerate(_segment(models, image, wanted, self.refine)):
            found: dict[int, list[PredictedMask]] = {}
            if self.federated:
                masks = sorted(masks, key=lambda mask: -(mask.score or 0.0))[:MOST_LVIS]
            for mask in masks:
                category = self._category(mask)
                if checked is None or category in checked:
                    found.setdefault(category, []).append(PredictedMask(mask.rle, mask.score or 0.0))
            for category in sorted({*truth, *found}):
                matches = match_masks(
                    true_masks(truth.get(category, [])),
                    found.get(category, []),
                    MOST if checked is None else MOST_LVIS,
                    exhaustive=checked is None or category not in image.not_exhaustive,
                )
                rows.append(
                    {
                        "weights": weights,
                        "category": category,
                        "scores": matches.scores.tolist(),
                        "bits": matches.bits.tobytes(),
                        "true_masks": matches.truth.tolist(),
                    }
                )
        return rows

    def _category(self, mask: PredictedResult) -> int:
        return NO_CATEGORY if mask.category is None or not self.boxes.categories else mask.category


def matches_of(row: Row) -> ImageMatches:
    """Return the matches of a row of `PrecisionMeasure`."""
    return ImageMatches(
        np.array(row["scores"], dtype=np.float64),
        np.frombuffer(row["bits"], dtype=np.uint8),
        np.array(row["true_masks"], dtype=np.int64),
    )


@dataclass(frozen=True)
class OverlapMeasure:
    """Measure of the IoU between masks from boxes and the truth, in a row for each true mask except crowds.

    Without `boxes`, the prompts are the boxes of the true masks. Otherwise, the prompts are the file's boxes, and each
    true mask is paired with at most one predicted mask of its category. The pairing maximizes the sum of the IoUs.
    """

    boxes: BoxesByImage | None = None
    refine: bool = True

    name = "instances"

    @property
    def schema(self) -> pa.Schema:
        """`HEAD`, the weights, the mask's id, label, and area, and its IoU."""
        return pa.schema(
            [
                *HEAD,
                _WEIGHTS,
                pa.field("mask", pa.int64(), nullable=False),  # id of the annotation
                pa.field("label", pa.string()),
                pa.field("area", pa.int64(), nullable=False),  # pixels
                pa.field("iou", pa.float64(), nullable=False),
            ]
        )

    def check(self, truths: Sequence[Truth]) -> None:
        """Accept any number of truths, but only a single truth if there is a file of boxes."""

    def rows(self, models: Sequence[Model], image: TruthImage) -> list[Row]:
        """Prompt each model with the boxes. Raises ValueError if the image has no masks other than crowds."""
        masks = [mask for mask in image.masks if not mask.crowd]
        if not masks:
            raise ValueError("it has no mask")
        rows: list[Row] = []
        given = None if self.boxes is None else self.boxes.of(image.image_id, image.name)
        boxes = boxes_of([mask.rle for mask in masks]) if given is None else given.boxes
        prompts = given or ImageBoxes(boxes, None, np.full(len(boxes), NO_CATEGORY))
        for weights, (model, found) in enumerate(
            zip(models, _segment(models, image, prompts, self.refine), strict=True)
        ):
            in_order = given is None and not isinstance(model, Predictions)
            for mask, iou in zip(masks, self._overlaps(masks, found, in_order), strict=True):
                place = {"weights": weights, "mask": mask.id, "label": mask.label, "area": mask.area}
                rows.append({**place, "iou": float(iou)})
        return rows

    def _overlaps(
        self, masks: Sequence[TruthMask], found: Sequence[PredictedResult], in_order: bool
    ) -> NDArray[np.float64]:
        rles = [mask.rle for mask in masks]
        if in_order:
            return iou_in_order(rles, [mask.rle for mask in found])
        overlaps = np.zeros(len(masks))
        categories = self.boxes is not None and self.boxes.categories
        of_mask = [_category(mask) if categories else NO_CATEGORY for mask in masks]
        for category in set(of_mask):
            places = [place for place, each in enumerate(of_mask) if each == category]
            among = [mask.rle for mask in found if not categories or mask.category == category]
            overlaps[places] = iou_assigned([rles[place] for place in places], among)
        return overlaps


def _segment(
    models: Sequence[Model], image: TruthImage, prompts: ImageBoxes, refine: bool
) -> list[Sequence[PredictedResult]]:
    """Predict each model's masks for the boxes, with the boxes' scores and categories, or return its `Predictions`."""
    scores = [None] * len(prompts.boxes) if prompts.scores is None else prompts.scores.tolist()
    found: list[Sequence[PredictedResult]] = []
    if not len(prompts.boxes):  # without boxes, no model needs an embedding
        return [each.results_for(image) if isinstance(each, Predictions) else [] for each in models]
    for model in with_embeddings(models, image.pixels):
        if isinstance(model, Predictions):
            found.append(model.results_for(image))
            continue
        masks = segment_boxes(*model, prompts.boxes, refine)
        rows = zip(masks, scores, prompts.categories.tolist(), strict=True)
        found.append([PredictedResult(mask.rle, score, category) for mask, score, category in rows])
    return found


def _category(mask: TruthMask) -> int:
    return NO_CATEGORY if mask.category is None else mask.category
