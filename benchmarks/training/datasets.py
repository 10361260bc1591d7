"""Scenes as segmint datasets, and their training with `segmint train`."""

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.training.scenes import LabeledScene
from segmint.catalogs.layout import MANIFEST
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.model.training.recipe import Recipe
from segmint.pipeline.engine.train.run import run_train
from segmint.pipeline.engine.train.settings import TrainConfig, keys_of
from tests.support.committed import ROWS, mask_row, write_dataset

QUALITY = 95  # JPEG quality


def write_scenes(folder: Path, scenes: Sequence[LabeledScene], source: str) -> None:
    """Write a dataset of scenes. `source` is the source of their masks.

    The number of scenes must be a multiple of a shard's number of images. The dataset is named after the folder,
    because training distinguishes datasets by name.
    """
    if len(scenes) % ROWS:
        raise SystemExit(f"{len(scenes)} scenes: expected a multiple of {ROWS}, the images of a shard")

    def row_of(ordinal: int, refused: bool) -> dict[str, Any]:
        return _row(ordinal, scenes[ordinal], source)

    dataset = Location(Storage(), str(folder))
    manifest = write_dataset(dataset, len(scenes) // ROWS, make_row=row_of, refuse=0)
    (dataset / MANIFEST).put(manifest.model_copy(update={"name": folder.name}).to_json())


def train(
    folder: Path,
    scenes: Path,
    replay: Path,
    replay_weight: float,
    recipe: Recipe,
    seed: int,
    threads: int,
    cache: Path,
    say: Callable[[str], None],
) -> Path:
    """Train MobileSAM with the recipe on all images of two datasets. Return the file of the weights.

    An image for replay is drawn `replay_weight` times as often as a scene.
    """
    config = TrainConfig.model_validate(
        {
            "datasets": [{"uri": str(scenes)}, {"uri": str(replay), "weight": replay_weight}],
            "output": str(folder),
            **keys_of(recipe),
            "seed": seed,
            "held_out": {"share": 0},
            "checkpoints": {"every": recipe.steps, "keep": 1},
            "cache": {"folder": str(cache)},
            "resources": {"device": "cpu", "threads": threads},
        }
    )
    return folder / run_train(config, say).record.file


def _row(ordinal: int, scene: LabeledScene, source: str) -> dict[str, Any]:
    encoded = io.BytesIO()
    Image.fromarray(scene.pixels).save(encoded, "JPEG", quality=QUALITY)
    height, width = scene.pixels.shape[:2]
    return {
        "ordinal": ordinal,
        "id": ordinal + 1,
        "image_id": scene.name,
        "uri": f"/scenes/{scene.name}.jpg",
        "license": "CC0-1.0",
        "source_sha256": hashlib.sha256(scene.pixels.tobytes()).hexdigest(),
        "width": width,
        "height": height,
        "faces": 0,
        "plates": 0,
        "regions": [],
        "release": encoded.getvalue(),
        "release_sha256": hashlib.sha256(encoded.getvalue()).hexdigest(),
        "masks": [{**mask_row(mask), "source": source} for mask in scene.masks],
    }
