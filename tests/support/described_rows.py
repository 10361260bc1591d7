"""Rows as the stages make them, without the stages: real encodings of small shapes, for tests of what comes after."""

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa

from segmint.model.automatic.rle import encode
from segmint.operators.prepare.release import ReleaseConfig, release
from segmint.operators.rows import DESCRIBED, to_table


def rectangle_mask(height: int, width: int, top: int, left: int, bottom: int, right: int) -> dict[str, Any]:
    """A mask of rows [top, bottom) and columns [left, right) as a value of the described masks' struct."""
    from segmint.operators.describe import describe_mask  # needs pycocotools, which GPU machines may lack

    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    rle = encode(mask)
    return {
        "segmentation": {"size": list(rle.size), "counts": rle.counts},
        "bbox": [float(left), float(top), float(right - 1 - left), float(bottom - 1 - top)],
        "area": int(mask.sum()),
        "predicted_iou": 0.93,
        "stability_score": 0.97,
        "crop_box": [0.0, 0.0, float(width), float(height)],
        "point_coords": [[left + 1.5, top + 1.5]],
        **vars(describe_mask(rle.size, rle.counts)),
        "source": "automatic",
        "redacted_share": 0.0,
        "redaction_iou": 0.0,
    }


def accepted_row(ordinal: int, masks: int = 2) -> dict[str, Any]:
    """An accepted row with an image of 40x30 pixels and `masks` rectangles."""
    pixels = np.random.default_rng(ordinal).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    released = release(pixels, ReleaseConfig())
    steps = {field.name: masks for field in DESCRIBED.field("funnel").type}
    return {
        "ordinal": ordinal,
        "id": ordinal + 1,
        "image_id": f"image-{ordinal}",
        "uri": f"photo_{ordinal}.jpg",
        "license": "CC0-1.0",
        "source_sha256": f"{ordinal:064x}",
        "source_width": 40,
        "source_height": 30,
        "width": 40,
        "height": 30,
        "faces": 0,
        "plates": 0,
        "regions": [],
        "redacted_share": 0.0,
        "release": released.jpeg,
        "release_sha256": hashlib.sha256(released.jpeg).hexdigest(),
        "masks": [rectangle_mask(30, 40, 2 + i, 3 + i, 12 + i, 20 + i) for i in range(masks)],
        "funnel": steps,
        "statistics": {"mask_count": masks, "coverage": 0.2},
        "next_mask": masks,
    }


def rejected_row(ordinal: int, reason: str = "not_found", stage: str = "read") -> dict[str, Any]:
    """A row that a stage refused."""
    return {
        "ordinal": ordinal,
        "id": ordinal + 1,
        "image_id": f"image-{ordinal}",
        "uri": f"photo_{ordinal}.jpg",
        "stage": stage,
        "reason": reason,
        "detail": "the store answers, and there is no such object",
    }


def faulted_row(ordinal: int) -> dict[str, Any]:
    """A row that could not be judged."""
    return {
        "ordinal": ordinal,
        "id": ordinal + 1,
        "image_id": f"image-{ordinal}",
        "uri": f"photo_{ordinal}.jpg",
        "fault": "prepare: StorageFaultError: the store does not answer",
    }


def described(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as a table of the last stage's schema."""
    return to_table(rows, DESCRIBED)
