"""`segmint train --task objects`: a one-class detector, trained on the boxes of a dataset's masks.

Images and masks are chosen, drawn, and read as in SAM's training, at SAM's input size. A killed run resumes from its
last checkpoint. The run writes `objects-<hash>.pt`, a TorchScript file that follows the contract for detectors, and
`objects.json`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from segmint.catalogs.dataset.outputs import SCANS, note_output, purge_scans
from segmint.catalogs.frozen import Frozen
from segmint.catalogs.layout import bytes_sha256
from segmint.catalogs.lineage import TrainingDatasetRef, TrainingRound
from segmint.infra.assets import sha256_of
from segmint.infra.device import apply_compute, resolve_compute
from segmint.infra.errors import UsageError, raise_problems
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.version import VERSION
from segmint.infra.wording import count, counted, some
from segmint.model.training.objects import (
    BackboneWeightsError,
    ObjectImage,
    build_objects_detector,
    build_objects_optimizer,
    export_objects_detector,
    objects_step,
)
from segmint.pipeline.engine.train.images import (
    DrawSequence,
    SkippedImages,
    TrainingDataset,
    find_images,
    open_datasets,
)
from segmint.pipeline.engine.train.reading import TrainingImage, TrainingImageReader, digest_of_sources, held_out
from segmint.pipeline.engine.train.record import (
    CHECKPOINTS,
    TrainingRunRecord,
    identity_with_digests,
    load_newest,
    pin_images,
    pin_run,
    prune,
    put_by_hash,
    put_record,
    read_record,
    save_checkpoint,
    start_run,
)
from segmint.pipeline.engine.train.run import cache_location, note_places, refuse_places
from segmint.pipeline.engine.train.session import Say
from segmint.pipeline.engine.train.settings import BatchKeys, TrainConfig, schedule_problems
from segmint.pipeline.engine.train.trainer import TrainingError

OBJECTS = "objects.json"

_MOST_MASKS = 1 << 16
"""Limit that no image's number of masks reaches. If a box were omitted, the detector would learn it as background."""

_SCRATCH = bytes_sha256(b"")
"""Hash that stands for the backbone's weights when the training starts from scratch."""

_OF_SAM = (
    *("weights", "encoder_weights", "decoder_layers", "preset", "encoder", "steps", "batch", "optimizer", "losses"),
    *("sampling", "jitter", "precision"),
)


class ObjectsRecord(Frozen):
    """Contents of `objects.json`, which describes the detector's origin."""

    schema_version: Literal[1] = 1
    code_version: str
    file: str
    sha256: str
    config: dict[str, Any]
    datasets: tuple[TrainingDatasetRef, ...]
    trained: dict[str, int]  # images, masks, steps
    skipped: dict[str, Any]


@dataclass(frozen=True)
class ObjectsResult:
    """Result of a training run. `new` is False if an earlier start had already finished the run."""

    output: str
    record: ObjectsRecord
    new: bool

    def to_dict(self) -> dict[str, Any]:
        return {"output": self.output, "new": self.new, **self.record.model_dump(mode="json")}

    def lines(self) -> list[str]:
        trained = self.record.trained
        lines = [
            f"trained {counted(trained['steps'], 'step')} on {counted(trained['images'], 'image')} with "
            f"{counted(trained['masks'], 'mask')}",
            *(f"skipped: {count(number)} {reason}" for reason, number in self.record.skipped["counts"].items()),
            f"detector: {self.output}/{self.record.file}",
            f"training record: {OBJECTS} in the same folder",
        ]
        return lines if self.new else [f"{self.output} was already finished, so nothing was trained", *lines]


