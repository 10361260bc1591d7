"""Evaluation on held-out images: mean IoU after one click, for the model's choice and for the best of three masks.

The click is the point in the mask that is farthest from the mask's border. Masks and IoUs are measured in the square
that the losses use. For scores in the image's frame, at more clicks, and with confidence intervals, use `segmint
evaluate`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segmint.catalogs.frozen import Frozen
from segmint.infra.wording import counted
from segmint.model.sam.geometry import SAM1
from segmint.model.sam.sam import Sam
from segmint.model.training.losses import mask_iou
from segmint.model.training.step import TrainingMasks
from segmint.model.training.targets import valid_pixels
from segmint.operators.evaluate.clicks import center_click
from segmint.operators.overlay import distinct_color, draw_prompts, encode_png
from segmint.pipeline.engine.train.data.draws import StepDraw
from segmint.pipeline.engine.train.data.reading import TrainingImage, TrainingImageReader
from segmint.pipeline.engine.train.embedding import FrozenEncoder, encoder_input
from segmint.pipeline.engine.train.world import WorkerRank

_AT_ONCE = 32  # clicks per call of the decoder
_FILL = 0.5  # opacity of a mask's color
_GAP = 8  # pixels between the two halves of an overlay


class Evaluation(Frozen):
    """Scores after a step: mean IoU after one click, for the mask that the model chooses and for the best of three."""

    step: int
    images: int
    masks: int
    one_click: float
    oracle: float

    def line(self) -> str:
        when = "before training" if self.step == 0 else f"after step {self.step}"
        return (
            f"held out, {when}: mean IoU at one click {self.one_click:.4f}, best of three masks "
            f"{self.oracle:.4f}, on {counted(self.masks, 'mask')} of {counted(self.images, 'image')}"
        )


@dataclass(frozen=True)
class ClickPredictions:
    """Predictions for one click on each of N masks: logits (N, 3, 256, 256) and predicted IoUs (N, 3) of three masks.

    `points` (N, 2) are the clicks (x, y) in pixels of the encoder's input.
    """

    logits: Tensor
    predicted_iou: Tensor
    points: Tensor


def evaluate(
    sam: Sam, reads: Sequence[TrainingImage], embed: Callable[[TrainingImage], Tensor], step: int, world: WorkerRank
) -> Evaluation:
    """Evaluate the model on held-out images.

    Every worker passes its share of the images, and all workers get the same result.
    """
    sums = torch.zeros(4, dtype=torch.float64)
    for read in reads:
        targets = read.masks.targets
        resolution = targets.shape[-1]
        valid = valid_pixels(read.masks.input_size, resolution)
        answers = one_click(sam, embed(read), read.masks)
        for start in range(0, len(targets), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            square = F.interpolate(answers.logits[part], (resolution, resolution), mode="bilinear", align_corners=False)
            ious = mask_iou(square.cpu() > 0, targets[part][:, None], valid)
            chosen = answers.predicted_iou[part].cpu().argmax(dim=1, keepdim=True)
            best = ious.max(dim=1).values.double().sum()
            sums += torch.stack([torch.zeros(()), torch.tensor(len(ious)), ious.gather(1, chosen).double().sum(), best])
        sums[0] += 1
    images, masks, choice, oracle = world.add(sums).tolist()
    choice, oracle = choice / max(1, masks), oracle / max(1, masks)
    return Evaluation(step=step, images=round(images), masks=round(masks), one_click=choice, oracle=oracle)


@torch.no_grad()
def one_click(sam: Sam, features: Tensor, masks: TrainingMasks) -> ClickPredictions:
    """Predict three masks for a click on the center of each mask. `features` has shape (1, 256, 64, 64)."""
    device = features.device
    clicks = [center_click(target.numpy()) for target in masks.targets]
    centers = torch.tensor([(click.x + 0.5, click.y + 0.5) for click in clicks], dtype=torch.float64)
    height, width = masks.input_size
    border = torch.tensor([width - 1.0, height - 1.0], dtype=torch.float64)
    points = torch.minimum(centers * (SAM1.image_size / masks.targets.shape[-1]) - 0.5, border)
    positions = sam.prompt_encoder.dense_positions()
    logits, ious = [], []
    for part in torch.split(points, _AT_ONCE):
        labels = torch.ones(len(part), 1, dtype=torch.int64, device=device)
        prompt = sam.prompt_encoder(part[:, None].to(device), labels, None, None)
        predicted = sam.mask_decoder(features.to(sam.dtype), positions, prompt, multimask=True)
        logits.append(predicted[0].float())
        ious.append(predicted[1].float())
    return ClickPredictions(torch.cat(logits), torch.cat(ious), points)


def draw_sample(sam: Sam, pixels: NDArray[np.uint8], masks: TrainingMasks, features: Tensor) -> bytes:
    """Draw an image with its masks on the left, and with the predictions after one click each on the right, as a PNG.

    `pixels` (h, w, 3) RGB are the encoder's input without its padding.
    """
    answers = one_click(sam, features, masks)
    chosen = answers.predicted_iou.argmax(dim=1)
    rows = torch.arange(len(chosen), device=chosen.device)
    predicted = _in_frame(answers.logits[rows, chosen], masks.input_size) > 0
    targets = _in_frame(masks.targets.float() - 0.5, masks.input_size) > 0
    points = [(x, y, 1) for x, y in answers.points.tolist()]
    left = _tinted(pixels, targets.numpy())
    right = draw_prompts(_tinted(pixels, predicted.cpu().numpy()), points)
    gap = np.full((left.shape[0], _GAP, 3), 255, np.uint8)
    return encode_png(np.concatenate([left, gap, right], axis=1))


def _in_frame(squares: Tensor, input_size: tuple[int, int]) -> Tensor:
    """Resize logits (N, side, side) to the encoder's input, and crop the padding."""
    large = F.interpolate(squares[:, None], (SAM1.image_size, SAM1.image_size), mode="bilinear", align_corners=False)
    return large[:, 0, : input_size[0], : input_size[1]]


