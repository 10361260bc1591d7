"""`segmint train --dry-run`: the schedule, memory, time, and cost of a run, from counted operations."""

from dataclasses import dataclass
from typing import Any

from segmint.catalogs.dataset.commits import CommitLog
from segmint.infra.device import resolve_compute
from segmint.infra.errors import UsageError
from segmint.infra.peak import measure_peak
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.units import FLOPS, OVER_ZERO, check_option
from segmint.infra.wording import count, counted, duration, listed, number, size
from segmint.infra.wording import share as shown_share
from segmint.model.sam.load import Architecture
from segmint.model.training.cost import TrainingCost, training_cost
from segmint.pipeline.engine.train.data.cache import BYTES
from segmint.pipeline.engine.train.data.images import open_datasets
from segmint.pipeline.engine.train.presets import recipe_of
from segmint.pipeline.engine.train.run import cache_location, find_weights, refuse_places
from segmint.pipeline.engine.train.settings import TrainConfig


@dataclass(frozen=True)
class TrainPlanOptions:
    """Options of a dry run. Invalid numbers raise `UsageError`."""

    gpus: int | None = None  # None: one device for each worker in the configuration
    flops: float | None = None  # peak of one GPU in operations per second; None: measure this machine's device
    price: float | None = None  # of one GPU per hour
    share: float | None = None  # fraction of the peak, 0 to 1; None: unknown, because no training was timed on a GPU

    def __post_init__(self) -> None:
        check_option("--gpus", self.gpus, "a number of GPUs from 1", 1)
        check_option("--flops", self.flops, "operations per second, such as 9.9e14", *FLOPS)
        check_option("--price", self.price, "the price per hour, 0 or more", 0)
        check_option("--share", self.share, "a share above 0 and at most 1", OVER_ZERO, 1)
        if self.gpus is not None and self.flops is None:
            raise UsageError("--gpus needs --flops, the peak of one GPU in operations per second, such as 9.9e14")


