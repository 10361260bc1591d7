"""Small datasets to train on: windows of photographs with pieces of others in them, whose masks are exact."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from PIL import Image

from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.infra.storage.location import Location
from tests.support.committed import mask_row, write_dataset
from tests.support.photographs import photograph

NAMES = ("coffee", "rocket", "chelsea", "astronaut")
SIZE = (120, 160)
"""Height and width of each image in pixels."""


def scene(ordinal: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """The picture of a row, (120, 160, 3) uint8 RGB, and its masks: an ellipse, a rectangle, and nearly all of it."""
    random = np.random.default_rng(ordinal)
    height, width = SIZE
    base = photograph(NAMES[ordinal % 4])
    y, x = (int(random.integers(0, side - most)) for side, most in zip(base.shape[:2], SIZE, strict=True))
    image = base[y : y + height, x : x + width].copy()
    image = np.rot90(image, 2 * int(random.integers(2))).copy()
    other = photograph(NAMES[(ordinal + 1 + ordinal // 4) % 4], (width, height))
    ellipse, rectangle = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    axes = tuple(int(value) for value in random.integers(14, 26, 2))
    cv2.ellipse(ellipse, (int(random.integers(32, 60)), int(random.integers(34, 86))), axes, 30, 0, 360, 1, -1)
    corner = int(random.integers(90, 110)), int(random.integers(10, 60))
    cv2.rectangle(rectangle, corner, (corner[0] + 34, corner[1] + int(random.integers(18, 40))), 1, -1)
    masks = [ellipse.astype(bool), rectangle.astype(bool)]
    for mask in masks:
        image[mask] = 255 - other[mask]
    everything = np.ones(SIZE, bool)
    everything[:4] = False  # 97%
    return image, [*masks, everything]


SHORTEST: dict[str, Any] = {
    "steps": 2,
    "batch": {"images": 1, "masks": 1, "masks_per_image": 1},
    "optimizer": {"warmup": 1},
    "sampling": {"clicks": 1},
    "held_out": {"share": 0.3, "every": 2},
}
"""Keys of the shortest run that is worth the name: see `train_yaml`."""


def row_of(ordinal: int, refused: bool, shown: int | None = None) -> dict[str, Any]:
    """A row as it reaches a shard's writer: the first mask is manual, the others the model's.

    `shown` is the number of its scene, if not the ordinal.
    """
    row: dict[str, Any] = {
        "ordinal": ordinal,
        "id": ordinal + 1,
        "image_id": f"image-{ordinal}",
        "uri": f"/photos/{ordinal}.jpg",
        "license": "CC0-1.0",
    }
    if refused:
        return {**row, "stage": "prepare", "reason": "not_an_image", "detail": "it is a text"}
    image, masks = scene(ordinal if shown is None else shown)
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "JPEG", quality=92)
    masks_of_row = [mask_row(mask) for mask in masks]
    masks_of_row[0]["source"] = "manual"
    return {
        **row,
        "source_sha256": hashlib.sha256(image.tobytes()).hexdigest(),
        "width": SIZE[1],
        "height": SIZE[0],
        "faces": 0,
        "plates": 0,
        "regions": [],
        "release": encoded.getvalue(),
        "release_sha256": hashlib.sha256(encoded.getvalue()).hexdigest(),
        "masks": masks_of_row,
    }


def write_trainable(dataset: Location, shards: int = 4) -> DatasetManifest:
    """Write a dataset of three images a shard, none refused."""
    return write_dataset(dataset, shards, make_row=row_of, refuse=0)


def write_three(dataset: Location) -> DatasetManifest:
    """Write a dataset of three images, of which the second is held out at a share of 0.3."""
    return write_dataset(dataset, 1, make_row=lambda ordinal, refused: row_of(ordinal, refused, 3 + ordinal), refuse=0)


def train_yaml(path: Path, uris: Sequence[Path | str], output: Path, masks: str = "all", **changes: Any) -> Path:
    """A configuration of a short run on one thread, as YAML, with changes of whole keys; `masks` of the datasets."""
    tree = {
        "datasets": [{"uri": str(uri), "masks": masks} for uri in uris],
        "output": str(output),
        "steps": 4,
        "batch": {"images": 2, "masks": 4, "masks_per_image": 2},
        "sampling": {"clicks": 2},
        "held_out": {"share": 0.3, "images": 2, "every": 2},
        "checkpoints": {"every": 2},
        "resources": {"device": "cpu", "threads": 1},
        **changes,
    }
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path
