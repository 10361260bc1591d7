"""`segmint train`: from a configuration to weights and `training.json`; a killed run resumes from its checkpoint.

`segmint train --dry-run`: the schedule, memory, time, and cost of a run, from counted operations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.outputs import CACHE, default_cache, note_output, refuse_inside
from segmint.catalogs.lineage import TRAINING
from segmint.infra.assets import resolve, sha256_of
from segmint.infra.device import BF16_NEEDS_GPU, apply_compute, resolve_compute
from segmint.infra.errors import UnfinishedError, UsageError
from segmint.infra.peak import measure_peak
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.units import FLOPS, OVER_ZERO, check_option
from segmint.infra.uris import LOCAL, scheme
from segmint.infra.wording import count, counted, duration, listed, number, size
from segmint.infra.wording import share as shown_share
from segmint.model.sam.load import Architecture, SamWeightsError, geometry_of, inspect_checkpoint
from segmint.model.training.recipe import inspect_encoder, sam_with_encoder
from segmint.model.training.step import TrainingCost, training_cost
from segmint.pipeline.engine.train.images import TrainingDataset, open_datasets
from segmint.pipeline.engine.train.reading import BYTES
from segmint.pipeline.engine.train.record import (
    RUN,
    TrainingRecord,
    TrainingRunRecord,
    describe_run,
    read_record,
    start_run,
)
from segmint.pipeline.engine.train.session import Say, TrainingSession
from segmint.pipeline.engine.train.settings import TrainConfig, recipe_of, with_preset
from segmint.pipeline.engine.train.trainer import Evaluation


@dataclass(frozen=True)
class TrainingResult:
    """Result of a training run. `new` is False if an earlier start had already finished the run."""

    output: str
    record: TrainingRecord
    new: bool

    def to_dict(self) -> dict[str, Any]:
        return {"output": self.output, "new": self.new, **self.record.model_dump(mode="json")}

    def lines(self) -> list[str]:
        record, trained, held = self.record, self.record.trained, self.record.held_out
        stopped = "" if trained["stopped"] == "steps" else "; stopped early without further improvement"
        lines = [
            f"trained {counted(trained['steps'], 'step')} on {counted(trained['images'], 'image')} with "
            f"{counted(trained['masks'], 'mask')}; {counted(held['images'], 'image')} held out{stopped}",
            *self._measured(),
            *(f"skipped: {count(number)} {reason}" for reason, number in record.skipped["counts"].items()),
        ]
        if not self.new:
            lines.insert(0, f"{self.output} was already finished, so nothing was trained")
        weights = f"{self.output}/{record.file}"
        return [
            *lines,
            f"weights of step {trained['best_step']}: {weights}",
            f"training record: {TRAINING} in the same folder",
        ]

    def _unmeasured(self) -> str:
        images, share = self.record.held_out["images"], self.record.held_out["share"]
        if images:
            return "nothing was measured on the held-out images, so any improvement is unknown"
        if not share:
            return "no images are held out, so any improvement is unknown. Set held_out.share"
        return (
            "no images are held out, so any improvement is unknown. A hash of each source decides its side, and with "
            f"held_out.share {share:g} all of these images are trained on. Raise held_out.share, or add images"
        )

    def _measured(self) -> list[str]:
        evaluations = [Evaluation(**each) for each in self.record.evaluations]
        trained = self.record.trained
        best = next((each for each in evaluations if each.step == trained["best_step"]), None)
        if best is None:
            return [self._unmeasured()]
        before, tried = evaluations[0], len(evaluations) - 1
        chosen = f" (the best of {tried} evaluations)" if tried > 1 else ""
        lines = [
            f"on {counted(best.masks, 'mask')} of {counted(best.images, 'held-out image')}: mean IoU at one click "
            f"{before.one_click:.4f} → {best.one_click:.4f}, best of three masks {before.oracle:.4f} → "
            f"{best.oracle:.4f}{chosen}",
            *(
                f"step {each['step']} was better, {each['one_click']:.4f}, but its checkpoint is damaged or gone"
                for each in trained.get("passed_over", ())
            ),
        ]
        if best.one_click <= before.one_click:
            word = "worse" if best.one_click < before.one_click else "no better"
            change = f"({before.one_click:.4f} → {best.one_click:.4f})"
            lines.append(f"on these images, the new weights are {word} than the initial weights {change}")
        return lines


def run_train(config: TrainConfig, say: Say) -> TrainingResult:
    """Train, or resume a run. `say` prints a line for each step and evaluation.

    Raises `UsageError` if the configuration doesn't fit the weights, the datasets, or an existing run in the output.
    Raises `DamagedDatasetError` if a shard is unreadable, `TrainingError` if the losses aren't finite, and
    `StorageFaultError` if writing fails.
    """
    storage = Storage(config.storage)
    output = Location(storage, config.output)
    found = find_weights(config, storage)
    config, weights, architecture = found.config, found.file, found.architecture
    resources = config.resources
    if resources.workers == 1:  # with several workers, each one resolves its numerics on its own machine
        compute = resolve_compute(resources.device, config.precision, resources.threads)
    elif config.precision == "bf16" and (resources.device == "cpu" or resources.gpus_per_worker == 0):
        raise UsageError(BF16_NEEDS_GPU)
    cache = cache_location(config, output)
    datasets = open_datasets(config, storage)
    refuse_places(datasets, output, cache)
    if config.encoder_weights is not None:
        config, weights = begin_with_encoder(config, weights, output, storage)
    run = describe_run(config, datasets, weights, storage)
    run = start_run(output, run) or run
    ended = read_record(output / TRAINING, TrainingRecord)
    if ended is None:
        note_places(datasets, output, cache, run)
        session = TrainingSession(config, run, datasets, output, cache, weights, architecture, say)
        if config.resources.workers > 1:
            from segmint.pipeline.engine.train.workers import train_on_workers

            train_on_workers(session)
        else:
            apply_compute(compute)
            session.train(session.find(), compute)
    record = read_record(output / TRAINING, TrainingRecord)
    if record is None:
        raise UnfinishedError(f"{output / TRAINING} disappeared: something else is writing to the output")
    for dataset in datasets:  # even if the run has ended, because it may have been killed before this
        note_output(dataset.location, "train", output, {record.file: record.weights})
    return TrainingResult(str(output), record, new=ended is None)


@dataclass(frozen=True)
class FoundWeights:
    """Local file of the weights that a run starts from, and the configuration with its preset filled in."""

    config: TrainConfig
    file: Path
    architecture: Architecture
    decoder_layers: int


def find_weights(config: TrainConfig, storage: Storage) -> FoundWeights:
    """Find the configured weights, or an encoder's weights. Raises `UsageError` if they don't fit the configuration."""
    try:
        if config.encoder_weights is not None:
            config, file, architecture = find_encoder(config, storage)
            return FoundWeights(config, file, architecture, config.decoder_layers)
        file = resolve(config.weights, mirror=config.assets, storage=storage)
        architecture, layers = inspect_checkpoint(file)
        geometry_of(architecture).expect_padded("training")
        config = with_preset(config, architecture)
        check_layers(config, layers)
        return FoundWeights(config, file, architecture, layers)
    except ValueError as error:
        raise UsageError(str(error)) from error


def check_layers(config: TrainConfig, layers: int) -> None:
    """Raise `UsageError` if the preset or `decoder_layers` doesn't match the decoder in the weights."""
    if "decoder_layers" in config.model_fields_set and layers != config.decoder_layers:
        by = " by preset: mask-making" if config.preset == "mask-making" else ""
        raise UsageError(
            f"decoder_layers is {config.decoder_layers}{by}, but the weights have {layers}. Set encoder_weights to "
            f"start with a new decoder, or decoder_layers: {layers}"
        )


