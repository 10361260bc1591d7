"""Masks of prompts by the real model on a photograph."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco

from segmint.infra.assets import resolve
from segmint.infra.device import resolve_compute
from segmint.model.sam.predictor import Predictor
from segmint.operators.segment.models import load_model
from segmint.pipeline.masks.options import MasksOptions, PhotographPrompt
from segmint.pipeline.masks.outputs import MasksOrigin, sa1b_document
from segmint.pipeline.masks.predict import PromptedMask, prompted_masks

pytestmark = pytest.mark.usefixtures("embedded_once")

CUP = (285.0, 200.0, 1)  # inside the cup of scikit-image's coffee photograph, 600 x 400 pixels
BOX = (165.0, 70.0, 230.0, 240.0)  # around it


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(load_model(resolve("mobile_sam"), resolve_compute("cpu")))


def masks(
    predictor: Predictor, image: np.ndarray, *prompts: PhotographPrompt, all_masks: bool = False
) -> list[PromptedMask]:
    return prompted_masks(predictor, image, MasksOptions(prompts=prompts, all_masks=all_masks))


def pixels(found: PromptedMask) -> np.ndarray:
    code = found.record.segmentation
    return coco.decode({"size": list(code.size), "counts": code.counts.encode("ascii")}).astype(bool)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_a_point_a_box_and_all_masks_of_the_cup(predictor, coffee):
    by_point, by_box = masks(predictor, coffee, PhotographPrompt((CUP,)), PhotographPrompt(box=BOX))
    document = json.loads(sa1b_document(3, "coffee.png", (400, 600), [by_point, by_box], MasksOrigin("a", "b")))
    first, second = document["annotations"]
    assert (first["id"], second["id"]) == (30_000, 30_001)
    assert first["point_coords"] == [[285.0, 200.0]]
    assert second["point_coords"] == []
    assert all(0 < each["stability_score"] <= 1 for each in (first, second))
    assert pixels(by_point)[200, 285]
    x, y, width, height = second["bbox"]
    assert x > BOX[0] - 20
    assert y > BOX[1] - 20
    assert x + width < BOX[0] + BOX[2] + 20
    assert y + height < BOX[1] + BOX[3] + 20

    every = masks(predictor, coffee, PhotographPrompt((CUP,)), all_masks=True)
    ious = [found.record.predicted_iou for found in every]
    assert len(ious) == 3
    assert ious == sorted(ious, reverse=True)
    assert every[0].record == by_point.record
    assert sorted(found.record.output for found in every) == [0, 1, 2]


def test_a_box_and_points_are_one_prompt(predictor, coffee):
    """What the point takes away is not in the mask, and what lies outside the box is not, either."""
    saucer = (450.0, 330.0, 1)
    (joined,) = masks(predictor, coffee, PhotographPrompt((CUP, saucer)))
    (parted,) = masks(predictor, coffee, PhotographPrompt((CUP, (*saucer[:2], 0))))
    assert joined.points == (CUP[:2], saucer[:2])
    assert not pixels(parted)[330, 450]
    assert pixels(parted)[200, 285]
    assert pixels(joined).sum() != pixels(parted).sum()

    (boxed,) = masks(predictor, coffee, PhotographPrompt((CUP,), BOX))
    assert boxed.points == (CUP[:2],)
    alone = [pixels(found) for found in masks(predictor, coffee, PhotographPrompt((CUP,)), PhotographPrompt(box=BOX))]
    assert all((pixels(boxed) != other).any() for other in alone)
    assert pixels(boxed)[200, 285]
    inside = np.zeros((400, 600), bool)
    inside[60:320, 155:405] = True
    assert (pixels(boxed) & ~inside).sum() < 0.02 * pixels(boxed).sum()
