"""`segmint train`: from the configuration to weights and `training.json`; a killed run goes on from its checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmint.catalogs.dataset.outputs import note_output, refuse_inside
from segmint.catalogs.lineage import TRAINING, Round, TrainedOn
from segmint.infra.assets.cache import cache_folder
from segmint.infra.assets.resolve import resolve
from segmint.infra.device import Compute, apply_compute, cpu_bits, device_kind, resolve_compute
from segmint.infra.errors import UsageError
from segmint.infra.log import get_logger
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import LOCAL, scheme
from segmint.infra.version import VERSION
from segmint.infra.wording import count, counted
from segmint.model.sam.load import SamWeightsError, inspect_checkpoint, load_sam
from segmint.model.sam.sam import Sam
from segmint.pipeline.train.checkpoints import (
    CHECKPOINTS,
    Checkpoint,
    DamagedCheckpointError,
    Measured,
    list_checkpoints,
    load_state,
    prune,
    put_checkpoint,
)
from segmint.pipeline.train.data.cache import LOOKS, EmbeddingCache, purge_looks
from segmint.pipeline.train.data.draws import Draws, fixed_draws
from segmint.pipeline.train.data.images import Held, LeftOut, OpenedDataset, TrainingImages, find_images, open_datasets
from segmint.pipeline.train.data.reading import ImageReader
from segmint.pipeline.train.data.splits import digest_of_sources, held_out
from segmint.pipeline.train.embedding import FrozenEncoder, encoder_hash
from segmint.pipeline.train.evaluation import Evaluation
from segmint.pipeline.train.logs import RunLog
from segmint.pipeline.train.loop import Hooks, best_of, held_out_of, run_steps
from segmint.pipeline.train.presets import with_preset
from segmint.pipeline.train.record import (
    RUN,
    RunRecord,
    TrainingRecord,
    describe_run,
    pin_run,
    put_training,
    put_weights,
    read_record,
)
from segmint.pipeline.train.sample import HeldOutSample
from segmint.pipeline.train.settings import TrainConfig
from segmint.pipeline.train.trainer import Trainer

Say = Callable[[str], None]


@dataclass(frozen=True)
class Trained:
    """What a run made; `new` is False if it had ended before."""

    output: str
    record: TrainingRecord
    new: bool

    def to_dict(self) -> dict[str, Any]:
        """The answer for JSON."""
        return {"output": self.output, "new": self.new, **self.record.model_dump(mode="json")}

    def lines(self) -> list[str]:
        """The answer as text."""
        record, trained, held = self.record, self.record.trained, self.record.held_out
        stopped = "" if trained["stopped"] == "steps" else ", and stopped as the held-out images got no better"
        lines = [
            f"trained {counted(trained['steps'], 'step')} on {counted(trained['images'], 'image')} with "
            f"{counted(trained['masks'], 'mask')}; {counted(held['images'], 'image')} held out{stopped}",
            *self._measured(),
            *(f"left out: {count(number)} {reason}" for reason, number in record.left_out["counts"].items()),
        ]
        if not self.new:
            lines.insert(0, f"{self.output} had ended before; nothing was trained now")
        weights = f"{self.output}/{record.file}"
        return [
            *lines,
            f"weights of step {trained['best_step']}: {weights}",
            f"where they come from: {TRAINING} beside",
        ]

    def _measured(self) -> list[str]:
        evaluations = [Measured(**each).evaluation() for each in self.record.evaluations]
        best = best_of(evaluations)
        if best is None:
            return ["no image is held out, so nothing says whether the weights got better: set held_out.share"]
        before = evaluations[0]
        lines = [
            f"on {counted(best.masks, 'mask')} of {counted(best.images, 'held-out image')}: mean IoU at one click "
            f"{before.one_click:.4f} → {best.one_click:.4f}, of the best of three masks {before.oracle:.4f} → "
            f"{best.oracle:.4f}"
        ]
        if best.one_click <= before.one_click:
            lines.append("these weights are no better there than those that training began with")
        return lines


def run_train(config: TrainConfig, say: Say) -> Trained:
    """Train, or go on; `say` prints the lines of steps and evaluations.

    Raises `UsageError` for a configuration that does not fit the weights, the datasets or a run that was begun in the
    output, `DamagedDatasetError` for a shard that cannot be read, `TrainingError` where losses are no numbers, and
    `StorageFaultError` where nothing can be written.
    """
    storage = Storage(config.storage)
    output = Location(storage, config.output)
    weights = resolve(config.weights, mirror=config.assets, storage=storage)
    try:
        architecture, _ = inspect_checkpoint(weights)
    except SamWeightsError as error:
        raise UsageError(str(error)) from error
    config = with_preset(config, architecture)
    compute = resolve_compute(config.resources.device, config.precision, config.resources.threads)
    cache = cache_location(config, output)
    datasets = open_datasets(config, storage)
    for dataset in datasets:
        refuse_inside(dataset.location, output, "output")
        refuse_inside(dataset.location, cache, "cache.folder")
    run = pin_run(output, describe_run(config, datasets, weights, storage))
    ended = read_record(output / TRAINING, TrainingRecord)
    if ended is not None:
        return Trained(str(output), ended, new=False)
    for dataset in datasets:  # before anything of the images is written
        note_output(dataset.location, "train", output, {RUN: run.sha256})
        if not cache.uri.startswith(output.uri + "/"):
            note_output(dataset.location, "train", cache, {})
    apply_compute(compute)
    record = Session(config, run, datasets, output, cache, weights, architecture, compute, say).train()
    for dataset in datasets:
        note_output(dataset.location, "train", output, {record.file: record.weights})
    return Trained(str(output), record, new=True)


def cache_location(config: TrainConfig, output: Location) -> Location:
    """The folder of embeddings and looks; raises `UsageError` if it is not a local one."""
    folder = config.cache.folder
    if folder is None:
        local = scheme(output.uri) == LOCAL
        return output / "cache" if local else Location(Storage(), str(cache_folder() / "train"))
    if scheme(folder) != LOCAL:
        raise UsageError(f"cache.folder is {folder}: expected a folder on this machine's disk")
    return Location(Storage(), str(Path(folder).absolute()))


@dataclass
class Session:
    """One start of a run."""

    config: TrainConfig
    run: RunRecord
    datasets: Sequence[OpenedDataset]
    output: Location
    cache: Location
    weights: Path
    architecture: str
    compute: Compute
    say: Say
    left_out: LeftOut = field(default_factory=LeftOut)
    numerics: list[dict[str, Any]] = field(default_factory=list)

    def train(self) -> TrainingRecord:
        """Train to the end, and put what came out."""
        config = self.config
        images, found = find_images(config, self.datasets, self.cache / LOOKS, self.left_out)
        held = held_out(images, config.held_out.share)
        if held.all():
            raise UsageError(
                f"all {len(images)} images are held out, or look like one that is: nothing is left to train on. Lower "
                f"held_out.share, which is {config.held_out.share}"
            )
        self.say(self._found_line(images, held))
        reader = ImageReader(images, config.losses.resolution, config.max_mask_area_ratio, self.left_out)
        try:
            sam = load_sam(self.weights, self.compute.device)
            cache = self._opened_cache(images, found, encoder_hash(sam))
            return self._train(sam, images, held, reader, cache)
        finally:
            reader.close()

    def _train(
        self,
        sam: Sam,
        images: TrainingImages,
        held: NDArray[np.bool_],
        reader: ImageReader,
        cache: EmbeddingCache | None,
    ) -> TrainingRecord:
        config = self.config
        draws = Draws(images, ~held, [entry.weight for entry in config.datasets], config.batch, config.seed)
        frozen = FrozenEncoder(sam, images, cache, self.compute) if config.encoder == "frozen" else None
        trainer = Trainer(sam, config, images, draws, reader, frozen, self.compute)
        drawn = fixed_draws(images, held, config.held_out.images, config.batch.masks_per_image)
        sample = HeldOutSample(sam, drawn, reader, frozen, config.overlays.images)
        start, evaluations = self._restore(trainer, reader)
        self.numerics = [each for each in self.numerics if each != self._numerics()] + [self._numerics()]
        folder = self.output / CHECKPOINTS

        def save(step: int, evaluations: Sequence[Evaluation]) -> None:
            self._save(folder, trainer, step, evaluations)
            log.save()

        with RunLog(self.output, self.say) as log:

            def evaluate(step: int) -> Evaluation:
                found = sample.evaluate(step)
                log.evaluation(found)
                return found

            hooks = Hooks(
                step=trainer.step,
                show=lambda result: log.step(result, config.steps),
                evaluate=evaluate if drawn else None,
                draw=lambda step: sample.draw(step, log),
                save=save,
            )
            ended = run_steps(config, start, evaluations, hooks)
        best = best_of(evaluations)
        best_step = ended.step if best is None else best.step
        if best_step != ended.step:
            chosen = next(each for each in list_checkpoints(folder) if each.step == best_step)
            trainer.load_weights(load_state(folder, chosen)["weights"])
        file, sha256 = put_weights(self.output, self.weights, trainer.weights())
        sources, digest = digest_of_sources(images, held)
        datasets = tuple(TrainedOn(name=each.manifest.name, digest=each.digest) for each in self.datasets)
        this = Round(
            weights=sha256,
            name=file,
            datasets=datasets,
            held_out=held_out_of(sources, evaluations),
            held_out_share=config.held_out.share,
        )
        record = TrainingRecord(
            code_version=VERSION,
            weights=sha256,
            file=file,
            architecture=self.architecture,
            config=self.run.config,
            parent=self.run.parent,
            datasets=datasets,
            trained={
                "images": int((~held).sum()),
                "masks": int(np.diff(images.starts)[~held].sum()),
                "steps": ended.step,
                "best_step": best_step,
                "stopped": ended.stopped,
            },
            held_out={"images": sources, "sha256": digest, "share": config.held_out.share},
            evaluations=tuple(asdict(each) for each in evaluations),
            left_out={"counts": dict(sorted(self.left_out.counts.items())), "listed": self.left_out.listed},
            numerics=tuple(self.numerics),
            lineage=(*self.run.lineage, this),
        )
        return put_training(self.output, record)

    def _opened_cache(self, images: TrainingImages, found: dict[str, Held], encoder: str) -> EmbeddingCache | None:
        """Delete what the datasets no longer have, and open the cache; None where nothing is cached.

        Embeddings are kept by the hash of the `encoder` alone: weights that were trained with it frozen share them.
        """
        compute = self.compute
        threads = f"-{compute.threads}" if compute.kind == "cpu" else ""
        key = f"{encoder}-{compute.kind}-{compute.precision}{threads}"
        cache = EmbeddingCache(self.cache, key, self.config.cache.gb * 1e9)
        for dataset, held in found.items():
            if held.whole:
                cache.purge(dataset, {row.tobytes() for row in held.jpegs})
                purge_looks(self.cache, dataset, held.tars)
        if self.config.encoder == "trained" or not self.config.cache.gb:
            return None
        cache.make_room(len(np.unique(images.jpeg_sha256, axis=0)))
        return cache

    def _restore(self, trainer: Trainer, reader: ImageReader) -> tuple[int, list[Evaluation]]:
        """Go on from the last checkpoint that can be used; returns its step and what was measured until then."""
        folder = self.output / CHECKPOINTS
        for checkpoint in reversed(list_checkpoints(folder)):
            if checkpoint.run != self.run.fingerprint:
                continue
            try:
                trainer.load_state(load_state(folder, checkpoint))
            except (DamagedCheckpointError, ValueError, KeyError) as error:
                get_logger("train").warning("checkpoint_unusable", step=checkpoint.step, error=str(error))
                continue
            self._recall(checkpoint, reader)
            self.say(f"goes on from the checkpoint of step {checkpoint.step}")
            prune(folder, {each.step for each in list_checkpoints(folder) if each.step <= checkpoint.step})
            return checkpoint.step, [each.evaluation() for each in checkpoint.evaluations]
        prune(folder, ())
        return 0, []

    def _recall(self, checkpoint: Checkpoint, reader: ImageReader) -> None:
        """Take over what earlier starts left out as they read; beyond what is listed the larger count holds."""
        reader.recall(checkpoint.listed)
        for reason, number in checkpoint.left_out.items():
            self.left_out.counts[reason] = max(self.left_out.counts[reason], number)
        self.numerics = [dict(each) for each in checkpoint.numerics]
        if self.numerics and self.numerics[-1] != self._numerics():
            get_logger("train").warning(
                "other_numerics", before=self.numerics[-1], now=self._numerics(), note="the last bits will be others"
            )

    def _save(self, folder: Location, trainer: Trainer, step: int, evaluations: Sequence[Evaluation]) -> None:
        put_checkpoint(
            folder,
            trainer.state(),
            run=self.run.fingerprint,
            step=step,
            evaluations=tuple(Measured(**asdict(each)) for each in evaluations),
            left_out=dict(self.left_out.counts),
            listed=tuple(self.left_out.listed),
            numerics=tuple(self.numerics),
        )
        steps = [each.step for each in list_checkpoints(folder) if each.step <= step]
        best = best_of(evaluations)
        prune(folder, {*steps[-self.config.checkpoints.keep :], *([] if best is None else [best.step])})

    def _numerics(self) -> dict[str, Any]:
        """What decides the last bits."""
        import torch

        compute = self.compute
        bits = cpu_bits(compute.threads, compute.precision) if compute.kind == "cpu" else ""
        return {
            "device": device_kind(compute),
            "precision": compute.precision,
            "threads": compute.threads,
            "torch": torch.__version__,
            "cpu": bits,
        }

    def _found_line(self, images: TrainingImages, held: NDArray[np.bool_]) -> str:
        masks = np.diff(images.starts)
        return (
            f"{counted(int((~held).sum()), 'image')} with {counted(int(masks[~held].sum()), 'mask')} to train on, "
            f"{counted(int(held.sum()), 'image')} held out"
        )
