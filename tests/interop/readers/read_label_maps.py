"""Pillow and OpenCV read label maps: read_label_maps.py EXPORT EXPECTED."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import PIL
from expected import MaskCounter, load_expected, load_labels
from PIL import Image


def main(export: str, expected: str) -> None:
    """Compare the visible pixels of each mask with those that no smaller or later mask covers."""
    wanted, tally, labels = load_expected(expected), MaskCounter(), load_labels(expected)
    index = json.loads((Path(export) / "index.json").read_text(encoding="utf-8"))
    print(f"Pillow {PIL.__version__}, OpenCV {cv2.__version__}: {len(index['images'])} images")
    count = 0
    for image in index["images"]:
        ids, masks = wanted[image["id"]]
        count += len(ids)
        document = json.loads((Path(export) / image["json"]).read_text(encoding="utf-8"))
        path = Path(export) / document["label_map"]
        numbers = np.asarray(Image.open(path))
        tally.require(numbers.shape == (image["height"], image["width"]), f"image {image['id']}: its size")
        tally.require(np.array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), numbers), f"image {image['id']}")
        tally.require([each["id"] for each in document["masks"]] == ids, f"image {image['id']}: its masks' ids")
        free = np.ones(numbers.shape, bool)
        for place in sorted(range(len(ids)), key=lambda place: (masks[place].sum(), -place)):
            each, visible = document["masks"][place], masks[place] & free
            tally.compare(f"mask {ids[place]}", numbers == each["value"], visible)
            tally.require(abs(each["visible"] - visible.sum() / masks[place].sum()) < 1e-6, f"mask {ids[place]}: share")
            tally.require(each["category"] == labels[ids[place]], f"mask {ids[place]}: its label")
            free &= ~masks[place]
        tally.require(np.array_equal(numbers == 0, free), f"image {image['id']}: its background")
    tally.require([image["id"] for image in index["images"]] == list(wanted), "the images")
    tally.end("label-maps", count)


main(*sys.argv[1:])
