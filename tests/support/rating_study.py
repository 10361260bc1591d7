"""A study of ratings on a small dataset: two models' masks of the same objects, one smaller and one larger."""

import json
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco

from segmint.catalogs.dataset.reader import Dataset
from segmint.infra.storage.location import Location
from segmint.pipeline.engine.study.ratings import RatingStudy, sample_ratings
from tests.support.locations import location_of


def write_predictions(dataset: Location, folder: Path) -> list[Path]:
    """Write COCO results of two models for every mask of a dataset: eroded, and after a second click; and dilated."""
    kernel = np.ones((5, 5), np.uint8)
    files = []
    for name, change in (("small", cv2.erode), ("large", cv2.dilate)):
        entries = []
        opened = Dataset.open(dataset)
        for commit in opened.commits():
            for sample in opened.shard(commit):
                for mask in sample.masks:
                    pixels = coco.decode({"size": list(mask.size), "counts": mask.counts.encode()})
                    rle = coco.encode(np.asfortranarray(change(pixels, kernel)))
                    segmentation = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
                    entry = {"image_id": sample.id, "annotation_id": mask.id, "segmentation": segmentation}
                    exact = {**entry, "segmentation": {"size": list(mask.size), "counts": mask.counts}, "clicks": 2}
                    entries += [exact, {**entry, "clicks": 1}]
        files.append(folder / f"{name}.json")
        files[-1].write_text(json.dumps(entries))
    return files


def make_study(dataset: Location, folder: Path, masks: int = 500) -> RatingStudy:
    """Draw a study of both models' masks into `folder/study`."""
    files = [location_of(path) for path in write_predictions(dataset, folder)]
    return sample_ratings(dataset, files, masks, 0, location_of(folder / "study"))