def _tinted(pixels: NDArray[np.uint8], masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Paint each mask onto the image in its own color, from the largest mask to the smallest."""
    canvas = pixels.astype(np.float32)
    for place in np.argsort([-int(mask.sum()) for mask in masks], kind="stable").tolist():
        canvas[masks[place]] = canvas[masks[place]] * (1 - _FILL) + np.array(distinct_color(place), np.float32) * _FILL
    drawn = np.rint(canvas).astype(np.uint8)
    for place, mask in enumerate(masks):
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, contours, -1, distinct_color(place), 2)
    return drawn


class HeldOutSample:
    """Fixed sample of images and masks that is used in every evaluation and divided among the workers.

    With a frozen encoder, the images' embeddings stay in memory, at 4 MB each.
    """

    def __init__(
        self,
        sam: Sam,
        draws: Sequence[StepDraw],
        reader: TrainingImageReader,
        encoder: FrozenEncoder | None,
        pictures: int,
        world: WorkerRank = WorkerRank(),  # noqa: B008 (a frozen value)
    ) -> None:
        """Store the model and the draws. The first worker draws overlays for `pictures` images."""
        self._sam = sam
        self._draws = draws
        self._reader = reader
        self._encoder = encoder
        self._pictures = pictures
        self._world = world
        self._embeddings: dict[int, Tensor] = {}

    def evaluate(self, step: int) -> Evaluation:
        """Evaluate the model as it is after a step."""
        return evaluate(self._sam, self._reads, self._embed, step, self._world)

    def draw(self, step: int, put: Callable[[int, int, bytes], None]) -> None:
        """Draw overlays of the first images after a step. `put` receives the step, the image's number, and the PNG."""
        for number, read in enumerate(self._pictured):
            pixels = self._reader.pixels_of(read)
            if pixels is not None:
                put(step, number, draw_sample(self._sam, pixels, read.masks, self._embed(read)))

    @cached_property
    def _reads(self) -> list[TrainingImage]:
        found = (self._read(draw) for draw in self._world.part(self._draws))
        return [read for read in found if read is not None]

    @cached_property
    def _pictured(self) -> list[TrainingImage]:
        mine = {read.slot: read for read in self._reads}
        found = (mine.get(draw.slot) or self._read(draw) for draw in self._draws)
        return list(islice((read for read in found if read is not None), self._pictures))

    def _read(self, draw: StepDraw) -> TrainingImage | None:
        return self._reader.read(draw) if self._encoder is None else self._reader.read(draw, self._encoder.kept)

    def _embed(self, read: TrainingImage) -> Tensor:
        if self._encoder is None:
            with torch.no_grad():
                features: Tensor = self._sam.image_encoder(encoder_input(self._sam, [read]))
            return features
        if read.image not in self._embeddings:
            self._embeddings[read.image] = self._encoder.embed(read)
        return self._embeddings[read.image]
