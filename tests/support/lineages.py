"""What a training writes beside its weights, as far as datasets keep it."""

from typing import Any

from segmint.catalogs.lineage import Round, TrainedOn

BASE, TRAINED = "0" * 64, "1" * 64
"""The SHA-256 of weights that training began with, and of those that came out."""


def training_json() -> dict[str, Any]:
    """A `training.json` of weights that were best at step 40 of 60."""
    figures = ((0, 0.361, 0.895), (40, 0.828, 0.889), (60, 0.801, 0.87))
    return {
        "schema_version": 1,
        "code_version": "0.2.0",
        "weights": TRAINED,
        "file": "sam-1.pth",
        "trained": {"images": 30, "masks": 200, "steps": 60, "best_step": 40, "stopped": "steps"},
        "held_out": {"images": 7, "sha256": "e" * 64, "share": 0.1},
        "evaluations": [
            {"step": step, "images": 2, "masks": 14, "one_click": one_click, "oracle": oracle}
            for step, one_click, oracle in figures
        ],
        "lineage": [
            {"weights": BASE, "name": "mobile_sam", "datasets": []},
            {"weights": TRAINED, "name": "sam-1.pth", "datasets": [{"name": "street", "digest": "d" * 64}]},
        ],
    }


def lineage_of(*weights: str, dataset: str = "small") -> tuple[Round, ...]:
    """A lineage of weights, each trained on a dataset of this name from the one before."""
    datasets = (TrainedOn(name=dataset, digest="d" * 64),)
    return tuple(
        Round(weights=sha256, name=f"sam-{sha256[:2]}.pth", datasets=datasets if place else ())
        for place, sha256 in enumerate(weights)
    )
