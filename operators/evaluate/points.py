"""Interactive segmentation by clicks on one image, as evaluated in the SAM paper (Section 7.1, Appendix D).

Simulated annotator's clicks for the SAM paper's interactive evaluation (Appendix D).

Regions are (H, W) bool. Image borders count as borders of a region. docs/decisions/0020-clicks.md explains why.

Sharing of image encoders between models with equal weights, so that an image is encoded once for all of them.

By default, fine-tuning leaves the image encoder unchanged, so most pairs of models can share it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from pycocotools import mask as coco
from torch import Tensor, nn

from segmint.infra.arrays import Bools, PixelBox, Pixels
from segmint.model.automatic.candidates import MaskPatch
from segmint.model.automatic.crops import box_of
from segmint.model.automatic.proposals import Upscaling
from segmint.model.automatic.rle import CocoRle
from segmint.model.automatic.tiled_upscaling import upscaling_of
from segmint.model.sam.load import Sam
from segmint.model.sam.predictor import Embedding, Predictor
from segmint.model.training.sampling import draw_keys, highest_pixels
from segmint.operators.annotations.image import encode_mask
from segmint.operators.evaluate.settings import FirstClick, PointsSettings, SeveralClicks


class Click(NamedTuple):
    """A click on a pixel, with coordinates counted from 0. `label` is 1 for foreground and 0 for background."""

    x: int
    y: int
    label: int


class DeepestPixel(NamedTuple):
    """The pixel of a region that is farthest from its boundary, and its distance from the boundary in pixels."""

    x: int
    y: int
    distance: float


def deepest_pixel(region: Bools, without: Sequence[Click] = ()) -> DeepestPixel | None:
    """Return the pixel farthest from the region's boundary. If there are several, return the topmost, then leftmost.

    The distance is the Euclidean distance to the nearest pixel outside the region or the image. Pixels in `without`
    belong to the region but are never returned. Returns None if no pixel remains.
    """
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    if not rows.size:
        return None
    top, left = int(rows[0]), int(columns[0])
    # No pixel around a region's bounding box belongs to it, so pixels farther out can't be nearer.
    part = np.pad(region[top : rows[-1] + 1, left : columns[-1] + 1].astype(np.uint8), 1)
    distances = cv2.distanceTransform(part, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    for click in without:
        x, y = click.x - left, click.y - top
        if 0 <= y < distances.shape[0] and 0 <= x < distances.shape[1]:
            distances[y, x] = 0
    place = int(distances.argmax())
    y, x = divmod(place, distances.shape[1])
    distance = float(distances[y, x])
    return DeepestPixel(left + x, top + y, distance) if distance > 0 else None


def center_click(mask: Bools) -> Click:
    """Return the first click, on the pixel farthest from the mask's boundary. Raise ValueError for an empty mask."""
    found = deepest_pixel(mask)
    if found is None:
        raise ValueError("the mask has no pixels: expected one or more")
    return Click(found.x, found.y, 1)


def random_click(mask: Bools, seed: int, number: int) -> Click:
    """Return a click on a random pixel of the mask. `seed` and the mask's `number`, each 0 to 2^63 - 1, determine it.

    Raises ValueError for an empty mask.
    """
    place = int(highest_pixels(torch.from_numpy(mask[None]), draw_keys(seed, 0, [number], 0))[0])
    if place < 0:
        raise ValueError("the mask has no pixels: expected one or more")
    y, x = divmod(place, mask.shape[1])
    return Click(x, y, 1)


def next_click(predicted: Bools, truth: Bools, before: Sequence[Click]) -> Click | None:
    """Return the next click, on the deepest pixel that the prediction gets wrong, or None if there is no such pixel.

    There are two kinds of errors: pixels that the prediction misses, and pixels that it adds. The click goes to the
    kind whose deepest pixel is farther from the boundary. If both are equally far, it goes to the added pixels. Pixels
    that were clicked `before` are excluded.
    """
    missing = deepest_pixel(truth & ~predicted, before)
    too_much = deepest_pixel(predicted & ~truth, before)
    if missing is not None and (too_much is None or missing.distance > too_much.distance):
        return Click(missing.x, missing.y, 1)
    return None if too_much is None else Click(too_much.x, too_much.y, 0)