def find_encoder(config: TrainConfig, storage: Storage) -> tuple[TrainConfig, Path, Architecture]:
    """Find the file of `encoder_weights`, and return it with its architecture and the configuration with its preset.

    Raises `UsageError` if `weights` is set as well or if the encoder is frozen, and `SamWeightsError` if the weights
    are unusable.
    """
    if "weights" in config.model_fields_set:
        raise UsageError("weights and encoder_weights are both set: expected one of them")
    encoder = resolve(str(config.encoder_weights), mirror=config.assets, storage=storage)
    architecture = inspect_encoder(encoder)
    config = with_preset(config, architecture)
    if config.encoder == "frozen":
        raise UsageError("encoder_weights needs encoder: trained, because the encoder's neck is new as well")
    return config, encoder, architecture


def begin_with_encoder(
    config: TrainConfig, encoder: Path, output: Location, storage: Storage
) -> tuple[TrainConfig, Path]:
    """Create a SAM with this encoder in the output. Return the configuration with it as `weights`, and its local file.

    The configuration then contains the encoder's hash instead of its path, which may exist on only one machine. A run
    that resumes uses the file from its first start. Raises `UsageError` if the weights are unusable.
    """
    sha256 = sha256_of(encoder)
    file = output / "initial" / f"{sha256[:12]}-{config.decoder_layers}-{config.seed}.pth"
    if not file.exists():
        try:
            sam = sam_with_encoder(encoder, config.decoder_layers, config.seed)
        except SamWeightsError as error:
            raise UsageError(str(error)) from error
        with ScratchFolder() as name:
            path = Path(name) / "sam.pth"  # a fixed name, because torch stores it in the file
            torch.save(sam.state_dict(), path)
            file.put_file_if_absent(path)
    begun = config.model_copy(update={"weights": file.uri, "encoder_weights": sha256})
    return begun, resolve(file.uri, storage=storage)


def refuse_places(datasets: Sequence[TrainingDataset], output: Location, cache: Location) -> None:
    """Raise `UsageError` if the output or the cache is inside a dataset."""
    for dataset in datasets:
        refuse_inside(dataset.location, output, "output")
        refuse_inside(dataset.location, cache, "cache.folder")


def note_places(datasets: Sequence[TrainingDataset], output: Location, cache: Location, run: TrainingRunRecord) -> None:
    """Record the output and the cache in the datasets, so that takedowns find them.

    This happens before any data derived from images is written there.
    """
    for dataset in datasets:
        note_output(dataset.location, "train", output, {RUN: run.sha256})
        if not cache.uri.startswith(output.uri + "/"):
            note_output(dataset.location, "train", cache, {})


def cache_location(config: TrainConfig, output: Location) -> Location:
    """Return the folder of embeddings and shard scans. Raises `UsageError` if it isn't local."""
    folder = config.cache.folder
    if folder is None:
        return output / CACHE if scheme(output.uri) == LOCAL else default_cache()
    if scheme(folder) != LOCAL:
        raise UsageError(f"cache.folder is {folder}: expected a folder on a local disk")
    return Location(Storage(), str(Path(folder).absolute()))


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