@dataclass(frozen=True)
class TrainPlan:
    """Estimated work, memory, and time of a run that takes all steps, with the maximum number of masks per step."""

    config: TrainConfig
    architecture: Architecture
    decoder_layers: int
    cost: TrainingCost
    options: TrainPlanOptions
    devices: int
    images: int  # in the datasets
    kind: str  # "GPU", or "worker" if this machine's device isn't a GPU
    peak: float  # operations per second of one device

    @property
    def step_flop(self) -> int:
        """Operations of one step, without the embeddings of a frozen encoder."""
        return self.config.batch.images * self.cost.image_flop + self.masks * self.cost.mask_flop

    @property
    def masks(self) -> int:
        """Maximum number of masks per step."""
        batch = self.config.batch
        return min(batch.masks, batch.images * batch.masks_per_image)

    @property
    def images_per_device(self) -> int:
        """Images per step on the device with the most images, which the other devices wait for."""
        return -(-self.config.batch.images // self.devices)

    @property
    def embedded(self) -> float:
        """Number of embeddings that a frozen encoder computes: one per cached image, and one per uncached draw."""
        draws = self.config.steps * self.config.batch.images
        cached = min(self.images, self.config.cache.gb * 1e9 // BYTES) / self.images
        return 0 if self.cost.image_bytes else min(draws, cached * self.images + (1 - cached) * draws)

    @property
    def activation_bytes(self) -> int:
        """Bytes of one worker's activations, in float32."""
        batch = self.config.batch
        images = min(batch.images_at_once, self.images_per_device)
        masks = min(batch.masks_at_once, batch.masks_per_image)
        return images * self.cost.image_bytes + masks * self.cost.mask_bytes

    @property
    def device_hours(self) -> float | None:
        """Hours of all devices together for the whole run, including the time that devices wait for one another.

        None if the share of the peak is unknown.
        """
        if self.options.share is None:
            return None
        waiting = self.devices * self.images_per_device / self.config.batch.images
        flop = self.step_flop * self.config.steps + self.embedded * self.cost.encode_flop
        return waiting * flop / (self.peak * self.options.share) / 3600

    def to_dict(self) -> dict[str, Any]:
        batch, price = self.config.batch, self.options.price
        return {
            "architecture": self.architecture,
            "decoder_layers": self.decoder_layers,
            "weights": self.cost.weights,
            "trained_weights": self.cost.trained,
            "steps": self.config.steps,
            "batch": batch.model_dump(mode="json"),
            "optimizer": self.config.optimizer.model_dump(mode="json"),
            "flop": {"encode": self.cost.encode_flop, "image": self.cost.image_flop, "mask": self.cost.mask_flop},
            "step_flop": self.step_flop,
            "embedded_images": self.embedded,
            "state_bytes": self.cost.state_bytes,
            "activation_bytes": self.activation_bytes,
            "devices": self.devices,
            "device": self.kind,
            "peak": self.peak,
            "share": self.options.share,
            "device_hours": self.device_hours,
            "cost": None if price is None or self.device_hours is None else price * self.device_hours,
        }

    def lines(self) -> list[str]:
        config, cost, options = self.config, self.cost, self.options
        batch, optimizer, patience = config.batch, config.optimizer, config.held_out.patience
        decays = (
            f", divided by 10 at steps {listed(map(count, optimizer.decay_steps))}" if optimizer.decay_steps else ""
        )
        ends = "" if patience is None else f"; ends after {counted(patience, 'evaluation')} without improvement"
        embedded = f", and {_flop(self.embedded * cost.encode_flop)} for embeddings" if self.embedded else ""
        lines = [
            f"model: {self.architecture} with {counted(self.decoder_layers, 'decoder layer')}, training "
            f"{cost.trained:,} of {cost.weights:,} weights",
            f"schedule: {counted(config.steps, 'step')} of {counted(batch.images, 'image')} with up to "
            f"{counted(self.masks, 'mask')}; rate {optimizer.learning_rate:g} after "
            f"{counted(optimizer.warmup, 'step')} of warm-up{decays}{ends}",
            f"operations: {_flop(self.step_flop)} per step, {_flop(self.step_flop * config.steps)} in all{embedded}",
            f"memory per {self.kind}: {size(cost.state_bytes + self.activation_bytes)} of tensors, of which "
            f"{size(cost.state_bytes)} for weights, gradients, and optimizer, and {size(self.activation_bytes)} for "
            "activations in float32; less in bf16",
            self._time_line(),
        ]
        if options.price is not None:
            cost_of_run = None if self.device_hours is None else options.price * self.device_hours
            lines.append(f"cost: {number(cost_of_run)} at {options.price:g} per {self.kind}-hour")
        return [
            *lines,
            "the process itself, evaluations, reading, and communication aren't counted",
            "Nothing was changed.",
        ]

    def _time_line(self) -> str:
        """Return the estimated time, or that it's unknown."""
        share, hours = self.options.share, self.device_hours
        if share is None or hours is None:
            return "time: unknown without --share, because no training has been timed"
        return (
            f"time: {duration(3600 * hours / self.devices)} on {counted(self.devices, self.kind)}, or {number(hours)} "
            f"{self.kind}-hours, at {shown_share(share)} of {_flop(self.peak)}/s each; this share is assumed, not "
            "measured"
        )


def plan_train(config: TrainConfig, options: TrainPlanOptions) -> TrainPlan:
    """Check a configuration as `run_train` does, and estimate its cost. Writes nothing to the output or the datasets.

    Raises `UsageError` if the configuration doesn't fit the weights or the datasets, or if there are more
    GPUs than images per step.
    """
    storage = Storage(config.storage)
    found = find_weights(config, storage)
    config = found.config
    output = Location(storage, config.output)
    datasets = open_datasets(config, storage)
    refuse_places(datasets, output, cache_location(config, output))
    commits = (commit for dataset in datasets for commit in CommitLog(dataset.location).read_all())
    images = max(1, sum(commit.counts["images"] for commit in commits))
    devices = options.gpus or config.resources.workers
    if devices > config.batch.images:
        raise UsageError(
            f"--gpus is {devices} for {config.batch.images} images per step: expected at most batch.images, because a "
            "worker takes whole images"
        )
    cost = training_cost(found.architecture, found.decoder_layers, recipe_of(config), config.batch.recompute)
    kind, peak = "GPU", options.flops
    if peak is None:
        compute = resolve_compute(config.resources.device, config.precision, config.resources.threads)
        kind, peak = "GPU" if compute.kind == "cuda" else "worker", measure_peak(compute)
    return TrainPlan(config, found.architecture, found.decoder_layers, cost, options, devices, images, kind, peak)


def _flop(value: float) -> str:
    """Format a number of operations, such as `1.2e15 FLOP`."""
    return f"{value:.3g} FLOP"