MASKS_AT_ONCE = 2, 16
"""Number of an image's masks that are decoded together, on a CPU and on other devices. It affects the last bits.

On a CPU, decoding 2 masks at a time is a third faster than decoding 16, and takes 450 MB less memory. The reason is
that each layer of a mask takes 4 MB, so with 2 masks, the layers stay in the cache.
"""

_SINGLE = 0  # position of the mask for unambiguous prompts; the three others follow


class NoNumberError(ValueError):
    """Raised when the model's weights produce numbers that aren't finite."""


@dataclass(frozen=True)
class MaskScores:
    """Scores of one mask after each number of clicks in the settings.

    - `iou`: IoU of the mask that the model selects.
    - `oracle`: IoU of the best of the model's three masks.
    - `predicted`: the model's own estimate for the mask that it selects.
    - `clicks`: the clicks. If nothing is left to click on, there are fewer clicks than requested, and the last scores
      are repeated.
    - `first`, `last`: the masks that the model selects after the first and the last click.
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
    """Click on each mask of an image, up to the largest number of clicks in the settings. Return the masks' scores.

    `truths` contains nonempty masks in the embedding's frame. The random clicks on a mask depend on its entry in
    `numbers`, which must be under 2^63. After the first click, the decoder also receives the logits of the mask that
    the model selected last. Raises ValueError for an empty mask, and `NoNumberError` if the weights produce numbers
    that aren't finite.
    """
    scores: list[MaskScores] = []
    at_once = MASKS_AT_ONCE[embedding.features.device.type != "cpu"]
    for start in range(0, len(truths), at_once):
        chosen = slice(start, start + at_once)
        masks = [
            _ClickedMask(rle, number, settings) for rle, number in zip(truths[chosen], numbers[chosen], strict=True)
        ]
        _click(predictor, embedding, masks)
        scores += [mask.scores() for mask in masks]
    return scores


def no_answer(truth: CocoRle, settings: PointsSettings) -> MaskScores:
    """Return the scores of a mask if the model predicted nothing for it. All scores are 0, and there are no clicks."""
    height, width = truth["size"]
    empty = encode_mask(np.zeros((height, width), np.uint8))
    zeros = (0.0,) * len(settings.clicks)
    return MaskScores(zeros, zeros, zeros, (), empty, empty)


class _TrueMask:
    """A ground-truth mask with its inclusive bounding box."""

    def __init__(self, rle: CocoRle) -> None:
        self.pixels: Bools = np.ascontiguousarray(coco.decode(rle)).view(np.bool_)
        self.area = np.count_nonzero(self.pixels)
        self.box: PixelBox = box_of(self.pixels)

    def iou(self, mask: MaskPatch) -> float:
        """Return the IoU with a predicted mask."""
        x0, y0, x1, y1 = mask.box
        common = np.count_nonzero(mask.window() & self.pixels[y0 : y1 + 1, x0 : x1 + 1])
        return common / (mask.area + self.area - common)

    def next_click(self, mask: MaskPatch, before: Sequence[Click]) -> Click | None:
        """Return the next click for a predicted mask. Only pixels in a box around both masks are processed."""
        left, top, right, bottom = mask.box
        x0, y0 = min(self.box[0], left), min(self.box[1], top)
        x1, y1 = max(self.box[2], right), max(self.box[3], bottom)
        truth = self.pixels[y0 : y1 + 1, x0 : x1 + 1]
        predicted = np.zeros_like(truth)
        predicted[top - y0 : bottom + 1 - y0, left - x0 : right + 1 - x0] = mask.window()
        click = next_click(predicted, truth, [Click(x - x0, y - y0, label) for x, y, label in before])
        return None if click is None else Click(click.x + x0, click.y + y0, click.label)


class _ClickedMask:
    """State of a mask during clicking."""

    def __init__(self, truth: CocoRle, number: int, settings: PointsSettings) -> None:
        self._truth = _TrueMask(truth)
        self._settings = settings
        pixels = self._truth.pixels
        center = settings.first is FirstClick.CENTER
        self.clicks = [center_click(pixels) if center else random_click(pixels, settings.seed, number)]
        self.logits: Tensor | None = None  # (1, 256, 256) logits of the mask that the model selected
        self.done = False
        self._measured: list[tuple[float, float, float]] = []  # IoU, oracle, and predicted IoU
        self._first: CocoRle | None = None
        self._last: CocoRle | None = None

    def take(self, upscaling: Upscaling[Any], logits: Tensor, predicted: Tensor) -> None:
        """Record the model's prediction for the clicks so far, then click again.

        `logits` (4, 256, 256) and `predicted` (4,) start with the single mask, followed by the three masks.
        """
        if not predicted.isfinite().all():
            raise NoNumberError(
                "the weights predict an IoU that isn't finite, because they are damaged or overflow in bf16"
            )
        settings, count = self._settings, len(self.clicks)
        place = _SINGLE
        if count == 1 or settings.several is SeveralClicks.THREE:
            place = 1 + int(predicted[1:].argmax())
        self.logits = logits[place : place + 1]
        (chosen,) = _draw(upscaling, self.logits)
        click = self._truth.next_click(chosen, self.clicks) if count < settings.clicks[-1] else None
        if count in settings.clicks or click is None:
            oracle = max(map(self._truth.iou, _draw(upscaling, logits[1:])))
            left = sum(each >= count for each in settings.clicks) if click is None else 1
            self._measured += [(self._truth.iou(chosen), oracle, float(predicted[place]))] * left
        if count == 1:
            self._first = self._encoded(chosen)
        if click is None:
            self._last = self._encoded(chosen)
            self.done = True
        else:
            self.clicks.append(click)

    def scores(self) -> MaskScores:
        """Return the scores. Call this only when `done` is true."""
        if self._first is None or self._last is None:
            raise ValueError("not all clicks on the mask were made")
        iou, oracle, predicted = zip(*self._measured, strict=True)
        return MaskScores(iou, oracle, predicted, tuple(self.clicks), self._first, self._last)

    def _encoded(self, mask: MaskPatch) -> CocoRle:
        height, width = self._truth.pixels.shape
        return mask.encode((height, width)).coco()


def _click(predictor: Predictor, embedding: Embedding, masks: Sequence[_ClickedMask]) -> None:
    """Click on several masks together. All masks that aren't done have received the same number of clicks."""
    upscaling = upscaling_of(predictor, embedding)
    while waiting := [mask for mask in masks if not mask.done]:
        logits = [mask.logits for mask in waiting if mask.logits is not None]
        answer = predictor.predict_all(
            embedding,
            points=np.array([[(click.x, click.y) for click in mask.clicks] for mask in waiting], np.float64),
            labels=np.array([[click.label for click in mask.clicks] for mask in waiting], np.int64),
            masks=torch.stack(logits) if logits else None,
        )
        predicted = answer.predicted_iou.cpu()
        for row, mask in enumerate(waiting):
            mask.take(upscaling, answer.low_res_logits[row], predicted[row])


def _draw(upscaling: Upscaling[Any], logits: Tensor) -> list[MaskPatch]:
    """Draw masks in the embedding's frame from logits (C, 256, 256), including empty masks."""
    return upscaling.draw(upscaling.stable_masks(logits, 0.0, 0.0).sketches)


def share_equal_encoders(models: Sequence[Sam]) -> None:
    """Make models whose image encoders have the same weights, bit for bit, share the first such encoder."""
    for place, model in enumerate(models):
        for other in models[:place]:
            if _equal(model.image_encoder, other.image_encoder):
                model.image_encoder = other.image_encoder
                break


def embed_for_all(models: Sequence[Predictor], image: Pixels) -> list[Embedding]:
    """Embed an image, (H, W, 3) uint8 RGB, for each model. Models that share an encoder share the embedding."""
    found: dict[nn.Module, Embedding] = {}
    for model in models:
        if model.sam.image_encoder not in found:
            found[model.sam.image_encoder] = model.embed(image)
    return [found[model.sam.image_encoder] for model in models]


def _equal(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return (
        type(one) is type(other)
        and first.keys() == second.keys()
        and all(value.dtype == second[name].dtype and torch.equal(value, second[name]) for name, value in first.items())
    )
