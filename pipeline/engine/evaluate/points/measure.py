"""Evaluation by clicks as a measure, with a row for each mask and set of weights."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
from pycocotools import mask as coco

from segmint.infra.wording import counted, listed
from segmint.operators.evaluate.points import MaskScores, NoNumberError, click_masks, no_answer
from segmint.operators.evaluate.settings import PointsSettings
from segmint.operators.rows import Row
from segmint.pipeline.engine.evaluate.measure import (
    HEAD,
    Model,
    PartlyMeasuredError,
    PredictedResult,
    Predictions,
    with_embeddings,
)
from segmint.pipeline.engine.evaluate.truth import Truth, TruthImage, TruthMask

_RLE = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.binary())])

DRAWN = ["truth_rle", "first_rle", "last_rle"]
"""Columns that aren't stored because only the page needs them: the true mask, and the model's first and last choice."""


@dataclass(frozen=True)
class PointsMeasure:
    """Measure that clicks on each mask except crowds.

    `group_by` is the name of an image column, or `label` or `source` of masks.
    """

    settings: PointsSettings = field(default_factory=PointsSettings)
    group_by: str | None = None

    name = "points"

    @property
    def schema(self) -> pa.Schema:
        """`HEAD`, the mask's attributes, and its scores after each number of clicks."""
        scores = [pa.field(f"{kind}_{count}", pa.float64()) for kind in SCORES for count in self.settings.clicks]
        return pa.schema(
            [
                *HEAD,
                pa.field("mask", pa.int64(), nullable=False),  # id of the annotation
                pa.field("label", pa.string()),
                pa.field("source", pa.string()),
                pa.field("group", pa.string()),
                pa.field("area", pa.int64(), nullable=False),  # pixels
                pa.field("weights", pa.int32(), nullable=False),  # index of the weights in the command, from 0
                *scores,
                # in order; label is 1 for foreground and 0 for background
                pa.field("clicks", pa.list_(pa.struct([("x", pa.int32()), ("y", pa.int32()), ("label", pa.int8())]))),
                *(pa.field(name, _RLE) for name in DRAWN),
            ]
        )

    def check(self, truths: Sequence[Truth]) -> None:
        """Accept any truth."""

    def rows(self, models: Sequence[Model], image: TruthImage) -> list[Row]:
        """Click on the image's masks with each model. Raises ValueError if the image has no masks.

        If only one of two models predicts NaN, its scores count as 0, because the comparison would otherwise lose the
        image. `PartlyMeasuredError` is then raised. If all models predict NaN, ValueError is raised.
        """
        masks = [mask for mask in image.masks if not mask.crowd]
        if not masks:
            raise ValueError("it has no masks to click on")
        rles = [mask.rle for mask in masks]
        numbers = [_number(image.name, mask.id) for mask in masks]
        by_model: list[list[MaskScores]] = []
        failed: dict[int, NoNumberError] = {}
        missing: list[str] = []
        for place, model in enumerate(with_embeddings(models, image.pixels)):
            if isinstance(model, Predictions):
                results = model.results_for(image)
                by_model.append(self._predicted(results, masks))
                if without := {mask.id for mask in masks} - {each.mask for each in results}:
                    missing.append(f"{counted(len(without), 'mask')} without a prediction in {model.label}")
                continue
            try:
                by_model.append(click_masks(*model, rles, numbers, self.settings))
            except NoNumberError as error:
                failed[place] = error
                by_model.append([no_answer(rle, self.settings) for rle in rles])
        if len(failed) == len(models):
            raise failed[0]
        rows = self._rows(image, masks, by_model)
        for place, why in failed.items():
            which = ("first", "second")[place]
            raise PartlyMeasuredError(f"counted with scores of 0 for the {which} weights: {why}", rows)
        if missing:
            raise PartlyMeasuredError(f"counted with scores of 0: {listed(missing)}", rows)
        return rows

    def _predicted(self, results: Sequence[PredictedResult], masks: Sequence[TruthMask]) -> list[MaskScores]:
        """Score predictions after each number of clicks. The last predictions also count for later clicks."""
        found: list[MaskScores] = []
        for mask in masks:
            blank = no_answer(mask.rle, self.settings)
            own = [each for each in results if each.mask == mask.id]
            choices: list[PredictedResult] = []
            scores: list[tuple[float, float, float]] = []
            for count in self.settings.clicks:
                latest = max((each.clicks or 0 for each in own if (each.clicks or 0) <= count), default=None)
                now = [each for each in own if each.clicks == latest]
                if not now:
                    scores.append((0.0, 0.0, 0.0))
                    continue
                ious = coco.iou([each.rle for each in now], [mask.rle], [0])[:, 0].tolist()
                scores.append((ious[0], max(ious), now[0].score or 0.0))
                choices.append(now[0])
            first, last = (choices[0].rle, choices[-1].rle) if choices else (blank.first, blank.last)
            iou, oracle, predicted = zip(*scores, strict=True)
            found.append(MaskScores(iou, oracle, predicted, (), first, last))
        return found

    def _rows(
        self, image: TruthImage, masks: Sequence[TruthMask], by_model: Sequence[Sequence[MaskScores]]
    ) -> list[Row]:
        rows = []
        for place, mask in enumerate(masks):
            group = self._group(image, mask.label, mask.source)
            for weights, of_masks in enumerate(by_model):
                scores = of_masks[place]
                row = {
                    "mask": mask.id,
                    "label": mask.label,
                    "source": mask.source,
                    "group": group,
                    "area": mask.area,
                    "weights": weights,
                    **self._scores(scores),
                    "clicks": [click._asdict() for click in scores.clicks],
                    **dict(zip(DRAWN, (mask.rle, scores.first, scores.last), strict=True)),
                }
                rows.append(row)
        return rows

    def _scores(self, scores: MaskScores) -> Row:
        row = {}
        for kind, values in zip(SCORES, (scores.iou, scores.oracle, scores.predicted), strict=True):
            for count, value in zip(self.settings.clicks, values, strict=True):
                row[f"{kind}_{count}"] = value
        return row

    def _group(self, image: TruthImage, label: str | None, source: str | None) -> str | None:
        if self.group_by is None:
            return None
        value = {**image.columns, "label": label, "source": source}.get(self.group_by)
        return None if value is None else str(value)


SCORES = ("iou", "oracle", "predicted")
"""Scores of a mask: IoU of the model's choice, IoU of the best of three, and the IoU that the model predicts."""


def _number(image: str, mask: int) -> int:
    """Derive a mask's number for random clicks. It doesn't depend on where the dataset is stored."""
    return int.from_bytes(hashlib.sha256(f"{image}\0{mask}".encode()).digest()[:8]) >> 1
