"""Small committed datasets, written by the real writer from made-up rows: photographs, two masks each, no model."""

import hashlib
import io
from collections.abc import Callable
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pycocotools import mask as coco

from segmint.catalogs.dataset.commits import CommitLog, CommitSums, sum_listing
from segmint.catalogs.dataset.manifest import CatalogPart, DatasetManifest, ModelWeights
from segmint.catalogs.layout import MANIFEST, json_sha256, part_path
from segmint.infra.storage.location import Location
from segmint.operators.rows import DESCRIBED
from segmint.operators.shards.write import ShardTask, write_shard
from tests.support.locations import handle_of

ROWS = 3
"""Rows of each shard; the last one is refused."""


def pixels(ordinal: int) -> np.ndarray:
    """The picture of a row before JPEG, (60, 80, 3) uint8 RGB: a gradient with a bright square."""
    y, x = np.mgrid[:60, :80]
    image = np.stack([x * 3, y * 4, (x + y + 40 * ordinal) % 256], axis=-1).astype(np.uint8)
    image[10:30, 20:50] = 250
    return image


def masks(ordinal: int) -> list[np.ndarray]:
    """The masks of a row, (60, 80) bool each."""
    square = np.zeros((60, 80), bool)
    square[10:30, 20:50] = True
    disk = np.hypot(*np.mgrid[-30:30, -40:40]) < 5 + ordinal
    return [square, disk]


def row_of(ordinal: int, refused: bool) -> dict[str, Any]:
    """A row as it reaches a shard's writer."""
    row: dict[str, Any] = {
        "ordinal": ordinal,
        "id": ordinal + 1,
        "image_id": f"image-{ordinal}",
        "uri": f"/photos/{ordinal}.jpg",
        "license": "CC-BY-4.0",
        "attribution": "Zoë",
    }
    if refused:
        return {**row, "stage": "prepare", "reason": "not_an_image", "detail": "it is a text"}
    encoded = io.BytesIO()
    Image.fromarray(pixels(ordinal)).save(encoded, "JPEG", quality=95)
    return {
        **row,
        "width": 80,
        "height": 60,
        "faces": 0,
        "plates": 0,
        "regions": [],
        "redacted_share": 0.0,
        "release": encoded.getvalue(),
        "release_sha256": hashlib.sha256(encoded.getvalue()).hexdigest(),
        "masks": [mask_row(mask) for mask in masks(ordinal)],
    }


RowMaker = Callable[[int, bool], dict[str, Any]]
"""Makes the row of an ordinal, refused or not."""


def of_people(ordinal: int, refused: bool) -> dict[str, Any]:
    """A row whose first mask was corrected in 10 s and a second more for each ordinal; the other one is as it was."""
    row = row_of(ordinal, refused)
    if not refused:
        row["masks"][0] |= {"source": "corrected", "seconds": 10.0 + ordinal, "annotator": "Ada"}
        row["masks"][1] |= {"source": "imported" if ordinal == 1 else "automatic"}
    return row


def write_dataset(
    dataset: Location, shards: int, with_images: bool = True, make_row: RowMaker | None = None, refuse: int = 1
) -> DatasetManifest:
    """Writes `dataset.json` and commits each shard."""
    manifest = DatasetManifest(
        name="small",
        config={"images_per_shard": ROWS},
        config_sha256=json_sha256({"images_per_shard": ROWS}),
        numerics={"device": "cpu"},
        code_version="0",
        weights=ModelWeights(name="none", sha256="0" * 64),
        catalog=(
            CatalogPart(
                path=part_path(0, "0" * 64),
                rows=shards * ROWS,
                sha256="0" * 64,
                source_sha256="0" * 64,
                first_shard=0,
            ),
        ),
        images_per_shard=ROWS,
        policy_date=date(2026, 1, 1),
    )
    (dataset / MANIFEST).put(manifest.to_json())
    for shard in range(shards):
        write_generation(dataset, shard, refuse=refuse, with_images=with_images, make_row=make_row or row_of)
    return manifest


def write_generation(
    dataset: Location,
    shard: int,
    generation: int = 1,
    refuse: int = 1,
    with_images: bool = True,
    make_row: RowMaker = row_of,
) -> None:
    """Write and commit one generation of a shard, its last `refuse` rows refused."""
    start, stop = shard * ROWS, (shard + 1) * ROWS
    rows = [make_row(ordinal, ordinal >= stop - refuse) for ordinal in range(start, stop)]
    complete = [{name: row.get(name) for name in DESCRIBED.names} for row in rows]
    table = pa.Table.from_pylist(complete, schema=DESCRIBED)
    task = ShardTask(
        shard=shard,
        start=start,
        stop=stop,
        dataset=handle_of(dataset, with_images=with_images),
        numerics="0123456789ab",
        max_reject_ratio=1.0,
        generation=generation,
    )
    result = write_shard(task, [(0, ROWS)], table)
    if result.status != "committed":
        raise AssertionError(result.detail)


def mask_row(mask: np.ndarray) -> dict[str, Any]:
    """A mask (H, W) bool as a row carries it."""
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    ys, xs = np.nonzero(mask)
    return {
        "segmentation": {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")},
        "bbox": [float(v) for v in (xs.min(), ys.min(), xs.max() - xs.min(), ys.max() - ys.min())],
        "area": int(mask.sum()),
        "predicted_iou": 0.91,
        "stability_score": 0.97,
        "crop_box": [0.0, 0.0, float(mask.shape[1]), float(mask.shape[0])],
        "point_coords": [[30.0, 20.0]],
    }


def sum_commits(dataset: Location, wanted: range | None = None) -> CommitSums:
    """Sum a dataset's commits that hold; only those of the shards in `wanted` (step 1) if it is given."""
    return sum_listing(dataset, CommitLog(dataset).latest_commits(), wanted=wanted)
