"""Weights with a lineage, and datasets with masks of people."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from segmint.catalogs.layout import canonical_json
from segmint.catalogs.lineage import TRAINING, TrainingDatasetRef, TrainingRound
from segmint.infra.assets.cache import sha256_of
from segmint.infra.assets.known import ASSETS
from segmint.pipeline.engine.train.data.splits import is_held_out
from segmint.pipeline.engine.train.record import TrainingRecord
from tests.support.trainable import scene

BASE = TrainingRound(weights=ASSETS["mobile_sam"].sha256, name="mobile_sam")


def put_lineage(
    weights: Path,
    rounds: Sequence[tuple[TrainingDatasetRef | tuple[TrainingDatasetRef, ...], float | None]],
    begun: TrainingRound = BASE,
) -> TrainingRecord:
    """Write the `training.json` of weights that were trained in these rounds, on a dataset or several each."""
    sha256 = sha256_of(weights)
    lineage = [begun]
    for number, (named, share) in enumerate(rounds, start=1):
        last = number == len(rounds)
        round_sha256 = sha256 if last else f"{number:064}"
        datasets = named if isinstance(named, tuple) else (named,)
        lineage.append(
            TrainingRound(weights=round_sha256, name=f"sam-{number}.pth", datasets=datasets, held_out_share=share)
        )
    record = TrainingRecord(
        code_version="1",
        weights=sha256,
        file=weights.name,
        architecture="mobile_sam",
        config={},
        parent=lineage[-2],
        datasets=lineage[-1].datasets,
        trained={},
        held_out={},
        evaluations=(),
        skipped={},
        numerics=(),
        lineage=tuple(lineage),
    )
    (weights.parent / TRAINING).write_bytes(canonical_json(record.model_dump(mode="json")))
    return record


def held_by_hash(images: int, share: float) -> set[int]:
    """Of the first images of a small dataset those that are held out by their hash, by id."""
    sources = {number + 1: hashlib.sha256(scene(number)[0].tobytes()).digest() for number in range(images)}
    return {number for number, source in sources.items() if is_held_out(source, share)}


@pytest.fixture
def weights_file(tmp_path: Path) -> Callable[[str], Path]:
    """Makes files that have the hashes of weights, each in its folder."""

    def make(name: str) -> Path:
        path = tmp_path / name / f"{name}.pth"
        path.parent.mkdir()
        path.write_bytes(name.encode())
        return path

    return make
