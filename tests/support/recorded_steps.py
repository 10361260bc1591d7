"""Steps of a run with recorded clicks, alone or in a worker of Ray Train."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segmint.infra.device import Compute, apply_compute
from segmint.model.sam.load import load_sam
from segmint.model.training.sampling import Clicks
from segmint.pipeline.engine.train.images import DrawSequence
from segmint.pipeline.engine.train.reading import (
    EmbeddingCache,
    FrozenEncoder,
    TrainingImageReader,
    WorkerRank,
    encoder_hash,
)
from segmint.pipeline.engine.train.trainer import StepResult, Trainer
from tests.support.locations import location_of
from tests.support.trained import find

CPU = Compute("cpu", "fp32", 1)


@dataclass(frozen=True)
class StepSetup:
    """What is trained: a dataset, with the keys of its configuration, and where embeddings are kept."""

    folder: Path
    dataset: Path
    cache: Path
    weights: Path
    changes: Mapping[str, Any]
    count: int


def take_steps(
    steps: StepSetup, world: WorkerRank, recorded: list[dict[int, Clicks]] | None = None
) -> tuple[list[StepResult], dict[str, Any]]:
    """Take the steps as one worker of a world; returns what each did, and the weights at the end."""
    apply_compute(CPU)
    folder = steps.folder / f"worker-{world.rank}-of-{world.size}"
    folder.mkdir(exist_ok=True)
    found = find(folder, steps.dataset, **steps.changes)
    sam, images = load_sam(steps.weights), found.images
    cache = EmbeddingCache(location_of(steps.cache), f"{encoder_hash(sam)}-cpu-fp32-1", 1e9)
    reader = TrainingImageReader(images, 256, 0.9, found.skipped)
    draws = DrawSequence(images, images.ids > 0, [1.0], found.config.batch, seed=0)
    encoder = FrozenEncoder(sam, images, cache, CPU)
    trainer = Trainer(sam, found.config, images, draws, reader, encoder, CPU, world)
    results = [trainer.step(step + 1, None if recorded is None else recorded[step]) for step in range(steps.count)]
    return results, trainer.weights()


def take_part(config: Mapping[str, Any]) -> None:
    """Take the steps in a worker of Ray Train, and save what came out under the worker's rank."""
    import torch

    from segmint.pipeline.engine.train.workers import world_of_group

    world = world_of_group()
    results, weights = take_steps(config["steps"], world, config["recorded"])
    torch.save({"results": results, "weights": weights}, config["steps"].folder / f"rank-{world.rank}.pt")
