"""A small scene with exact masks, as the files that evaluations take for truth: COCO, label maps, COCO results."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

SIZE = (96, 128)


@dataclass(frozen=True)
class TruthFiles:
    """The folder of images, a COCO file of them, a folder of label maps, and the images' pixels by id."""

    images: Path
    coco: Path
    maps: Path
    pixels: dict[int, np.ndarray]


def write_truth_files(folder: Path, photograph: np.ndarray, count: int) -> TruthFiles:
    """Draw colored shapes on parts of a photograph, (H, W, 3) uint8; the last of several images has no mask in COCO.

    Categories 3 (a square, LVIS's rare) and 5 (two disks, frequent, one of them tiny).
    """
    images, maps = folder / "images", folder / "maps"
    images.mkdir(parents=True)
    maps.mkdir()
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    shapes = [
        (3, (240, 30, 30), (abs(y - 30) < 18) & (abs(x - 35) < 22)),
        (5, (30, 60, 240), (y - 60) ** 2 + (x - 90) ** 2 < 26**2),
        (5, (250, 240, 40), (y - 80) ** 2 + (x - 20) ** 2 < 7**2),
    ]
    document: dict[str, Any] = {"images": [], "annotations": []}
    document["categories"] = [
        {"id": 3, "name": "square", "frequency": "r"},
        {"id": 5, "name": "disk", "frequency": "f"},
    ]
    pixels = {}
    for number in range(1, count + 1):
        image = photograph[10 * number :, 20 * number :][: SIZE[0], : SIZE[1]].copy()
        labels = np.zeros(SIZE, np.uint8)
        for label, (category, color, shape) in enumerate(shapes, start=1):
            image[shape] = color
            labels[shape] = label
            if number < count or count == 1:
                rle = coco.encode(np.asfortranarray(shape.astype(np.uint8)))
                document["annotations"].append(
                    {
                        "id": len(document["annotations"]) + 1,
                        "image_id": number,
                        "category_id": category,
                        "iscrowd": 0,
                        "area": float(coco.area(rle)),
                        "bbox": coco.toBbox(rle).tolist(),
                        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    }
                )
        Image.fromarray(image).save(images / f"{number}.png")
        Image.fromarray(labels).save(maps / f"{number}.png")
        document["images"].append({"id": number, "file_name": f"{number}.png", "height": SIZE[0], "width": SIZE[1]})
        pixels[number] = image
    (folder / "truth.json").write_text(json.dumps(document))
    return TruthFiles(images, folder / "truth.json", maps, pixels)


def results_of(image_id: int, category_id: int, mask: Any, score: float) -> dict[str, Any]:
    """A COCO result of a mask, (compressed) run lengths with counts in bytes."""
    segmentation = {"size": list(mask["size"]), "counts": mask["counts"].decode()}
    return {"image_id": image_id, "category_id": category_id, "segmentation": segmentation, "score": score}
