"""The output of Label Studio and its converter for the tasks of an export, after people edited them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from label_studio_sdk.converter import Converter, brush

from segmint.pipeline.export.categories import Categories
from segmint.pipeline.export.label_studio import labeling

Edit = Callable[[int, dict[str, Any]], dict[str, Any] | None]
"""A person's edit of a region of an image: another one, or None to delete it."""


def decode(region: dict[str, Any]) -> np.ndarray:
    """The pixels of a region, (height, width) bool, by the SDK."""
    shape = (region["original_height"], region["original_width"], 4)
    return np.reshape(brush.decode_rle(region["value"]["rle"]), shape)[:, :, 3] > 0


def painted(region: dict[str, Any], mask: np.ndarray) -> dict[str, Any]:
    """The same region with other pixels, (height, width) bool."""
    rle = brush.mask2rle(mask.astype(np.uint8) * 255)
    return {**region, "value": {**region["value"], "rle": rle}}


def answered(tasks: list[dict[str, Any]], edit: Edit = lambda image, region: region) -> list[dict[str, Any]]:
    """The tasks as Label Studio exports them: each prediction was taken over as an annotation, edited, submitted."""
    exported = []
    for task in tasks:
        regions = (edit(task["data"]["segmint_id"], region) for region in task["predictions"][0]["result"])
        annotation = {
            "id": 700 + task["id"],
            "completed_by": 1,
            "was_cancelled": False,
            "created_at": "2026-03-01T10:00:00Z",
            "updated_at": "2026-03-01T11:00:00Z",
            "result": [region for region in regions if region is not None],
        }
        exported.append({"id": 30 + task["id"], "data": task["data"], "annotations": [annotation], "predictions": []})
    return exported


def convert(tasks: list[dict[str, Any]], folder: Path, format: str) -> Path:
    """The folder with the SDK converter's output for exported tasks: JSON_MIN, BRUSH_TO_COCO, BRUSH_TO_NUMPY, …"""
    (folder / "out").mkdir(parents=True)
    source = folder / "export.json"
    source.write_text(json.dumps(tasks), encoding="utf-8")
    Converter(labeling(Categories()), str(folder)).convert(str(source), str(folder / "out"), format, is_dir=False)
    return folder / "out"
