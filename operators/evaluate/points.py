"""Interactive segmentation by clicks on one image, as the SAM paper evaluates it (Section 7.1, Appendix D)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pycocotools import mask as coco

from segmint.model.sam.predictor import Embedding, Masks, Predictor
from segmint.operators.annotations.image import CocoRle, encode_mask
from segmint.operators.evaluate.clicks import Bools, Click, center_click, next_click, random_click
from segmint.operators.evaluate.settings import FirstClick, PointsSettings, SeveralClicks

MASKS_AT_ONCE = 16
"""Masks of an image that are decoded together. It affects the last bits, so it is the same everywhere."""

_SINGLE = 0  # the place of the mask for unambiguous prompts; the three others follow it


@dataclass(frozen=True)
class MaskScores:
    """One mask's scores, after each number of clicks in the settings.

    `iou` is that of the model's choice with the truth, `oracle` that of the best of its three masks, `predicted` the
    model's estimate of its choice. With fewer `clicks` than were asked for, nothing was left to click on, and the last
    scores are repeated. `first` and `last` are the model's choice after the first and the last click.
    """

    iou: tuple[float, ...]
    oracle: tuple[float, ...]
    predicted: tuple[float, ...]
    clicks: tuple[Click, ...]
    first: CocoRle
    last: CocoRle


def click_masks(
    predictor: Predictor,
    embedding: Embedding,
    truths: Sequence[CocoRle],
    numbers: Sequence[int],
    settings: PointsSettings,
) -> list[MaskScores]:
    """Click on each mask of an image until the largest number of clicks, and return its scores.

    `truths` are masks in the embedding's frame, none empty; `numbers` (each under 2^63) key their random clicks. Each
    click is decoded with the logits of the model's choice before. Raises ValueError for an empty mask.
    """
    scores: list[MaskScores] = []
    for start in range(0, len(truths), MASKS_AT_ONCE):
        chosen = slice(start, start + MASKS_AT_ONCE)
        masks = [
            _Clicked(_decoded(rle), number, settings)
            for rle, number in zip(truths[chosen], numbers[chosen], strict=True)
        ]
        _click(predictor, embedding, masks)
        scores += [mask.scores() for mask in masks]
    return scores


def iou_of(mask: Bools, truth: Bools) -> float:
    """The intersection over union of two masks of one size; 1 if both are empty."""
    union = np.count_nonzero(mask | truth)
    return np.count_nonzero(mask & truth) / union if union else 1.0


class _Clicked:
    """A mask while it is clicked on."""

    def __init__(self, truth: Bools, number: int, settings: PointsSettings) -> None:
        self.truth = truth
        self._settings = settings
        center = settings.first is FirstClick.CENTER
        self.clicks = [center_click(truth) if center else random_click(truth, settings.seed, number)]
        self.logits: torch.Tensor | None = None  # (1, 256, 256) of the model's choice
        self.done = False
        self._measured: list[tuple[float, float, float]] = []  # IoU, oracle and predicted IoU
        self._first: CocoRle | None = None
        self._last: CocoRle | None = None

    def take(self, predictor: Predictor, embedding: Embedding, answer: Masks, row: int) -> None:
        """Take the model's answer to the clicks so far, in a row of `answer`, and click again."""
        settings, count = self._settings, len(self.clicks)
        place = _SINGLE
        if count == 1 or settings.several is SeveralClicks.THREE:
            place = 1 + int(answer.predicted_iou[row, 1:].argmax())
        self.logits = answer.low_res_logits[row, place : place + 1]
        chosen = _drawn(predictor, embedding, self.logits)[0]
        click = next_click(chosen, self.truth, self.clicks) if count < settings.clicks[-1] else None
        if count in settings.clicks or click is None:
            three = _drawn(predictor, embedding, answer.low_res_logits[row, 1:])
            oracle = max(iou_of(mask, self.truth) for mask in three)
            measured = iou_of(chosen, self.truth), oracle, float(answer.predicted_iou[row, place])
            left = sum(each >= count for each in settings.clicks) if click is None else 1
            self._measured += [measured] * left
        if count == 1:
            self._first = encode_mask(chosen)
        if click is None:
            self._last = encode_mask(chosen)
            self.done = True
        else:
            self.clicks.append(click)

    def scores(self) -> MaskScores:
        """The scores, once it is done."""
        if self._first is None or self._last is None:
            raise ValueError("the mask was not clicked on to the end")
        iou, oracle, predicted = zip(*self._measured, strict=True)
        return MaskScores(iou, oracle, predicted, tuple(self.clicks), self._first, self._last)


def _click(predictor: Predictor, embedding: Embedding, masks: Sequence[_Clicked]) -> None:
    """Click on masks together: all that are not done have the same number of clicks."""
    while waiting := [mask for mask in masks if not mask.done]:
        logits = [mask.logits for mask in waiting if mask.logits is not None]
        answer = predictor.predict_all(
            embedding,
            points=np.array([[(click.x, click.y) for click in mask.clicks] for mask in waiting], np.float64),
            labels=np.array([[click.label for click in mask.clicks] for mask in waiting], np.int64),
            masks=torch.stack(logits) if logits else None,
        )
        for row, mask in enumerate(waiting):
            mask.take(predictor, embedding, answer, row)


def _drawn(predictor: Predictor, embedding: Embedding, logits: torch.Tensor) -> Bools:
    """Masks in the embedding's frame, (C, H, W) bool, from logits (C, 256, 256)."""
    masks: Bools = (predictor.upscale(logits[None], embedding)[0] > 0).cpu().numpy()
    return masks


def _decoded(rle: CocoRle) -> Bools:
    return np.ascontiguousarray(coco.decode(rle)).view(np.bool_)
