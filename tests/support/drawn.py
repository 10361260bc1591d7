"""Datasets of masks that a test draws, as tables: real encodings and real statistics, without a build."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segmint.catalogs.dataset.tables import DatasetTables, TableFile, scratch_path
from segmint.catalogs.parquet import table_bytes
from segmint.model.automatic.rle import encode
from segmint.operators.describe import coverage, describe_mask
from segmint.operators.rows import SCHEMAS, Row, to_table
from tests.support.locations import location_of


def draw(height: int, width: int, *boxes: tuple[int, int, int, int]) -> np.ndarray:
    """A mask of boxes (x, y, width, height)."""
    mask = np.zeros((height, width), bool)
    for x, y, w, h in boxes:
        mask[y : y + h, x : x + w] = True
    return mask


def image_row(ordinal: int, **values: Any) -> Row:
    """A row of images without masks."""
    base = {"ordinal": ordinal, "id": ordinal + 1, "image_id": f"image-{ordinal}", "masks": 0, "width": 8, "height": 8}
    statistics = {"mask_count": 0, "coverage": 0.0}
    return {**base, "statistics": statistics, **values}


def image_with(ordinal: int, masks: Sequence[np.ndarray], **values: Any) -> tuple[Row, list[Row]]:
    """The rows of an image and of its masks."""
    rows = []
    for index, mask in enumerate(masks):
        code = encode(mask)
        ys, xs = np.nonzero(mask)
        rows.append(
            {
                "ordinal": ordinal,
                "id": ordinal + 1,
                "image_id": f"image-{ordinal}",
                "annotation_id": (ordinal + 1) * 10_000 + index,
                "segmentation": {"size": list(code.size), "counts": code.counts},
                "bbox": [float(v) for v in (xs.min(), ys.min(), np.ptp(xs), np.ptp(ys))],
                "area": int(mask.sum()),
                "predicted_iou": 0.9 + index / 100,
                "stability_score": 0.96,
                **vars(describe_mask(code.size, code.counts)),
            }
        )
    counts = [row["segmentation"]["counts"] for row in rows]
    size = masks[0].shape if masks else (8, 8)
    means = {
        f"mean_{name}": float(np.mean([row[name] for row in rows])) if rows else None
        for name in ("predicted_iou", "stability_score", "relative_size", "concavity")
    }
    statistics = {"mask_count": len(rows), "coverage": coverage((size[0], size[1]), counts), **means}
    shape = {"height": size[0], "width": size[1], "masks": len(rows), "statistics": statistics}
    return image_row(ordinal, **{**shape, **values}), rows


def tables_of(shards: Mapping[int, Mapping[str, list[Row]]]) -> DatasetTables:
    """Tables of rows by shard and folder."""
    folder = tempfile.TemporaryDirectory(prefix="segmint-drawn-")
    files: dict[str, list[TableFile]] = {kind: [] for kind in SCHEMAS}
    for shard, rows in shards.items():
        for kind, schema in SCHEMAS.items():
            path = Path(folder.name, scratch_path(kind, shard))
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(table_bytes(to_table(rows.get(kind, []), schema), schema))
            files[kind].append(TableFile(str(path), path.stat().st_size))
    return DatasetTables(location_of("drawn"), files, SCHEMAS, folder)
