"""Pillow reads one PNG per mask: read_png_masks.py EXPORT EXPECTED."""

import json
import sys
from pathlib import Path

import numpy as np
import PIL
from expected import MaskCounter, load_expected, load_labels
from PIL import Image


def main(export: str, expected: str) -> None:
    """Compare each file with its mask."""
    wanted, tally, labels = load_expected(expected), MaskCounter(), load_labels(expected)
    index = json.loads((Path(export) / "index.json").read_text(encoding="utf-8"))
    print(f"Pillow {PIL.__version__}: {len(index['images'])} images")
    for image in index["images"]:
        ids, masks = wanted[image["id"]]
        described = json.loads((Path(export) / image["json"]).read_text(encoding="utf-8"))["masks"]
        tally.require([each["id"] for each in described] == ids, f"image {image['id']}: its masks' ids")
        for each, mask in zip(described, masks, strict=True):
            picture = Image.open(Path(export) / each["png"])
            tally.require(picture.mode == "1", f"mask {each['id']}: {picture.mode}")
            tally.require(each["category"] == labels[each["id"]], f"mask {each['id']}: its label")
            tally.compare(f"mask {each['id']}", np.asarray(picture), mask)
    tally.require([image["id"] for image in index["images"]] == list(wanted), "the images")
    tally.end("png-masks", sum(len(ids) for ids, _ in wanted.values()))


main(*sys.argv[1:])
