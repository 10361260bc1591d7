"""The mean IoU on held-out images is that of pycocotools, for the model's choice and the best of its three masks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from torch import Tensor

from segmint.model.training.step import TrainingMasks
from segmint.pipeline.engine.train.reading import TrainingImage, WorkerRank
from segmint.pipeline.engine.train.trainer import evaluate

SIZE = (640, 1024)
"""Height and width of the image in the encoder's input: the lower part of the square is padding."""


def predicting(logits: Tensor, scores: Tensor) -> SimpleNamespace:
    """A model that predicts these masks, (N, 3, 256, 256), one prompt after the other."""
    answers = iter(zip(logits, scores, strict=True))

    class Prompts:
        def __call__(self, points: Tensor, labels: Tensor, boxes: None, masks: None) -> Tensor:
            return points

        def dense_positions(self) -> None:
            return None

    def decode(features: Tensor, positions: None, points: Tensor, multimask: bool) -> list[Tensor]:
        found = [next(answers) for _ in points]
        return [torch.stack(each) for each in zip(*found, strict=True)]

    return SimpleNamespace(prompt_encoder=Prompts(), mask_decoder=decode, dtype=torch.float32)


def iou(first: Tensor, second: Tensor) -> float:
    rows = SIZE[0] // 4
    rles = [coco.encode(np.asfortranarray(each[:rows].numpy().astype(np.uint8))) for each in (first, second)]
    return float(coco.iou(rles[:1], rles[1:], [0])[0, 0])


def test_scores_are_those_of_pycocotools() -> None:
    random = torch.Generator().manual_seed(3)
    masks = 35  # more than are predicted at a time
    targets = torch.zeros(masks, 256, 256, dtype=torch.bool)
    for place, target in enumerate(targets):
        target[place : place + 100, 2 * place : 2 * place + 90] = True
    logits = torch.randn(masks, 3, 256, 256, generator=random) + 4 * targets[:, None] - 2
    logits[:, 1] += 1
    scores = torch.rand(masks, 3, generator=random)
    one = TrainingImage(0, 0, None, TrainingMasks(targets, SIZE, range(masks)), np.arange(masks), np.zeros((masks, 4)))
    found = evaluate(predicting(logits, scores), [one], lambda read: torch.zeros(1), 7, WorkerRank())  # type: ignore[arg-type]
    ious = np.array([[iou(each > 0, target) for each in three] for three, target in zip(logits, targets, strict=True)])
    assert (found.step, found.images, found.masks) == (7, 1, masks)
    assert found.one_click == pytest.approx(ious[np.arange(masks), scores.argmax(dim=1).numpy()].mean(), abs=1e-6)
    assert found.oracle == pytest.approx(ious.max(axis=1).mean(), abs=1e-6)
    assert 0.2 < found.one_click < found.oracle - 0.01
