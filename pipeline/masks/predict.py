"""Mask prediction for one photograph, automatic or for prompts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from segmint.infra.arrays import Pixels
from segmint.model.automatic.candidates import stability_scores
from segmint.model.automatic.crops import box_of, xyxy_to_xywh
from segmint.model.automatic.generator import MaskGenerator, Report
from segmint.model.automatic.rle import MaskRecord, encode
from segmint.model.sam.predictor import Predictor
from segmint.operators.segment.mask_config import MasksConfig
from segmint.operators.segmenter.prompted import masks_of_prompts
from segmint.pipeline.masks.options import Frame, MasksOptions, PhotographPrompt


@dataclass(frozen=True)
class PromptedMask:
    """Mask with the points that prompted it: one grid point, all points of a prompt, or no points for just a box."""

    record: MaskRecord
    points: Sequence[tuple[float, float]]
    given: Mapping[str, Any] = field(default_factory=dict)  # the label and the prompt, as keys of the annotation


def automatic_masks(
    predictor: Predictor, frame: Frame, config: MasksConfig, report: Report | None = None
) -> list[PromptedMask]:
    """Return all masks of an image in its frame. Calls `report` as points are decoded."""
    generator = MaskGenerator(predictor, config.settings())
    records = generator.finish(generator.find(frame.image, frame.original, report)).records
    return [PromptedMask(record, (record.point_coords,)) for record in records]


def prompted_masks(predictor: Predictor, image: Pixels, options: MasksOptions) -> list[PromptedMask]:
    """Return the masks for the prompts, in order.

    The model predicts three masks per prompt. The result contains the mask with the best predicted IoU, or with
    `all_masks` all three, best first.
    """
    embedding = predictor.embed(image)
    found: list[PromptedMask] = []
    for prompt in options.prompts:
        predicted = predictor.predict(embedding, **_arguments(prompt), multimask=True)
        points = tuple((x, y) for x, y, _ in prompt.points)
        ranking = predicted.predicted_iou[0].argsort(descending=True, stable=True).tolist()
        for index in ranking if options.all_masks else ranking[:1]:
            logits = predictor.upscale(predicted.low_res_logits[:, index : index + 1], embedding)[0]
            point = points[0] if points else (math.nan, math.nan)
            iou, offset = float(predicted.predicted_iou[0, index]), options.masks.stability_score_offset
            record = prompted_record(logits, iou, point, offset)
            found.append(PromptedMask(replace(record, output=index), points))
    return found


def boxed_masks(
    predictor: Predictor, image: Pixels, boxes: Sequence[Mapping[str, Any]], options: MasksOptions
) -> list[PromptedMask]:
    """Return a mask for each box, a value of `PROMPT`, in order, as `segmint.PromptedMasks` makes them.

    Masks without pixels are left out.
    """
    if not boxes:
        return []

    def make(prompt: Mapping[str, Any], logits: Tensor, score: float) -> PromptedMask:
        record = prompted_record(logits, score, (math.nan, math.nan), options.masks.stability_score_offset)
        kind = {"kind": "box", **dict(zip("xywh", prompt["box"], strict=True))}
        given = {"label": prompt["label"], "label_score": prompt["score"], "prompts": [kind]}
        return PromptedMask(record, (), {name: value for name, value in given.items() if value is not None})

    found = masks_of_prompts(predictor, predictor.embed(image), boxes, make)
    return [mask for mask in found if mask.record.area]


def _arguments(prompt: PhotographPrompt) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    if prompt.points:
        arguments["points"] = np.array([[point[:2] for point in prompt.points]], np.float32)
        arguments["labels"] = np.array([[label for _, _, label in prompt.points]], np.int64)
    if prompt.box is not None:
        x, y, width, height = prompt.box
        arguments["boxes"] = np.array([[x, y, x + width, y + height]], np.float32)
    return arguments


def prompted_record(logits: Tensor, iou: float, point: tuple[float, float], offset: float) -> MaskRecord:
    """Return a record of the mask in logits (1, height, width). `offset` is the stability score's offset in logits."""
    stability = float(stability_scores(logits, offset)[0])
    mask = (logits[0] > 0).cpu().numpy()
    height, width = mask.shape
    return MaskRecord(
        segmentation=encode(mask),
        area=int(mask.sum()),
        bbox=xyxy_to_xywh(box_of(mask)),
        predicted_iou=iou,
        stability_score=0.0 if math.isnan(stability) else stability,
        crop_box=(0, 0, width, height),
        point_coords=point,
    )
