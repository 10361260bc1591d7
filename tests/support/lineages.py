"""What a training writes beside its weights, as far as datasets keep it."""

from typing import Any

from segmint.catalogs.lineage import HeldOutScores, TrainingDatasetRef, TrainingRound

BASE, TRAINED = "0" * 64, "1" * 64
"""The SHA-256 of weights that training began with, and of those that came out."""


HELD_OUT = HeldOutScores(
    images=7, measured=2, masks=14, before=0.361, after=0.828, oracle_before=0.895, oracle_after=0.889
)


def training_json() -> dict[str, Any]:
    """A `training.json`, as far as it is read."""
    datasets = [{"name": "street", "digest": "d" * 64}]
    return {
        "schema_version": 1,
        "code_version": "0.4.0",
        "weights": TRAINED,
        "file": "sam-1.pth",
        "lineage": [
            {"weights": BASE, "name": "mobile_sam", "datasets": [], "held_out": None},
            {"weights": TRAINED, "name": "sam-1.pth", "datasets": datasets, "held_out": HELD_OUT.model_dump()},
        ],
    }


def chain_of(*weights: str, dataset: str = "small") -> tuple[TrainingRound, ...]:
    """A lineage of weights, each trained on a dataset of this name from the one before."""
    datasets = (TrainingDatasetRef(name=dataset, digest="d" * 64),)
    return tuple(
        TrainingRound(weights=sha256, name=f"sam-{sha256[:2]}.pth", datasets=datasets if place else ())
        for place, sha256 in enumerate(weights)
    )
