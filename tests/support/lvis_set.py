"""A drawn set in LVIS's format, with predictions: rare and frequent categories, unchecked ones, and incomplete ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

SIZE = (240, 320)
CATEGORIES = {1: "r", 2: "r", 3: "r", 4: "c", 5: "c", 6: "c", 7: "f", 8: "f", 9: "f"}
CROWDED = 3
"""Image with more predictions than LVIS's evaluation considers."""


def draw_lvis_set() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the annotations and the results; the last image has no annotations."""
    rng = np.random.default_rng(7)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number in range(1, 13):
        present = sorted(rng.choice(list(CATEGORIES), 3, replace=False).tolist()) if number < 12 else []
        absent = [category for category in CATEGORIES if category not in present]
        negative = sorted(rng.choice(absent, 3, replace=False).tolist())
        partial = [category for category in present if rng.random() < 0.4]
        images.append(
            {
                "id": number,
                "coco_url": f"http://images.cocodataset.org/val2017/{number:012d}.png",
                "height": SIZE[0],
                "width": SIZE[1],
                "neg_category_ids": negative,
                "not_exhaustive_category_ids": partial,
            }
        )
        for _ in range(6 if present else 0):
            category = int(rng.choice(present))
            center, radius = rng.uniform(0, SIZE), float(rng.choice([8, 14, 30, 45, 80]))
            mask = _ellipse(center, radius, radius * 0.8)
            annotations.append(
                {"id": len(annotations) + 1, **_entry(number, category, mask), "area": float(mask.sum())}
            )
            for _ in range(3):
                guess = category if rng.random() < 0.7 else int(rng.choice(list(CATEGORIES)))
                near = _ellipse(center + rng.normal(0, 2, 2), radius * rng.uniform(0.8, 1.2), radius * 0.8)
                results.append({**_entry(number, guess, near), "score": float(rng.integers(0, 12)) / 10})
        for _ in range(330 if number == CROWDED else 4):
            guess = int(rng.choice(list(CATEGORIES)))
            wrong = _ellipse(rng.uniform(20, 220, 2), 12, 9)
            results.append({**_entry(number, guess, wrong), "score": float(rng.integers(0, 9)) / 10})
    categories = [{"id": id, "name": f"kind {id}", "frequency": each} for id, each in CATEGORIES.items()]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def in_one_category(document: dict[str, Any], results: list[dict[str, Any]]) -> tuple[dict[str, Any], list[Any]]:
    """Return the annotations and results as if all were of one category, which was checked in every image."""
    images = [{**each, "neg_category_ids": [1], "not_exhaustive_category_ids": []} for each in document["images"]]
    annotations = [{**each, "category_id": 1} for each in document["annotations"]]
    one = {"images": images, "annotations": annotations, "categories": document["categories"][:1]}
    return one, [{**each, "category_id": 1} for each in results]


def write_lvis_set(folder: Path) -> tuple[Path, Path]:
    """Write the annotations, the results, and blank images below `images`; return the first two."""
    document, results = draw_lvis_set()
    (folder / "images" / "val2017").mkdir(parents=True)
    for image in document["images"]:
        name = "/".join(image["coco_url"].split("/")[-2:])
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(folder / "images" / name)
    (folder / "truth.json").write_text(json.dumps(document))
    (folder / "results.json").write_text(json.dumps(results))
    return folder / "truth.json", folder / "results.json"


def _ellipse(center: Any, radius_y: float, radius_x: float) -> np.ndarray:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    mask: np.ndarray = ((y - center[0]) / radius_y) ** 2 + ((x - center[1]) / radius_x) ** 2 <= 1
    mask[int(np.clip(center[0], 0, SIZE[0] - 1)), int(np.clip(center[1], 0, SIZE[1] - 1))] = True  # never empty
    return mask


def _entry(image: int, category: int, mask: np.ndarray) -> dict[str, Any]:
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    segmentation = {"size": list(SIZE), "counts": rle["counts"].decode()}
    return {"image_id": image, "category_id": category, "segmentation": segmentation}
