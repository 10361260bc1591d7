"""Trainer, which updates the weights from draws, and the evaluation between its steps.

Evaluation on held-out images: mean IoU after one click, for the model's choice and for the best of three masks.

The click is the point in the mask that is farthest from the mask's border. Masks and IoUs are measured in the square
that the losses use. For scores in the image's frame, at more clicks, and with confidence intervals, use `segmint
evaluate`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segmint.catalogs.frozen import Frozen
from segmint.infra.device import Compute
from segmint.infra.errors import SegmintError
from segmint.infra.wording import counted, number, some
from segmint.model.sam.geometry import SAM1
from segmint.model.sam.load import Sam
from segmint.model.training.encoder_layers import build_optimizer
from segmint.model.training.sampling import Clicks, valid_pixels
from segmint.model.training.step import StepLosses, StepSettings, TrainingMasks, mask_iou, train_step
from segmint.operators.evaluate.points import center_click
from segmint.pipeline.engine.train.images import DrawSequence, StepDraw, TrainingImages
from segmint.pipeline.engine.train.reading import (
    DrawnImage,
    FrozenEncoder,
    TrainingImage,
    TrainingImageReader,
    WorkerRank,
    encoder_in_training,
    encoder_input,
)
from segmint.pipeline.engine.train.settings import TrainConfig, recipe_of

ALONE = WorkerRank()


class TrainingError(SegmintError):
    """Raised when a loss or gradient isn't finite, so training can't continue."""


@dataclass(frozen=True)
class StepResult:
    """Result of a step, combined over all workers.

    Losses are means over the masks and iterations. IoUs compare the predicted masks with the targets, at the first and
    at the last iteration. `clicks` contains the clicks on this worker's images, by slot. A step without masks doesn't
    change the weights.
    """

    step: int
    masks: int
    loss: float = 0.0
    focal: float = 0.0
    dice: float = 0.0
    iou_error: float = 0.0
    first_iou: float = 0.0
    last_iou: float = 0.0
    gradient: float = 0.0  # norm before clipping
    rate: float = 0.0
    clicks: Mapping[int, Clicks] | None = None

    def line(self, steps: int) -> str:
        if not self.masks:
            return f"step {self.step}/{steps}: none of its images are usable, so the weights are unchanged"
        return (
            f"step {self.step}/{steps}: loss {self.loss:.4f} (focal {self.focal:.5f}, dice {self.dice:.4f}, "
            f"IoU error {self.iou_error:.4f}), IoU {self.first_iou:.3f} to {self.last_iou:.3f}, "
            f"gradient {number(self.gradient)}, rate {self.rate:.2e}, {counted(self.masks, 'mask')}"
        )


class Trainer:
    """Model in training. Only `step` and the `load` methods change its weights."""

    def __init__(
        self,
        sam: Sam,
        config: TrainConfig,
        images: TrainingImages,
        draws: DrawSequence,
        reader: TrainingImageReader,
        encoder: FrozenEncoder | None,
        compute: Compute,
        world: WorkerRank = ALONE,
    ) -> None:
        """Set up the optimizer and the settings of steps. `encoder` is None if the image encoder is trained."""
        self.sam = sam
        self._config = config
        self._images = images
        self._draws = draws
        self._reader = reader
        self._encoder = encoder
        self._compute = compute
        self._world = world
        self._recipe = recipe_of(config)
        self._optimizer, self._schedule = build_optimizer(sam, self._recipe)
        self._settings = StepSettings(
            losses=self._recipe.losses, sampling=self._recipe.sampling, seed=config.seed, dropout=self._recipe.dropout
        )
        self._threads: ThreadPoolExecutor | None = None
        self._ahead: tuple[int, Future[list[DrawnImage]]] | None = None
        self._trained = {name: weight for name, weight in sam.named_parameters() if weight.requires_grad}

    def step(self, step: int, recorded: Mapping[int, Clicks] | None = None) -> StepResult:
        """Take a step, counted from 1. Clicks in `recorded`, by slot, replace the drawn ones.

        If the losses or the gradients aren't finite, raises `TrainingError` and leaves the weights as they were before
        the step.
        """
        reads = self._read(step)
        masks = round(self._world.total(sum(len(read.masks.numbers) for read in reads)))
        if not masks:
            return StepResult(step, 0)
        self._optimizer.zero_grad(set_to_none=True)
        figures = torch.zeros(5, self._settings.sampling.iterations, dtype=torch.float64)
        clicks: dict[int, Clicks] = {}
        at_once = self._config.batch.images_at_once
        for start in range(0, len(reads), at_once):
            part = reads[start : start + at_once]
            before = None if recorded is None else [recorded[read.slot] for read in part]
            losses = self._backward(part, step - 1, masks, before)
            figures += torch.stack([losses.total, losses.focal, losses.dice, losses.iou_error, losses.mask_iou])
            clicks |= {read.slot: each for read, each in zip(part, losses.clicks, strict=True)}
        if self._world.size > 1:
            figures = self._world.add(figures)
        weights = list(self._trained.values())
        self._world.add_gradients(weights)
        most = self._config.optimizer.max_norm
        norm = float(torch.nn.utils.clip_grad_norm_(weights, math.inf if most is None else most))
        self._check(step, figures, norm, reads)
        factor = self._schedule.set_rates(self._optimizer, step - 1)
        self._optimizer.step()
        loss, focal, dice, iou_error, _ = figures.mean(dim=1).tolist()
        return StepResult(
            step,
            masks,
            loss,
            focal,
            dice,
            iou_error,
            first_iou=float(figures[4, 0]),
            last_iou=float(figures[4, -1]),
            gradient=norm,
            rate=self._recipe.learning_rate * factor,
            clicks=clicks,
        )

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the trained weights by name, on the CPU."""
        return {name: weight.detach().to("cpu", copy=True).contiguous() for name, weight in self._trained.items()}

    def state(self) -> dict[str, Any]:
        """Return the weights and the optimizer's state, which determine the next step together with its number."""
        return {"weights": self.weights(), "optimizer": self._optimizer.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Resume from a state. Raises `ValueError` or `KeyError` if it doesn't belong to these weights."""
        weights = state["weights"]
        self._require_own(weights)
        self._optimizer.load_state_dict(state["optimizer"])  # first, because it validates the state
        self.load_weights(weights)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Load weights by name. Raises `ValueError` if the names differ from the names of the trained weights."""
        self._require_own(weights)
        with torch.no_grad():
            for name, weight in self._trained.items():
                weight.copy_(weights[name])

    def _require_own(self, weights: Mapping[str, Tensor]) -> None:
        if weights.keys() != self._trained.keys():
            raise ValueError("the state contains the weights of another model")

    def close(self) -> None:
        """Shut down the prefetch thread."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def _read(self, step: int) -> list[TrainingImage]:
        """Read this worker's images of a step, and prefetch the images of the next step."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(1, "read-ahead")
        ahead, self._ahead = self._ahead, None
        prepared = ahead[1].result() if ahead is not None and ahead[0] == step else self._prepare(step)
        if step < self._config.steps:
            self._ahead = step + 1, self._threads.submit(self._prepare, step + 1)
        return [read for each in prepared if (read := self._reader.take(each)) is not None]

    def _prepare(self, step: int) -> list[DrawnImage]:
        draws = self._world.part(self._draws.step(step))
        if self._encoder is None:
            return [self._reader.prepare(draw) for draw in draws]
        return [self._reader.prepare(draw, self._encoder.kept) for draw in draws]

    def _backward(
        self, reads: Sequence[TrainingImage], step: int, masks: int, recorded: Sequence[Clicks] | None
    ) -> StepLosses:
        """Compute the gradients for some of a step's images and add them up. Here, `step` is counted from 0."""
        keys, recipe, batch = self._config, self._recipe, self._config.batch
        images = [read.masks for read in reads]
        reduced = torch.autocast(self._compute.kind, torch.bfloat16, enabled=self._compute.precision == "bf16")
        encoded = (
            encoder_in_training(self.sam, reads, recipe.drop_path, keys.seed, step, batch.recompute)
            if self._encoder is None
            else nullcontext(torch.cat([self._encoder.embed(read) for read in reads]))
        )
        with reduced, encoded as features:
            return train_step(self.sam, features, images, self._settings, step, masks, batch.masks_at_once, recorded)

    def _check(self, step: int, figures: Tensor, norm: float, reads: Sequence[TrainingImage]) -> None:
        if bool(figures.isfinite().all()) and math.isfinite(norm):
            return
        what = "the gradient" if bool(figures.isfinite().all()) else "the loss"
        names = some([self._images.name(read.image) for read in reads])
        raise TrainingError(
            f"step {step}: {what} is not finite, on {names}. The step was not applied, and the last checkpoint is "
            "kept. Lower optimizer.learning_rate, set optimizer.max_norm, or set precision: fp32, and train to another "
            "output"
        )


_AT_ONCE = 32  # clicks per call of the decoder


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
        logits, predicted_iou = one_click(sam, embed(read), read.masks)
        for start in range(0, len(targets), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            square = F.interpolate(logits[part], (resolution, resolution), mode="bilinear", align_corners=False)
            ious = mask_iou(square.cpu() > 0, targets[part][:, None], valid)
            chosen = predicted_iou[part].cpu().argmax(dim=1, keepdim=True)
            best = ious.max(dim=1).values.double().sum()
            sums += torch.stack([torch.zeros(()), torch.tensor(len(ious)), ious.gather(1, chosen).double().sum(), best])
        sums[0] += 1
    images, masks, choice, oracle = world.add(sums).tolist()
    choice, oracle = choice / max(1, masks), oracle / max(1, masks)
    return Evaluation(step=step, images=round(images), masks=round(masks), one_click=choice, oracle=oracle)


@torch.no_grad()
def one_click(sam: Sam, features: Tensor, masks: TrainingMasks) -> tuple[Tensor, Tensor]:
    """Predict three masks for a click on the center of each of N masks. `features` has shape (1, 256, 64, 64).

    Returns the logits (N, 3, 256, 256) and the predicted IoUs (N, 3).
    """
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
    return torch.cat(logits), torch.cat(ious)


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
        world: WorkerRank = WorkerRank(),  # noqa: B008 (a frozen value)
    ) -> None:
        """Store the model and the draws."""
        self._sam = sam
        self._draws = draws
        self._reader = reader
        self._encoder = encoder
        self._world = world
        self._embeddings: dict[int, Tensor] = {}

    def evaluate(self, step: int) -> Evaluation:
        """Evaluate the model as it is after a step."""
        return evaluate(self._sam, self._reads, self._embed, step, self._world)

    @cached_property
    def _reads(self) -> list[TrainingImage]:
        found = (self._read(draw) for draw in self._world.part(self._draws))
        return [read for read in found if read is not None]

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
