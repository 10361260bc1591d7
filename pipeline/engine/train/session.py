"""Process of a training run, from finding the images in the datasets to the final record, with its loop and logs."""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segmint.catalogs.dataset.outputs import SCANS, purge_scans
from segmint.catalogs.lineage import TRAINING, HeldOutScores, TrainingDatasetRef, TrainingRound
from segmint.infra.arrays import Bools
from segmint.infra.device import Compute, cpu_bits, device_kind
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.log import get_logger
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location
from segmint.infra.uris import LOCAL, absolute, local_path, scheme
from segmint.infra.version import VERSION
from segmint.infra.wording import counted
from segmint.model.sam.load import Sam, load_sam
from segmint.pipeline.engine.train.images import (
    DatasetContents,
    DrawSequence,
    SkippedImages,
    TrainingDataset,
    TrainingImages,
    find_images,
    fixed_draws,
)
from segmint.pipeline.engine.train.reading import (
    EmbeddingCache,
    FrozenEncoder,
    TrainingImageReader,
    WorkerRank,
    cache_key,
    digest_of_sources,
    encoder_hash,
    held_out,
)
from segmint.pipeline.engine.train.record import (
    CHECKPOINTS,
    Checkpoint,
    DamagedCheckpointError,
    TrainingRecord,
    TrainingRunRecord,
    list_checkpoints,
    load_newest,
    load_state,
    pin_images,
    pin_run,
    prune,
    put_record,
    put_weights,
    save_checkpoint,
)
from segmint.pipeline.engine.train.settings import TrainConfig
from segmint.pipeline.engine.train.trainer import ALONE, Evaluation, HeldOutSample, StepResult, Trainer

Say = Callable[[str], None]

LOGS = "logs"

Stop = Literal["steps", "patience"]


class RunLog(AbstractContextManager["RunLog"]):
    """Log of a run, as lines and as TensorBoard files in `logs/`. A context manager.

    If the output is in a bucket, the files are uploaded only when `save` is called.
    """

    def __init__(self, output: Location, say: Callable[[str], None]) -> None:
        """Open TensorBoard's files. `say` prints a line on the console."""
        from tensorboardX import SummaryWriter

        self._say = say
        self._output = output
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        if scheme(output.uri) == LOCAL:
            self._folder = local_path(absolute(output.uri)) / LOGS
        else:
            self._scratch = ScratchFolder()
            self._folder = Path(self._scratch.name)
        try:
            self._writer = SummaryWriter(str(self._folder))
        except OSError as error:
            raise SegmintError(f"can't write the logs to {self._folder}: {error.strerror or error}") from error

    def step(self, result: StepResult, steps: int) -> None:
        self._say(result.line(steps))
        if result.masks:
            for name in ("loss", "focal", "dice", "iou_error", "first_iou", "last_iou", "gradient", "rate", "masks"):
                self._writer.add_scalar(f"train/{name}", getattr(result, name), result.step)

    def evaluation(self, evaluation: Evaluation) -> None:
        """Log the scores on held-out images."""
        self._say(evaluation.line())
        self._writer.add_scalar("held_out/one_click", evaluation.one_click, evaluation.step)
        self._writer.add_scalar("held_out/oracle", evaluation.oracle, evaluation.step)

    def save(self) -> None:
        """Flush the log to the output."""
        self._writer.flush()
        if self._scratch is not None:
            for path in sorted(self._folder.iterdir()):
                (self._output / LOGS / path.name).put_file(path)

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self._writer.close()
            if kind is None:
                self.save()
        finally:
            if self._scratch is not None:
                self._scratch.cleanup()


@dataclass(frozen=True)
class LoopHooks:
    """Actions that a run's loop calls at its steps. `evaluate` is None if no image is held out."""

    step: Callable[[int], StepResult]
    show: Callable[[StepResult], None]
    evaluate: Callable[[int], Evaluation] | None
    save: Callable[[int, Sequence[Evaluation]], None]


@dataclass(frozen=True)
class LoopEnd:
    """Step at which the loop ended, and the reason."""

    step: int
    stopped: Stop