def run_objects(config: TrainConfig, say: Say) -> ObjectsResult:
    """Train the detector or resume its run. `say` prints one line per step. Raises the same errors as `run_train`."""
    of_sam = [key for key in _OF_SAM if key in config.model_fields_set]
    if of_sam:
        raise UsageError(f"task: objects doesn't train SAM, but {', '.join(of_sam)} is set. Use the keys of objects")
    if config.resources.workers > 1:
        raise UsageError(f"resources.workers is {config.resources.workers}: expected 1 for task: objects")
    keys = config.objects
    raise_problems(schedule_problems("objects", keys.warmup, keys.decay_steps, keys.steps))
    storage = Storage(config.storage)
    output = Location(storage, config.output)
    cache = cache_location(config, output)
    datasets = open_datasets(config, storage)
    refuse_places(datasets, output, cache)
    run = _describe(config, datasets)
    run = start_run(output, run) or run
    ended = read_record(output / OBJECTS, ObjectsRecord)
    if ended is not None:
        return _noted(output, datasets, ended, new=False)
    note_places(datasets, output, cache, run)
    compute = resolve_compute(config.resources.device, "fp32", config.resources.threads)
    apply_compute(compute)
    recipe = config.objects.recipe()
    with torch.random.fork_rng([]):
        torch.manual_seed(config.seed)  # for the weights that no file provides
        try:
            detector = build_objects_detector(recipe, config.objects.weights)
        except (BackboneWeightsError, OSError) as error:
            raise UsageError(f"objects.weights: {error}") from error
    detector.to(compute.device)
    optimizer = build_objects_optimizer(detector, recipe)
    skipped = SkippedImages()
    images, found = find_images(config, datasets, cache / SCANS, skipped)
    trained = ~held_out(images, config.held_out.share)
    if not trained.any():
        raise UsageError(f"all {len(images)} images are held out. Lower held_out.share ({config.held_out.share})")
    run = pin_run(output, run)
    pin_images(output, images)
    for key, held in found.items():
        if held.whole:
            purge_scans(cache, key, held.tars)
    batch = BatchKeys(images=recipe.batch_images, masks=recipe.batch_images * _MOST_MASKS, masks_per_image=_MOST_MASKS)
    draws = DrawSequence(images, trained, [entry.weight for entry in config.datasets], batch, config.seed)
    folder = output / CHECKPOINTS
    reader = TrainingImageReader(images, config.losses.resolution, config.max_mask_area_ratio, skipped)
    weights = list(detector.parameters())
    try:
        start = restore(folder, run, detector, optimizer, reader)
        for step in range(start + 1, recipe.steps + 1):
            reads = [read for draw in draws.step(step) if (read := reader.read(draw)) is not None]
            losses = objects_step(
                detector, [_object_image(read) for read in reads], config.seed, step, max(1, len(reads))
            )
            norm = float(torch.nn.utils.get_total_norm([each.grad for each in weights if each.grad is not None]))
            _check(step, losses, norm, [images.name(read.image) for read in reads])
            factor = recipe.rate_factor(step - 1)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            optimizer.step()
            optimizer.zero_grad()
            parts = ", ".join(
                f"{name.removeprefix('loss_').replace('_', ' ')} {loss:.4f}" for name, loss in losses.items()
            )
            say(f"step {step}/{recipe.steps}: loss {sum(losses.values()):.4f} ({parts})")
            if step == recipe.steps or step % config.checkpoints.every == 0:
                state = {"weights": detector.state_dict(), "optimizer": optimizer.state_dict()}
                save_checkpoint(folder, state, run.fingerprint, step, skipped, config.checkpoints.keep)
    finally:
        reader.close()
    file, sha256 = _put_detector(output, detector.to("cpu"))
    record = ObjectsRecord(
        code_version=VERSION,
        file=file,
        sha256=sha256,
        config=run.config,
        datasets=tuple(TrainingDatasetRef(name=each.manifest.name, digest=each.digest) for each in datasets),
        trained={
            "images": digest_of_sources(images, trained)[0],
            "masks": sum(len(images.masks_of(int(image))) for image in trained.nonzero()[0]),
            "steps": recipe.steps,
        },
        skipped={"counts": dict(sorted(skipped.counts.items())), "listed": skipped.listed},
    )
    put_record(output / OBJECTS, record)
    return _noted(output, datasets, record, new=True)


def _noted(output: Location, datasets: Sequence[TrainingDataset], record: ObjectsRecord, *, new: bool) -> ObjectsResult:
    """Note the detector in the datasets, unless an earlier start has, and return the result."""
    for dataset in datasets:
        note_output(dataset.location, "train", output, {record.file: record.sha256})
    return ObjectsResult(str(output), record, new)


def _object_image(read: TrainingImage) -> ObjectImage:
    assert read.pixels is not None
    return ObjectImage(read.pixels, torch.from_numpy(read.boxes).to(torch.float32), read.slot)


def _describe(config: TrainConfig, datasets: Sequence[TrainingDataset]) -> TrainingRunRecord:
    """Return the record that identifies the run: its keys, with datasets and weights replaced by their hashes."""
    keys = identity_with_digests(config, datasets)
    for key in _OF_SAM:
        keys.pop(key, None)
    file = config.objects.weights
    try:
        begun = _SCRATCH if file is None else sha256_of(Path(file))
    except OSError as error:
        raise UsageError(f"objects.weights: {file} can't be read: {error.strerror}") from error
    keys["objects"]["weights"] = begun
    parent = TrainingRound(weights=begun, name=config.objects.backbone)
    return TrainingRunRecord(code_version=VERSION, config=keys, parent=parent, lineage=(parent,))


def _check(step: int, losses: Mapping[str, float], norm: float, names: Sequence[str]) -> None:
    """Raise `TrainingError` if the losses or the gradient contain NaN or infinity."""
    if math.isfinite(norm) and all(math.isfinite(loss) for loss in losses.values()):
        return
    what = "the gradient" if math.isfinite(sum(losses.values())) else "the loss"
    raise TrainingError(
        f"step {step}: {what} is not finite, on {some(names)}. The last checkpoint is kept. Lower "
        "objects.learning_rate and train to another output"
    )


def restore(
    folder: Location,
    run: TrainingRunRecord,
    detector: nn.Module,
    optimizer: torch.optim.Optimizer,
    reader: TrainingImageReader,
) -> int:
    """Resume from the last usable checkpoint of this run, and return its step. Return 0 if there is no checkpoint."""

    def load(state: Mapping[str, Any]) -> None:
        weights = state["weights"]
        optimizer.load_state_dict(state["optimizer"])  # first, because it validates before it changes anything
        detector.load_state_dict(weights)

    checkpoint, unusable = load_newest(folder, run.fingerprint, load)
    prune(folder, unusable)
    if checkpoint is None:
        return 0
    reader.recall(checkpoint.listed, checkpoint.skipped)
    return checkpoint.step


def _put_detector(output: Location, detector: nn.Module) -> tuple[str, str]:
    """Write the detector as `objects-<hash>.pt`, a TorchScript file, and return the name and the SHA-256."""
    with ScratchFolder() as name:
        path = Path(name) / "objects.pt"  # a fixed name, because torch stores it in the file
        export_objects_detector(detector, path)
        return put_by_hash(output, path)
