"""Training step that reads the draws, sums gradients over images and workers, and updates the weights."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segmint.infra.device import Compute
from segmint.infra.errors import SegmintError
from segmint.infra.wording import counted, number, some
from segmint.model.sam.sam import Sam
from segmint.model.training.optimizer import build_optimizer
from segmint.model.training.sampling import Clicks
from segmint.model.training.step import StepLosses, StepSettings, train_step
from segmint.pipeline.engine.train.data.draws import DrawSequence
from segmint.pipeline.engine.train.data.images import TrainingImages
from segmint.pipeline.engine.train.data.reading import DrawnImage, TrainingImage, TrainingImageReader
from segmint.pipeline.engine.train.embedding import FrozenEncoder, encoder_in_training
from segmint.pipeline.engine.train.presets import recipe_of
from segmint.pipeline.engine.train.settings import TrainConfig
from segmint.pipeline.engine.train.world import WorkerRank

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