def run_steps(config: TrainConfig, start: int, evaluations: list[Evaluation], hooks: LoopHooks) -> LoopEnd:
    """Take the steps after `start`, which is 0 in a new run, and append to the evaluations of earlier steps.

    A checkpoint is saved every `checkpoints.every` steps, at each evaluation that is the best so far, and at the end.
    """
    patience = config.held_out.patience
    if start == 0 and hooks.evaluate is not None and not evaluations:
        evaluations.append(hooks.evaluate(0))
    step = start
    while step < config.steps and not is_over(evaluations, patience):
        step += 1
        hooks.show(hooks.step(step))
        last = step == config.steps
        improved = False
        if hooks.evaluate is not None and (last or step % config.held_out.every == 0):
            evaluations.append(hooks.evaluate(step))
            improved = best_of(evaluations) is evaluations[-1]
        due = step % config.checkpoints.every == 0
        if last or improved or due or is_over(evaluations, patience):
            hooks.save(step, evaluations)
    return LoopEnd(step, "steps" if step >= config.steps else "patience")


def best_of(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """Return the evaluation with the best mean IoU after one click, or None. The first one wins a tie."""
    return next(iter(ranked(evaluations)), None)


def ranked(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Sort the evaluations of trained weights by mean IoU after one click, best first."""
    return sorted((each for each in evaluations if each.step > 0), key=lambda each: -each.one_click)


def is_over(evaluations: Sequence[Evaluation], patience: int | None) -> bool:
    """Return whether at least `patience` evaluations have passed since the best one."""
    best = best_of(evaluations)
    if patience is None or best is None:
        return False
    return sum(each.step > best.step for each in evaluations) >= patience


def held_out_of(images: int, evaluations: Sequence[Evaluation], best: Evaluation | None) -> HeldOutScores | None:
    """Return the scores on `images` held-out images: before the training, and with the chosen weights."""
    if best is None or not best.masks:
        return None
    before = evaluations[0]
    return HeldOutScores(
        images=images,
        measured=best.images,
        masks=best.masks,
        before=before.one_click,
        after=best.one_click,
        oracle_before=before.oracle,
        oracle_after=best.oracle,
    )


@dataclass(frozen=True)
class TrainingInputs:
    """Images in a run's datasets, the mask `held` (N,) bool of held-out images, and each dataset's contents."""

    images: TrainingImages
    held: Bools
    held_by: dict[str, DatasetContents]
    skipped: SkippedImages


@dataclass
class TrainingSession:
    """Process of a training run, from one start to its end.

    All workers make the same calls, and the first worker writes the shared files. `compute` is set when the training
    starts.
    """

    config: TrainConfig
    run: TrainingRunRecord
    datasets: Sequence[TrainingDataset]
    output: Location
    cache: Location
    weights: Path
    architecture: str
    say: Say
    world: WorkerRank = ALONE
    compute: Compute = Compute("cpu", "fp32", 1)  # noqa: RUF009 (a frozen value)
    skipped: SkippedImages = field(default_factory=SkippedImages)
    numerics: list[dict[str, Any]] = field(default_factory=list)

    def find(self) -> TrainingInputs:
        """Find and split the images of the datasets. If they are usable, pin the run.

        Raises the same errors as `find_images`, `pin_run`, and `pin_images`, and `UsageError` if all images are held
        out.
        """
        config, skipped = self.config, SkippedImages()
        images, held_by = find_images(config, self.datasets, self.cache / SCANS, skipped)
        held = held_out(images, config.held_out.share)
        if held.all():
            raise UsageError(
                f"all {len(images)} images are held out or near-duplicates of held-out ones, so none remain to train "
                f"on. Lower held_out.share ({config.held_out.share})"
            )
        self.run = pin_run(self.output, self.run)
        pin_images(self.output, images)
        masks = int(np.diff(images.starts)[~held].sum())
        trained, out = (counted(digest_of_sources(images, which)[0], "image") for which in (~held, held))
        self.say(f"{trained} with {counted(masks, 'mask')} to train on, {out} held out")
        return TrainingInputs(replace(images, thumbnails=images.thumbnails[:0]), held, held_by, skipped)

    def train(self, found: TrainingInputs, compute: Compute) -> None:
        """Train to the end. The first worker writes the weights, and then `training.json`."""
        self.skipped = found.skipped
        self.compute = compute
        config, images = self.config, found.images
        reader = TrainingImageReader(images, config.losses.resolution, config.max_mask_area_ratio, self.skipped)
        try:
            sam = load_sam(self.weights, self.compute.device)
            cache = self._opened_cache(images, found.held_by, encoder_hash(sam))
            self._train(sam, images, found.held, reader, cache)
        finally:
            reader.close()

    def _train(
        self,
        sam: Sam,
        images: TrainingImages,
        held: Bools,
        reader: TrainingImageReader,
        cache: EmbeddingCache | None,
    ) -> None:
        config, world = self.config, self.world
        weights, jitter = [entry.weight for entry in config.datasets], config.jitter
        draws = DrawSequence(images, ~held, weights, config.batch, config.seed, jitter)
        frozen = FrozenEncoder(sam, images, cache, self.compute) if config.encoder == "frozen" else None
        trainer = Trainer(sam, config, images, draws, reader, frozen, self.compute, world)
        choices = [entry.masks for entry in config.datasets]
        drawn = fixed_draws(images, held, config.held_out.images, config.batch.masks_per_image, choices)
        sample = HeldOutSample(sam, drawn, reader, frozen, world)
        start, evaluations = self._restore(trainer, reader)
        self.numerics = [each for each in self.numerics if each != self._numerics()] + [self._numerics()]
        with ExitStack() as contexts:
            contexts.callback(trainer.close)
            log = contexts.enter_context(RunLog(self.output, self.say)) if world.first else None

            def show(result: StepResult) -> None:
                if log is not None:
                    log.step(result, config.steps)

            def evaluate(step: int) -> Evaluation:
                measured = sample.evaluate(step)
                if log is not None:
                    log.evaluation(measured)
                return measured

            def save(step: int, evaluations: Sequence[Evaluation]) -> None:
                reader.exchange(world)
                if log is not None:
                    self.save(trainer, step, evaluations)
                    log.save()

            hooks = LoopHooks(trainer.step, show, evaluate if drawn else None, save)
            ended = run_steps(config, start, evaluations, hooks)
        if world.first:
            self._end(trainer, images, held, ended, evaluations)

    def _end(
        self,
        trainer: Trainer,
        images: TrainingImages,
        held: Bools,
        ended: LoopEnd,
        evaluations: Sequence[Evaluation],
    ) -> None:
        """Write the weights of the best step, and the record."""
        config = self.config
        best, passed_over = self._load_best(trainer, ended, evaluations)
        best_step = ended.step if best is None else best.step
        weights = trainer.weights()
        file, sha256 = put_weights(self.output, self.weights, weights)
        sources, digest = digest_of_sources(images, held)
        datasets = tuple(TrainingDatasetRef(name=each.manifest.name, digest=each.digest) for each in self.datasets)
        this = TrainingRound(
            weights=sha256,
            name=file,
            datasets=datasets,
            held_out=held_out_of(sources, evaluations, best),
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
                "images": digest_of_sources(images, ~held)[0],
                "masks": int(np.diff(images.starts)[~held].sum()),
                "steps": ended.step,
                "best_step": best_step,
                "stopped": ended.stopped,
                **({"passed_over": passed_over} if passed_over else {}),
            },
            held_out={"images": sources, "sha256": digest, "share": config.held_out.share},
            evaluations=tuple(each.model_dump() for each in evaluations),
            skipped={"counts": dict(sorted(self.skipped.counts.items())), "listed": self.skipped.listed},
            numerics=tuple(self.numerics),
            lineage=(*self.run.lineage, this),
        )
        put_record(self.output / TRAINING, record)

    def _load_best(
        self, trainer: Trainer, ended: LoopEnd, evaluations: Sequence[Evaluation]
    ) -> tuple[Evaluation | None, list[dict[str, Any]]]:
        """Load the weights of the best evaluation that has a usable checkpoint.

        Returns this evaluation, and the better evaluations without a usable checkpoint. If no checkpoint is usable, the
        returned evaluation is None, and the trainer keeps the weights of the last step.
        """
        folder = self.output / CHECKPOINTS
        passed_over: list[dict[str, Any]] = []
        kept = {each.step: each for each in list_checkpoints(folder) if each.run == self.run.fingerprint}
        for evaluation in ranked(evaluations):
            step = evaluation.step
            if step == ended.step:
                return evaluation, passed_over
            try:
                if step not in kept:
                    raise DamagedCheckpointError(f"{folder} has no checkpoint of step {step}")
                trainer.load_weights(load_state(folder, kept[step])["weights"])
            except (DamagedCheckpointError, ValueError, KeyError) as error:
                get_logger("train").warning("best_unusable", step=step, error=str(error), note="using the next best")
                passed_over.append({"step": step, "one_click": evaluation.one_click})
                continue
            return evaluation, passed_over
        return None, passed_over

    def _opened_cache(
        self, images: TrainingImages, found: dict[str, DatasetContents], encoder: str
    ) -> EmbeddingCache | None:
        """Purge the images that are no longer in the datasets, and open the cache. Return None if nothing is cached.

        The key of an embedding depends only on the encoder's weights, whose hash is `encoder`. Weights that were
        trained with a frozen encoder therefore share their embeddings.
        """
        world, most = self.world, self.config.cache.gb * 1e9
        key = cache_key(encoder, self.compute)
        cached = self.config.encoder == "frozen" and self.config.cache.gb > 0
        if world.local_rank == 0:
            cache = EmbeddingCache(self.cache, key, most)
            for dataset, held in found.items():
                if held.whole:
                    cache.purge(dataset, {row.tobytes() for row in held.jpegs})
                    purge_scans(self.cache, dataset, held.tars)
            if cached:
                cache.make_room(len(np.unique(images.jpeg_sha256, axis=0)))
        world.gather(None)  # the other workers on this machine wait until the first one has purged the cache
        return EmbeddingCache(self.cache, key, most) if cached else None

    def _restore(self, trainer: Trainer, reader: TrainingImageReader) -> tuple[int, list[Evaluation]]:
        """Resume from the last usable checkpoint. Return its step and the evaluations up to then.

        The first worker chooses the checkpoint, and the others load the same one.
        """
        folder = self.output / CHECKPOINTS
        first, run = self.world.first, self.run.fingerprint
        chosen, unusable = load_newest(folder, run, trainer.load_state) if first else (None, set())
        chosen = self.world.gather(chosen)[0]
        if chosen is None:
            if first:
                prune(folder, unusable)
            return 0, []
        if not first:
            trainer.load_state(load_state(folder, chosen))
        self._recall(chosen, reader)
        if first:
            self.say(f"resuming from the checkpoint of step {chosen.step}")
            prune(folder, unusable)
        return chosen.step, list(chosen.evaluations)

    def _recall(self, checkpoint: Checkpoint, reader: TrainingImageReader) -> None:
        """Restore the skipped items of earlier starts, and warn if this machine's numerics differ from theirs."""
        reader.recall(checkpoint.listed, checkpoint.skipped)
        self.numerics = [dict(each) for each in checkpoint.numerics]
        if self.world.first and self.numerics and self.numerics[-1] != self._numerics():
            get_logger("train").warning(
                "other_numerics", before=self.numerics[-1], now=self._numerics(), note="results won't be bit-identical"
            )

    def save(self, trainer: Trainer, step: int, evaluations: Sequence[Evaluation]) -> None:
        best = best_of(evaluations)
        save_checkpoint(
            self.output / CHECKPOINTS,
            trainer.state(),
            self.run.fingerprint,
            step,
            self.skipped,
            self.config.checkpoints.keep,
            kept=None if best is None else best.step,
            evaluations=tuple(evaluations),
            numerics=tuple(self.numerics),
        )

    def _numerics(self) -> dict[str, Any]:
        """Return the settings and versions that determine the last bits of results."""
        import torch

        compute = self.compute
        bits = cpu_bits(compute.threads) if compute.kind == "cpu" else ""
        workers = {"workers": self.world.size} if self.world.size > 1 else {}
        return {
            "device": device_kind(compute),
            "precision": compute.precision,
            "threads": compute.threads,
            "torch": torch.__version__,
            "cpu": bits,
            **workers,
        }
